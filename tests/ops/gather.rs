//! Row gather with an affine map; its backward adds rows that were gathered twice.

use flowprior::ops::gather::{Affine, Index, gather_backward, gather_forward};
use flowprior::{FloatX, Result, Tensor};

use crate::support::devices::any_device;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, added, answer, check_all};

#[derive(Debug)]
struct Gather {
    /// Rows of the table, columns, and rows gathered.
    shape: (usize, usize, usize),
    affine: Affine,
    /// The table is f32 whatever the result is stored in.
    single: bool,
}

impl Case for Gather {
    fn inputs(&self) -> Inputs {
        let (v, d, _) = self.shape;
        match self.single {
            true => Inputs::default().single("table", [v, d]),
            false => Inputs::default().stored("table", [v, d]),
        }
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let (d, Affine { shift, scale }) = (self.shape.1, self.affine);
        let row = |j: u32| &x["table"][j as usize * d..][..d];
        vec![self.index().into_iter().flat_map(row).map(|v| (v - shift as f64) * scale as f64).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let index = Index::new(&x.device, &self.index())?;
        let y: Tensor<X> = match self.single {
            true => gather_forward(x.single("table"), &index, self.affine)?,
            false => gather_forward(x.stored("table"), &index, self.affine)?,
        };
        Ok(vec![answer(&y)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let mut dtable = x.accumulator("table")?;
        gather_backward(
            dtable.view_mut(),
            x.stored("dy"),
            &Index::new(&x.device, &self.index())?,
            self.affine,
        )?;
        Ok([added("table", &dtable)].into())
    }
}

impl Gather {
    /// Takes rows out of order, some twice and some never.
    fn index(&self) -> Vec<u32> {
        let (v, _, n) = self.shape;
        (0..n).map(|i| ((i * i + 3 * i) % v) as u32).collect()
    }
}

#[test]
fn rows_are_gathered_from_tables_of_any_shape() {
    let shapes = [(1, 1, 1), (2, 1, 5), (3, 7, 2), (5, 33, 11), (1, 4, 9), (97, 130, 300), (7, 1030, 18)];
    let some = Affine { shift: 0.25, scale: 1.5 };
    let cases = shapes.into_iter().flat_map(|shape| {
        [(Affine::IDENTITY, false), (some, false), (some, true)].map(|(affine, single)| Gather {
            shape,
            affine,
            single,
        })
    });
    check_all(cases);
}

#[test]
fn an_index_past_the_table_is_refused() -> Result<()> {
    let table = Tensor::<f32>::zeros(any_device(), [3, 2]);
    let mut index = Index::new(any_device(), &[0, 3])?;
    let error = gather_forward::<f32, f32>(&table, &index, Affine::IDENTITY).unwrap_err().to_string();
    assert_eq!(error, "gather_forward: `index` has 3, expected numbers below 3");
    let mut dtable = Tensor::zeros(any_device(), [3, 2]);
    let dy = Tensor::<f32>::zeros(any_device(), [2, 2]);
    assert!(gather_backward(dtable.view_mut(), &dy, &index, Affine::IDENTITY).is_err());
    let error = index.put(&[1]).unwrap_err().to_string();
    assert_eq!(error, "Index::put: `numbers` has 1 numbers, expected 2 numbers");
    Ok(())
}
