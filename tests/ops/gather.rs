//! Row gather with an affine map; its backward adds rows that were gathered twice.

use flowprior::ops::gather::{
    Affine, Index, Mirror, Sampling, Stored, gather_backward, gather_forward, gather_samples_to,
};
use flowprior::rng::{Draw, Stream};
use flowprior::{FloatX, Result, Tensor};

use crate::support::devices::{any_device, devices};
use crate::support::noise::normals;
use crate::support::{
    Answer, Backward, Case, Inputs, Tensors, Values, added, answer, check_all, no_backward,
};

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

/// Rows that are drawn and mirrored on the way.
#[derive(Debug)]
struct Samples {
    /// Rows of the table, columns of the batch, and rows gathered.
    shape: (usize, usize, usize),
    sampling: Sampling,
}

/// Numbers that every storage type holds exactly.
fn sixteenths(count: usize) -> Vec<f64> {
    (0..count).map(|i| ((i * 37 % 101) as f64 - 50.0) / 16.0).collect()
}

impl Samples {
    fn stride(&self) -> usize {
        self.shape.1 * if self.sampling.stored == Stored::Values { 1 } else { 2 }
    }

    fn index(&self) -> Vec<u32> {
        Gather { shape: self.shape, affine: Affine::IDENTITY, single: true }.index()
    }
}

impl Case for Samples {
    fn inputs(&self) -> Inputs {
        let (v, stride) = (self.shape.0, self.stride());
        Inputs::default().constant("table", [v, stride], sixteenths(v * stride))
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let (d, sampling) = (self.shape.1, self.sampling);
        let row = |(i, j): (usize, u32)| {
            let row = &x["table"][j as usize * self.stride()..];
            let mut y = row[..d].to_vec();
            if let Stored::Drawn(draw) = sampling.stored {
                let noise = normals(draw, i as u64, 0, d);
                y.iter_mut()
                    .zip(&row[d..])
                    .zip(noise)
                    .for_each(|((y, lv), noise)| *y += (lv / 2.0).exp() * noise);
            }
            y.iter_mut().for_each(|y| *y *= sampling.scale as f64);
            match sampling.mirror {
                Some(Mirror { draw, width }) if draw.uniform(i as u64, 0) < 0.5 => {
                    y.chunks_mut(width).for_each(<[f64]>::reverse);
                }
                _ => {}
            }
            y
        };
        vec![self.index().into_iter().enumerate().flat_map(row).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let (v, d, n) = self.shape;
        let table = Tensor::<X>::from_f32(&x.device, [v, self.stride()], &x.single("table").to_f32_vec()?)?;
        let mut y = Tensor::uninit(&x.device, [n, d]);
        gather_samples_to(&mut y, &table, &Index::new(&x.device, &self.index())?, &self.sampling)?;
        Ok(vec![answer(&y)])
    }

    fn backward<X: FloatX>(&self, _: &Tensors<X>) -> Result<Backward> {
        no_backward("data are given")
    }
}

fn moments() -> Draw {
    Draw::new(3, Stream::Moments, 8)
}

fn mirror(width: usize) -> Option<Mirror> {
    Some(Mirror { draw: Draw::new(3, Stream::Flip, 8), width })
}

#[test]
fn rows_are_drawn_and_mirrored() {
    // Images of whole packs, of half ones, of odd widths, and rows longer than the noise that is drawn at a time.
    let shapes =
        [(1, 1, 1, 1), (3, 6, 3, 9), (5, 32, 8, 11), (4, 48, 12, 7), (2, 2100, 50, 3), (9, 1024, 32, 18)];
    let cases = shapes.into_iter().flat_map(|(v, d, width, n)| {
        [Stored::Values, Stored::Mean, Stored::Drawn(moments())].into_iter().flat_map(move |stored| {
            [None, mirror(width)].map(|mirror| Samples {
                shape: (v, d, n),
                sampling: Sampling { stored, mirror, scale: 0.18215 },
            })
        })
    });
    check_all(cases);
}

#[test]
fn about_half_of_a_batch_is_mirrored_and_others_in_the_next_step() -> Result<()> {
    for (name, device) in devices() {
        let table = Tensor::<f32>::from_f32(device, [1, 2], &[0.0, 1.0])?;
        let index = Index::new(device, &[0; 1000])?;
        let mirrored = |step| -> Result<Vec<f32>> {
            let mirror = Some(Mirror { draw: Draw::new(1, Stream::Flip, step), width: 2 });
            let mut y = Tensor::uninit(device, [1000, 2]);
            let sampling = Sampling { stored: Stored::Values, mirror, scale: 1.0 };
            gather_samples_to(&mut y, &table, &index, &sampling)?;
            Ok(y.to_f32_vec()?.into_iter().step_by(2).collect())
        };
        let (one, two) = (mirrored(0)?, mirrored(1)?);
        let count = one.iter().sum::<f32>();
        assert!((count - 500.0).abs() < 4.0 * 250f32.sqrt(), "{name}: {count} of 1000");
        assert_ne!(one, two, "{name}");
    }
    Ok(())
}

#[test]
fn tables_without_moments_and_images_of_another_width_are_refused() -> Result<()> {
    let device = any_device();
    let (table, index) = (Tensor::<f32>::zeros(device, [3, 6]), Index::new(device, &[0, 1])?);
    let mut y = Tensor::zeros(device, [2, 6]);
    let mut refused = |sampling: &Sampling| gather_samples_to(&mut y, &table, &index, sampling).unwrap_err();
    let drawn = Sampling { stored: Stored::Drawn(moments()), mirror: None, scale: 1.0 };
    let message = refused(&drawn).to_string();
    assert_eq!(message, "gather_samples: `table` has shape [3, 6], expected shape [3, 12]");
    let narrow = Sampling { stored: Stored::Values, mirror: mirror(4), scale: 1.0 };
    assert_eq!(
        refused(&narrow).to_string(),
        "gather_samples: `mirror` has 4, expected a width that divides 6"
    );
    Ok(())
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
