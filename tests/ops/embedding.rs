//! Label embedding with dropped labels, its table's gradient, and rows added to tokens.

use flowprior::ops::embedding::{LabelDrop, Labels, add_rows, embedding_backward, embedding_forward};
use flowprior::ops::flow_path::Rows;
use flowprior::rng::{Draw, Stream};
use flowprior::{FloatX, Result, Tensor};

use crate::support::devices::{any_device, devices};
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, added, answer, check_all, fresh};

#[derive(Debug)]
struct Embedding {
    classes: usize,
    c: usize,
    rows: Rows,
    probability: f32,
    /// The table has a null row.
    null: bool,
}

impl Embedding {
    /// Takes labels out of order, some never, some often; where there is a null row, some samples have no class.
    fn labels(&self) -> Vec<u32> {
        let some = self.classes + self.null as usize;
        (0..self.rows.samples).map(|i| ((i * i + 3 * i) % some) as u32).collect()
    }

    fn drop(&self) -> Option<LabelDrop> {
        let draw = Draw::new(5, Stream::LabelDrop, 17);
        (self.probability > 0.0).then_some(LabelDrop { probability: self.probability, draw })
    }

    fn chosen(&self) -> Vec<usize> {
        let labels = self.labels();
        let of = |i: usize| {
            let (sample, replica) = self.rows.address(i);
            let dropped = self.drop().is_some_and(|d| d.draw.uniform(sample, replica) < d.probability);
            if dropped { self.classes } else { labels[i % self.rows.samples] as usize }
        };
        (0..self.rows.len()).map(of).collect()
    }
}

