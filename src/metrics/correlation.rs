//! Correlation of two lists: Pearson's of the values, Spearman's of their ranks.

use crate::error::{Error, Result};

/// Returns Pearson's correlation of two lists of the same length, in [−1, 1].
///
/// # Errors
/// Different lengths, fewer than two values, a value that is not finite, or a list whose values are all equal (the
/// correlation is 0/0).
pub fn pearson<A, B>(x: &[A], y: &[B]) -> Result<f64>
where
    A: Copy + Into<f64>,
    B: Copy + Into<f64>,
{
    let (x, y) = (widen(x), widen(y));
    check("pearson", &x, &y, f64::is_finite, "finite values")?;
    Ok(correlation(&x, &y))
}

/// Returns Spearman's correlation: Pearson's of the ranks, where equal values share the mean of their ranks.
///
/// Infinite values rank last or first; only NaN has no rank.
///
/// # Errors
/// Different lengths, fewer than two values, NaN, or a list whose values are all equal.
pub fn spearman<A, B>(x: &[A], y: &[B]) -> Result<f64>
where
    A: Copy + Into<f64>,
    B: Copy + Into<f64>,
{
    let (x, y) = (widen(x), widen(y));
    check("spearman", &x, &y, |v| !v.is_nan(), "values other than NaN")?;
    Ok(correlation(&ranks(&x), &ranks(&y)))
}

fn widen<T: Copy + Into<f64>>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| (*v).into()).collect()
}

fn check(
    op: &'static str,
    x: &[f64],
    y: &[f64],
    allowed: impl Fn(f64) -> bool,
    expected: &'static str,
) -> Result<()> {
    if x.len() != y.len() {
        let found = format!("{} values", y.len());
        return Err(Error::argument(op, "y", format!("as many values as `x`, {}", x.len()), found));
    }
    for (arg, values) in [("x", x), ("y", y)] {
        if let Some(i) = values.iter().position(|v| !allowed(*v)) {
            return Err(Error::argument(op, arg, expected, format!("{} at {i}", values[i])));
        }
        if values.iter().all(|v| *v == values[0]) {
            let found = format!("{} values, all equal", values.len());
            return Err(Error::argument(op, arg, "two or more values that differ", found));
        }
    }
    Ok(())
}

/// Ranks from 1, ties averaged.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    // `chunk_by` with == keeps −0 and 0 together, which total_cmp places side by side.
    let mut first = 0;
    for ties in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let mean = first as f64 + (ties.len() + 1) as f64 / 2.0;
        ties.iter().for_each(|i| ranks[*i] = mean);
        first += ties.len();
    }
    ranks
}

/// Two passes, so that a large mean costs no digits. Each list is scaled by its largest deviation against overflow.
fn correlation(x: &[f64], y: &[f64]) -> f64 {
    let (x, y) = (centred(x), centred(y));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    (dot(&x, &y) / (dot(&x, &x).sqrt() * dot(&y, &y).sqrt())).clamp(-1.0, 1.0)
}

fn centred(values: &[f64]) -> Vec<f64> {
    let n = values.len() as f64;
    let mean = values.iter().map(|v| v / n).sum::<f64>();
    let largest = values.iter().map(|v| (v - mean).abs()).fold(0.0, f64::max);
    values.iter().map(|v| (v - mean) / largest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_share_the_mean_of_their_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, -0.0, 0.0, 3.0]), [5.0, 3.0, 5.0, 1.5, 1.5, 5.0]);
    }
}
