//! `y = h + gate · u`, or `y = gate · u`: the gate through each of the three maps.

use flowprior::ops::gated_residual::{gated_residual_backward, gated_residual_forward};
use flowprior::{FloatX, Result};

use crate::support::oracle::same_bits;
use crate::support::{Answer, Backward, Case, Inputs, Map, Tensors, Values, answer, check_all, fresh};

#[derive(Debug)]
struct GatedResidual {
    n: usize,
    c: usize,
    with_h: bool,
    map: Map,
    /// First of the table's columns that is a gate; some more lie behind the gates.
    offset: usize,
}

impl Case for GatedResidual {
    fn inputs(&self) -> Inputs {
        let inputs = Inputs::default().stored("u", [self.n, self.c]);
        let inputs = inputs.when(self.with_h, |i| i.stored("h", [self.n, self.c]));
        self.map.inputs(inputs, self.n, self.columns())
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let (u, h) = (&x["u"], x.get("h"));
        let gates = self.map.rows(x, self.columns());
        let y = (0..u.len()).map(|e| {
            let gate = gates[e / self.c * self.columns() + self.offset + e % self.c];
            h.map_or(0.0, |h| h[e]) + gate * u[e]
        });
        vec![y.collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let gate = self.map.modulation(x);
        Ok(vec![answer(&gated_residual_forward(x.stored("u"), x.get("h"), &gate, self.offset)?)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let (gate, dy) = (self.map.modulation(x), x.stored("dy"));
        let mut dtable = self.map.gradient(x, self.offset, self.c)?;
        let dgate = Some((x.stored("u"), dtable.lend()));
        let du = gated_residual_backward(dy, &gate, self.offset, dgate)?;
        let frozen = gated_residual_backward(dy, &gate, self.offset, None)?;
        same_bits(&du.to_f32_vec().unwrap(), &frozen.to_f32_vec().unwrap(), "du of a frozen network");
        let mut gradients = vec![fresh("u", &du), dtable.read()];
        if self.with_h {
            gradients.push(fresh("h", dy)); // dh = dy, which the caller keeps
        }
        Ok(Backward::Gradients(gradients))
    }
}

impl GatedResidual {
    fn columns(&self) -> usize {
        // Tables of whole packs, and others.
        self.offset + self.c + if self.c.is_multiple_of(8) && self.n.is_multiple_of(2) { 8 } else { 2 }
    }
}

fn shapes(list: &[(usize, usize)]) -> impl Iterator<Item = GatedResidual> {
    list.iter().flat_map(|&(n, c)| {
        let of_map = move |map| {
            [false, true].map(|with_h| GatedResidual {
                n,
                c,
                with_h,
                map,
                offset: if with_h { 2 * c } else { 0 },
            })
        };
        Map::all(n).into_iter().flat_map(of_map)
    })
}

#[test]
fn gates_act_on_narrow_and_odd_rows() {
    check_all(shapes(&[(1, 1), (3, 1), (2, 3), (7, 5), (9, 31), (12, 33), (17, 2)]));
}

#[test]
fn gates_act_on_more_rows_than_a_block_holds() {
    check_all(shapes(&[(257, 65), (15, 1030), (18, 1024), (15, 1024), (70, 264)]));
}
