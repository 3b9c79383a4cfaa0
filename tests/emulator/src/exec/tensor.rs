//! The sums of matrix products: in the order of k, or as tensor cores round them.

/// A: 16 rows of up to 16 columns.
pub type Left = [[f32; 16]; 16];
/// B: up to 16 rows of 8 columns.
pub type Right = [[f32; 8]; 16];
/// C and D.
pub type Sums = [[f32; 8]; 16];

/// Adds products one after the other in f32. The products of 16-bit floats and of tf32 are exact in f32, so that a fused
/// multiplication and addition rounds as an addition would.
///
/// Eight rows at a time, so that their chains of additions overlap.
#[inline(always)]
pub fn ordered(left: &Left, right: &Right, sums: &mut Sums, k: usize) {
    for (rows, sums) in left.chunks_exact(8).zip(sums.chunks_exact_mut(8)) {
        let mut kept: [[f32; 8]; 8] = std::array::from_fn(|i| sums[i]);
        for (i, b) in right[..k.min(16)].iter().enumerate() {
            for row in 0..8 {
                for n in 0..8 {
                    kept[row][n] = rows[row][i].mul_add(b[n], kept[row][n]);
                }
            }
        }
        sums.copy_from_slice(&kept);
    }
}

/// Adds groups of products as tensor cores do: all terms of a group and the sum so far are cut off below the last bits of
/// the largest one (`extra_bits` more than an f32 has), added exactly, and cut off to an f32.
pub fn truncated(left: &Left, right: &Right, sums: &mut Sums, k: usize, extra_bits: u32, group: usize) {
    for (row, sums) in left.iter().zip(sums) {
        for (n, sum) in sums.iter_mut().enumerate() {
            for start in (0..k).step_by(group.max(1)) {
                let end = (start + group.max(1)).min(k);
                let mut terms = [0.0; 17];
                terms[0] = f64::from(*sum);
                for i in start..end {
                    terms[1 + i - start] = f64::from(row[i]) * f64::from(right[i][n]);
                }
                *sum = cut_sum(&terms[..=end - start], extra_bits);
            }
        }
    }
}

fn cut_sum(terms: &[f64], extra_bits: u32) -> f32 {
    if terms.iter().any(|t| !t.is_finite()) {
        return terms.iter().sum::<f64>() as f32;
    }
    let largest = terms.iter().fold(0.0f64, |m, t| m.max(t.abs()));
    if largest == 0.0 {
        return terms.iter().sum::<f64>() as f32;
    }
    let exponent = (largest.to_bits() >> 52) as i32 - 1023;
    // One unit of the last bit that is kept; f64 has room for the exponents of all products of f32.
    let unit = 2f64.powi(exponent - 23 - extra_bits.min(20) as i32);
    let sum: f64 = terms.iter().map(|t| (t / unit).trunc()).sum();
    toward_zero(sum * unit)
}

fn toward_zero(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near).abs() > value.abs() { f32::from_bits(near.to_bits() - 1) } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_cuts_what_lies_below_the_largest_term() {
        let one_ulp = 2f64.powi(-23);
        assert_eq!(cut_sum(&[1.0, one_ulp / 2.0, one_ulp / 2.0], 0), 1.0);
        assert_eq!(cut_sum(&[1.0, one_ulp / 2.0, one_ulp / 2.0], 1), 1.0 + one_ulp as f32);
        assert_eq!(cut_sum(&[-1.0, -one_ulp / 2.0], 1), -1.0);
        assert_eq!(cut_sum(&[2f64.powi(30), -(2f64.powi(30)), 1.0], 2), 0.0, "cancels after the cut");
        assert!(cut_sum(&[f64::INFINITY, f64::NEG_INFINITY], 1).is_nan());
    }

    #[test]
    fn both_orders_agree_on_exact_sums() {
        let left: Left = std::array::from_fn(|i| std::array::from_fn(|k| (i * 16 + k) as f32));
        let right: Right = std::array::from_fn(|k| std::array::from_fn(|n| (k as f32) - (n as f32)));
        let exact: Sums = std::array::from_fn(|i| {
            std::array::from_fn(|n| 3.0 + (0..16).map(|k| left[i][k] * right[k][n]).sum::<f32>())
        });
        let start: Sums = [[3.0; 8]; 16];
        let (mut plain, mut cut) = (start, start);
        ordered(&left, &right, &mut plain, 16);
        truncated(&left, &right, &mut cut, 16, 2, 8);
        assert_eq!(plain, exact);
        assert_eq!(cut, exact);
    }
}
