//! Layer norm with every combination of its parts: affine map, modulation through each map, residual.

use flowprior::ops::layer_norm::{LayerNorm, LayerNormGrads, layer_norm_backward, layer_norm_forward};
use flowprior::{FloatX, Result};

use crate::support::oracle::same_bits;
use crate::support::{Answer, Backward, Case, Inputs, Map, Tensors, Values, added, answer, check_all, fresh};

#[derive(Debug)]
struct Norm {
    n: usize,
    c: usize,
    affine: bool,
    /// The map, and the first of the table's columns that is a shift; some more lie behind the scales.
    modulation: Option<(Map, usize)>,
    residual: Residual,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Residual {
    None,
    /// Another tensor.
    Other,
    /// x itself, as in a pre-norm block: its gradient joins dx through `add`.
    Own,
}

impl Case for Norm {
    fn inputs(&self) -> Inputs {
        let &Self { n, c, .. } = self;
        let inputs = Inputs::default().stored("x", [n, c]);
        let inputs = inputs.when(self.affine, |i| i.stored("gamma", [c]).stored("beta", [c]));
        let inputs = inputs.when(self.residual == Residual::Other, |i| i.stored("residual", [n, c]));
        match self.modulation {
            Some((map, offset)) => map.inputs(inputs, n, self.columns(offset)),
            None => inputs,
        }
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let c = self.c;
        let affine = x.get("gamma").zip(x.get("beta"));
        let modulation = self.modulation.map(|(map, offset)| (map.rows(x, self.columns(offset)), offset));
        let mut y = Vec::new();
        for (i, row) in x["x"].chunks_exact(c).enumerate() {
            let mean = row.iter().sum::<f64>() / c as f64;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / c as f64;
            for (j, v) in row.iter().enumerate() {
                let mut out = (v - mean) / (variance + 1e-6).sqrt();
                if let Some((gamma, beta)) = affine {
                    out = out * gamma[j] + beta[j];
                }
                if let Some((table, offset)) = &modulation {
                    let at = i * self.columns(*offset) + offset + j;
                    out = out * (1.0 + table[at + c]) + table[at];
                }
                y.push(out);
            }
        }
        let residual = if self.residual == Residual::Own { x.get("x") } else { x.get("residual") };
        for (y, r) in y.iter_mut().zip(residual.unwrap_or_default()) {
            *y += r;
        }
        vec![y]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let residual = if self.residual == Residual::Own { x.get("x") } else { x.get("residual") };
        Ok(vec![answer(&layer_norm_forward(x.stored("x"), &self.norm(x), residual)?.0)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let (norm, dy) = (self.norm(x), x.stored("dy"));
        let (_, saved) = layer_norm_forward(x.stored("x"), &norm, None)?;
        let mut affine = match self.affine {
            true => Some((x.accumulator("gamma")?, x.accumulator("beta")?)),
            false => None,
        };
        let mut table = match self.modulation {
            Some((map, offset)) => Some(map.gradient(x, offset, 2 * self.c)?),
            None => None,
        };
        let grads = LayerNormGrads {
            affine: affine.as_mut().map(|(gamma, beta)| (gamma.view_mut(), beta.view_mut())),
            modulation: table.as_mut().map(|t| t.lend()),
        };
        let add = (self.residual == Residual::Own).then_some(dy);
        let dx = layer_norm_backward(dy, x.stored("x"), &saved, &norm, add, grads)?;
        let none = LayerNormGrads { affine: None, modulation: None };
        let frozen = layer_norm_backward(dy, x.stored("x"), &saved, &norm, add, none)?;
        same_bits(&dx.to_f32_vec().unwrap(), &frozen.to_f32_vec().unwrap(), "dx of a frozen network");

        let cancels = "with few columns x̂ hardly depends on x: dx is what is left of terms of this size";
        let terms = if self.c < 5 { 30.0 } else { 0.0 };
        let mut gradients = vec![fresh("x", &dx).at_least(terms, cancels)];
        if let Some((gamma, beta)) = &affine {
            gradients.extend([added("gamma", gamma), added("beta", beta)]);
        }
        gradients.extend(table.map(|t| t.read()));
        if self.residual == Residual::Other {
            gradients.push(fresh("residual", dy)); // dy, which the caller keeps
        }
        Ok(Backward::Gradients(gradients))
    }
}

impl Norm {
    /// Returns the table's columns: whole packs, and others.
    fn columns(&self, offset: usize) -> usize {
        offset + 2 * self.c + if self.c.is_multiple_of(8) && self.n.is_multiple_of(2) { 8 } else { 1 }
    }

    fn norm<'a, X: FloatX>(&self, x: &'a Tensors<X>) -> LayerNorm<'a, X> {
        LayerNorm {
            affine: self.affine.then(|| (x.stored("gamma").view(), x.stored("beta").view())),
            modulation: self.modulation.map(|(map, offset)| (map.modulation(x), offset)),
        }
    }
}

/// Lists all combinations of parts for each shape.
fn shapes(list: &[(usize, usize)]) -> impl Iterator<Item = Norm> {
    list.iter().flat_map(|&(n, c)| {
        let tables = Map::all(n).into_iter().map(move |map| Some((map, if n % 2 == 0 { 0 } else { c })));
        tables.chain([None]).flat_map(move |modulation| {
            let parts = [(false, Residual::None), (true, Residual::Other), (true, Residual::Own)];
            parts.map(|(affine, residual)| Norm { n, c, affine, modulation, residual })
        })
    })
}

#[test]
fn rows_of_few_columns_are_normalised() {
    check_all(shapes(&[(1, 1), (3, 2), (5, 3), (2, 4)]));
}

#[test]
fn odd_shapes_are_normalised() {
    check_all(shapes(&[(9, 5), (6, 7), (8, 16), (9, 24), (7, 31), (12, 33), (17, 65), (34, 72)]));
}

#[test]
fn more_rows_than_a_block_holds_are_normalised() {
    let large = shapes(&[(31, 500), (33, 512), (18, 1030), (35, 1024), (18, 776), (9, 4000)]);
    check_all(large.filter(|case| case.residual == Residual::Own)); // the case with the most parts
}
