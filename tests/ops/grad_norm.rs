//! The global gradient norm against f64, and the clip factor.

use flowprior::ops::grad_norm::{clip_factor, grad_norm};
use flowprior::{Device, Result, Tensor};

use crate::support::devices::{devices, families};
use crate::support::random::Random;

/// Around the chunks of 256 and the blocks of 65,536 elements.
const LENGTHS: [usize; 9] = [1, 2, 17, 255, 257, 65_535, 65_536, 65_537, 150_001];

fn gradient(n: usize) -> Vec<f32> {
    Random::new("gradient").normals(n).into_iter().map(|v| v as f32).collect()
}

fn norm(device: &Device, g: &[f32], unscale: f32) -> Result<f64> {
    grad_norm(&Tensor::from_f32(device, [g.len()], g)?, unscale)
}

#[test]
fn norms_match_f64_and_do_not_depend_on_threads() -> Result<()> {
    for n in LENGTHS {
        let g = gradient(n);
        let expected = 0.125 * g.iter().map(|v| (*v as f64).powi(2)).sum::<f64>().sqrt();
        for family in families() {
            let first = norm(&family.devices[0].1, &g, 0.125)?;
            assert!((first - expected).abs() <= 1e-6 * expected, "{n}: {first}, expected {expected}");
            for (name, device) in &family.devices[1..] {
                assert_eq!(norm(device, &g, 0.125)?.to_bits(), first.to_bits(), "{n} elements, {name}");
            }
        }
    }
    Ok(())
}

#[test]
fn one_bad_element_makes_the_norm_not_finite() -> Result<()> {
    for (name, device) in devices() {
        for (n, at) in [(1, 0), (257, 256), (65_537, 65_536), (150_001, 70_000)] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut g = gradient(n);
                g[at] = bad;
                assert!(!norm(device, &g, 1.0)?.is_finite(), "{bad} at {at} of {n}, {name}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_buffer_without_elements_has_norm_zero() -> Result<()> {
    devices().try_for_each(|(name, device)| {
        assert_eq!(norm(device, &[], 1.0)?, 0.0, "{name}");
        Ok(())
    })
}

#[test]
fn clipping_scales_only_norms_above_the_limit() {
    assert_eq!(clip_factor(0.5, 1.0), 1.0);
    assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
    assert_eq!(clip_factor(4.0, 0.0), 1.0, "a limit of 0 turns clipping off");
    assert!(clip_factor(f64::NAN, 1.0).is_nan(), "a bad norm must not pass for a good one");
}