impl Case for Embedding {
    fn inputs(&self) -> Inputs {
        Inputs::default().stored("table", [self.classes + self.null as usize, self.c])
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let row = |k: usize| x["table"][k * self.c..][..self.c].iter().copied();
        let chosen = self.chosen();
        let y = chosen.iter().flat_map(|k| row(*k)).collect();
        vec![y, chosen.iter().map(|k| *k as f64).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let labels = Labels::new(&x.device, &self.labels(), self.classes)?;
        let (y, chosen) = embedding_forward(x.stored("table").view(), &labels, self.rows, self.drop())?;
        Ok(vec![answer(&y), answer(&chosen)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let chosen: Vec<f32> = self.chosen().into_iter().map(|k| k as f32).collect();
        let chosen = Tensor::from_f32(&x.device, [chosen.len()], &chosen)?;
        let mut dtable = x.accumulator("table")?;
        embedding_backward(dtable.view_mut(), x.stored("dy"), &chosen)?;
        Ok([added("table", &dtable)].into())
    }
}

fn rows(first: u64, samples: usize, replicas: usize) -> Rows {
    Rows { first, samples, replicas, share: 1 }
}

#[test]
fn labels_take_rows_of_tables_of_any_shape() {
    let shapes = [(1, 1, 1), (2, 1, 5), (3, 7, 2), (5, 33, 11), (10, 264, 70), (97, 130, 300), (7, 1030, 18)];
    let of = |(classes, c, samples)| {
        let case = |probability, null, replicas| Embedding {
            classes,
            c,
            rows: rows(40, samples, replicas),
            probability,
            null,
        };
        [case(0.0, false, 1), case(0.0, true, 2), case(0.3, true, 3), case(1.0, true, 1)]
    };
    check_all(shapes.into_iter().flat_map(of));
}

/// `h + rows`, the rows again for each sample.
#[derive(Debug)]
struct AddRows {
    samples: usize,
    t: usize,
    c: usize,
}

impl Case for AddRows {
    fn inputs(&self) -> Inputs {
        let rows = (0..self.t * self.c).map(|i| (i % 16) as f64 / 8.0 - 1.0).collect();
        Inputs::default().stored("h", [self.samples * self.t, self.c]).constant(
            "rows",
            [self.t, self.c],
            rows,
        )
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let rows = &x["rows"];
        vec![x["h"].iter().enumerate().map(|(e, h)| h + rows[e % rows.len()]).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let mut h = x.stored("h").duplicate()?;
        let rows = Tensor::<X>::from_f32(&x.device, [self.t, self.c], &x.single("rows").to_f32_vec()?)?;
        add_rows(&mut h, rows.view())?;
        Ok(vec![answer(&h)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        Ok([fresh("h", x.stored("dy"))].into()) // dh = dy, which the caller keeps
    }
}

#[test]
fn positions_are_added_to_every_sample() {
    let shapes = [(1, 1, 1), (3, 2, 5), (2, 16, 24), (5, 7, 33), (3, 64, 384), (2, 3, 1030)];
    check_all(shapes.map(|(samples, t, c)| AddRows { samples, t, c }));
}

#[test]
fn a_table_may_start_anywhere_in_a_flat_buffer() -> Result<()> {
    let numbers: Vec<f32> = (0..67).map(|i| i as f32).collect();
    for (name, device) in devices() {
        let flat = Tensor::<f32>::from_f32(device, [67], &numbers)?;
        let table = flat.view().part(3, [4, 16]);
        let (y, _) = embedding_forward(table, &Labels::new(device, &[2], 3)?, Rows::plain(1), None)?;
        assert_eq!(y.to_f32_vec()?, numbers[35..51], "{name}");
        let mut h = Tensor::<f32>::zeros(device, [4, 16]);
        add_rows(&mut h, table)?;
        assert_eq!(h.to_f32_vec()?, numbers[3..], "{name}");
    }
    Ok(())
}

#[test]
fn micro_batches_drop_the_labels_of_the_whole_batch() -> Result<()> {
    let numbers: Vec<u32> = (0..24).map(|i| i % 5).collect();
    let drop = Some(LabelDrop { probability: 0.4, draw: Draw::new(1, Stream::LabelDrop, 3) });
    for (name, device) in devices() {
        let table = Tensor::<f32>::zeros(device, [6, 4]);
        let chosen = |first: usize, count: usize| -> Result<Vec<f32>> {
            let labels = Labels::new(device, &numbers[first..first + count], 5)?;
            let rows = rows(first as u64, count, 1);
            embedding_forward(table.view(), &labels, rows, drop)?.1.to_f32_vec()
        };
        let whole = chosen(0, 24)?;
        assert!(whole.contains(&5.0) && whole.iter().any(|k| *k < 5.0), "{name}");
        let parts: Vec<Vec<f32>> = (0..4).map(|part| chosen(6 * part, 6)).collect::<Result<_>>()?;
        assert_eq!(parts.concat(), whole, "{name}");
    }
    Ok(())
}

#[test]
fn labels_are_dropped_as_often_as_asked_and_not_the_same_ones_each_step() -> Result<()> {
    let (device, samples) = (any_device(), 4096);
    let table = Tensor::<f32>::zeros(device, [2, 1]);
    let labels = Labels::new(device, &vec![0; samples], 1)?;
    let dropped = |step| -> Result<Vec<f32>> {
        let drop = LabelDrop { probability: 0.1, draw: Draw::new(1, Stream::LabelDrop, step) };
        embedding_forward(table.view(), &labels, Rows::plain(samples), Some(drop))?.1.to_f32_vec()
    };
    let (one, two) = (dropped(0)?, dropped(1)?);
    let share = one.iter().sum::<f32>() / samples as f32;
    assert!((share - 0.1).abs() < 4.0 * (0.09 / samples as f32).sqrt(), "{share}");
    assert_ne!(one, two);
    Ok(())
}

#[test]
fn labels_without_a_row_are_refused() -> Result<()> {
    let device = any_device();
    let message = |numbers: &[u32]| Labels::new(device, numbers, 3).unwrap_err().to_string();
    let expected = "Labels::new: `numbers` has 4 in place 1, expected classes below 3, or 3 for none";
    assert_eq!(message(&[3, 4]), expected);
    assert!(Labels::new(device, &[], 0).unwrap_err().to_string().contains("`classes` has 0"));
    let mut labels = Labels::new(device, &[0, 3], 3)?;
    assert!(labels.put(&[0, 9]).unwrap_err().to_string().contains("9 in place 1"));
    assert!(labels.put(&[0]).is_err());
    assert_eq!((labels.len(), labels.classes(), labels.numbers()), (2, 3, &[0, 3][..]));

    let table = Tensor::<f32>::zeros(device, [3, 2]);
    let refused = |labels: &Labels, rows, drop| {
        embedding_forward(table.view(), labels, rows, drop).unwrap_err().to_string()
    };
    let missing = "embedding_forward: `table` has shape [3, 2], expected shape [4, 2]";
    assert_eq!(refused(&Labels::none(device, 2, 3)?, Rows::plain(2), None), missing);
    labels.put(&[0, 2])?;
    let draw = Draw::new(1, Stream::LabelDrop, 0);
    let drop = |probability| Some(LabelDrop { probability, draw });
    assert_eq!(refused(&labels, Rows::plain(2), drop(0.5)), missing);
    assert!(embedding_forward(table.view(), &labels, Rows::plain(2), drop(0.0)).is_ok());
    assert!(refused(&labels, Rows::plain(2), drop(f32::NAN)).contains("expected a probability"));
    assert!(refused(&labels, Rows::plain(3), None).contains("2 numbers, expected 3 numbers, one a sample"));

    let mut dtable = Tensor::<f32>::zeros(device, [4, 2]);
    let (dy, chosen) = (Tensor::<f32>::zeros(device, [2, 2]), Tensor::zeros(device, [3]));
    assert!(embedding_backward(dtable.view_mut(), &dy, &chosen).is_err());
    let mut h = Tensor::<f32>::zeros(device, [5, 2]);
    let message = add_rows(&mut h, dy.view()).unwrap_err().to_string();
    assert_eq!(message, "add_rows: `h` has 5 rows, expected a number of rows that 2 divides");
    Ok(())
}
