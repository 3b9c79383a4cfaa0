//! Attention against its definition: one sample and head after the other, in f64.

use flowprior::ops::attention::{Heads, attention_backward, attention_forward};
use flowprior::{FloatX, Result, Tensor};
use half::bf16;

use crate::support::devices::{any_device, devices};
use crate::support::random::Random;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, fresh};

#[derive(Debug)]
struct Attention {
    b: usize,
    t: usize,
    h: usize,
    k: usize,
}

impl Case for Attention {
    fn inputs(&self) -> Inputs {
        Inputs::default().stored("qkv", [self.b * self.t, 3 * self.h * self.k])
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let &Self { b, t, h, k } = self;
        let (mut o, mut lse) = (vec![0.0; b * t * h * k], vec![0.0; b * t * h]);
        let part = |row: usize, part: usize, head: usize| &x["qkv"][((row * 3 + part) * h + head) * k..][..k];
        for (row, head) in (0..b * t).flat_map(|row| (0..h).map(move |head| (row, head))) {
            let sample = row / t * t..(row / t + 1) * t;
            let dot = |j| part(row, 0, head).iter().zip(part(j, 1, head)).map(|(q, k)| q * k).sum::<f64>();
            let scores: Vec<f64> = sample.clone().map(|j| dot(j) / (k as f64).sqrt()).collect();
            let most = scores.iter().fold(f64::NEG_INFINITY, |most, s| most.max(*s));
            let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            lse[row * h + head] = most + sum.ln();
            for (s, j) in scores.iter().zip(sample) {
                let p = (s - most).exp() / sum;
                for (o, v) in o[(row * h + head) * k..][..k].iter_mut().zip(part(j, 2, head)) {
                    *o += p * v;
                }
            }
        }
        vec![o, lse]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let (o, lse) = attention_forward(x.stored("qkv"), self.heads())?;
        Ok(vec![answer(&o), answer(&lse)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let qkv = x.stored("qkv");
        let (o, lse) = attention_forward(qkv, self.heads())?;
        let dqkv = attention_backward(x.stored("dy"), &o, &lse, qkv, self.heads())?;
        Ok([fresh("qkv", &dqkv)].into())
    }
}

impl Attention {
    fn heads(&self) -> Heads {
        Heads { tokens: self.t, heads: self.h }
    }
}

fn check(shapes: &[(usize, usize, usize, usize)]) {
    check_all(shapes.iter().map(|&(b, t, h, k)| Attention { b, t, h, k }));
}

#[test]
fn a_token_alone_is_its_own_value() {
    check(&[(1, 1, 1, 2), (2, 1, 3, 4), (3, 1, 1, 72), (1, 1, 2, 128)]);
}

#[test]
fn few_tokens_attend_to_each_other_in_every_head() {
    check(&[(3, 2, 1, 6), (2, 2, 3, 32), (1, 5, 3, 8), (2, 7, 1, 16)]);
}

#[test]
fn token_counts_beside_a_block_are_right_at_every_head_width() {
    check(&[(1, 17, 3, 10), (2, 17, 1, 72), (1, 33, 1, 128), (1, 64, 1, 64), (1, 65, 2, 32), (1, 49, 1, 80)]);
}

#[test]
fn samples_of_many_blocks_are_right() {
    check(&[
        (1, 257, 1, 32),
        (2, 130, 1, 18),
        (1, 130, 1, 72),
        (1, 70, 2, 64),
        (1, 66, 1, 96),
        (1, 65, 1, 128),
    ]);
}

/// Where heads suffice for all multiprocessors, a card takes blocks of twice as many rows.
#[test]
fn many_heads_are_what_few_are_on_a_card() -> Result<()> {
    let of_card = devices().filter(|(name, _)| name.starts_with("cuda"));
    for ((_, device), k) in of_card.flat_map(|device| [32, 64, 72].map(|k| (device, k))) {
        let (samples, heads) = (22, Heads { tokens: 128, heads: 8 });
        let columns = 3 * heads.heads * k;
        let numbers: Vec<f32> =
            Random::new("qkv").normals(heads.tokens * columns).into_iter().map(|x| x as f32).collect();
        let results = |samples: usize| -> Result<[Vec<f32>; 2]> {
            let shape = [samples * heads.tokens, columns];
            let qkv = Tensor::<bf16>::from_f32(device, shape, &numbers.repeat(samples))?;
            let (o, lse) = attention_forward(&qkv, heads)?;
            Ok([o.to_f32_vec()?, lse.to_f32_vec()?])
        };
        for (few, many) in results(1)?.iter().zip(results(samples)?) {
            for (i, (x, y)) in many.iter().zip(few.iter().cycle()).enumerate() {
                assert!((x - y).abs() <= 1e-2, "K = {k}, element {i} is {x}, of few heads {y}");
            }
        }
    }
    Ok(())
}

/// Where there are many heads, a task of the processor takes whole ones; where there are few, parts of them.
#[test]
fn a_sample_in_a_batch_is_what_it_is_alone() -> Result<()> {
    let (b, t, k, heads) = (16, 150, 6, Heads { tokens: 150, heads: 1 });
    let of = |name: &str, columns: usize| -> Vec<f32> {
        Random::new(name).normals(t * columns).into_iter().map(|x| x as f32).collect()
    };
    let (qkv, d_o) = (of("qkv", 3 * k), of("d_o", k));
    let results = |samples: usize| -> Result<[Vec<f32>; 3]> {
        let qkv = Tensor::<f32>::from_f32(any_device(), [samples * t, 3 * k], &qkv.repeat(samples))?;
        let d_o = Tensor::<f32>::from_f32(any_device(), [samples * t, k], &d_o.repeat(samples))?;
        let (o, lse) = attention_forward(&qkv, heads)?;
        let dqkv = attention_backward(&d_o, &o, &lse, &qkv, heads)?;
        Ok([o.to_f32_vec()?, lse.to_f32_vec()?, dqkv.to_f32_vec()?])
    };
    for (alone, together) in results(1)?.iter().zip(results(b)?) {
        for (i, (x, y)) in together.iter().zip(alone.iter().cycle()).enumerate() {
            assert!((x - y).abs() <= 1e-5, "element {i} is {x}, alone {y}");
        }
    }
    Ok(())
}

#[test]
fn scores_far_apart_neither_overflow_nor_vanish() -> Result<()> {
    // Two tokens, one head: scores 0 and ±2000, beyond what exp takes in f32.
    let qkv = Tensor::<f32>::from_f32(
        any_device(),
        [2, 6],
        &[40.0, 0.0, 50.0, 0.0, 1.0, 2.0, -40.0, 0.0, 0.0, 0.0, 3.0, 4.0],
    )?;
    let (o, lse) = attention_forward(&qkv, Heads { tokens: 2, heads: 1 })?;
    assert_eq!(o.to_f32_vec()?, [1.0, 2.0, 3.0, 4.0]);
    let lse = lse.to_f32_vec()?;
    assert!((lse[0] - 2000.0 / 2f32.sqrt()).abs() < 1e-3 && lse[1] == 0.0, "{lse:?}");
    Ok(())
}

#[test]
fn no_samples_give_nothing() -> Result<()> {
    let (qkv, heads) = (Tensor::<f32>::zeros(any_device(), [0, 12]), Heads { tokens: 5, heads: 2 });
    let (o, lse) = attention_forward(&qkv, heads)?;
    assert_eq!((o.shape().dims(), lse.shape().dims()), (&[0, 4][..], &[0, 2][..]));
    assert!(attention_backward(&o, &o, &lse, &qkv, heads)?.is_empty());
    Ok(())
}

#[test]
fn rows_and_columns_that_do_not_divide_are_refused() -> Result<()> {
    let refused = |rows: usize, columns: usize, tokens: usize, heads: usize| {
        let qkv = Tensor::<f32>::zeros(any_device(), [rows, columns]);
        attention_forward(&qkv, Heads { tokens, heads }).unwrap_err().to_string()
    };
    let cases = [
        ((4, 18, 0, 1), "`heads` has 0 tokens and 1 heads, expected at least one of each"),
        ((4, 18, 4, 0), "`heads` has 4 tokens and 0 heads, expected at least one of each"),
        ((4, 18, 3, 1), "`qkv` has 4 rows, expected whole samples of 3 tokens"),
        (
            (4, 16, 4, 2),
            "`qkv` has 16 columns, expected queries, keys and values of 2 heads: a multiple of 6",
        ),
        ((4, 18, 4, 2), "`qkv` has heads of width 3 (18 columns for 2 heads), expected an even width"),
    ];
    for ((rows, columns, tokens, heads), message) in cases {
        assert_eq!(refused(rows, columns, tokens, heads), format!("attention_forward: {message}"));
    }
    let heads = Heads { tokens: 2, heads: 1 };
    let qkv = Tensor::<f32>::zeros(any_device(), [2, 12]);
    let (o, lse) = attention_forward(&qkv, heads)?;
    let wrong = Tensor::<f32>::zeros(any_device(), [2, 12]);
    let message = attention_backward(&wrong, &o, &lse, &qkv, heads).unwrap_err().to_string();
    assert_eq!(message, "attention_backward: `d_o` has shape [2, 12], expected shape [2, 4]");
    Ok(())
}
