//! Interpolation of functions of t at Chebyshev nodes: the `nodes` form of the modulation path (DESIGN 3).
//!
//! First-kind nodes on [0, 1]: `t_k = (1 + cos θ_k)/2`, `θ_k = (2k + 1)π/(2r)`. The barycentric weights of row i are
//! `w_k = c_k/(t_i − t_k) / Σ_j c_j/(t_i − t_j)` with `c_k = (−1)^k sin θ_k` (Berrut and Trefethen, 2004): they sum to
//! one, and interpolation is the product of the (N, r) weight matrix with the r function values. Its transpose carries
//! gradients back exactly.

use std::f64::consts::PI;

use crate::device::Device;
use crate::device::cuda::Grid;
use crate::error::Result;
use crate::float::split;
use crate::kernels;
use crate::tensor::Tensor;

/// Rows of a task: some ten microseconds.
const ROWS: usize = 256;

/// Returns the r nodes, from 1 down to 0.
pub fn chebyshev_nodes(r: usize) -> Vec<f64> {
    (0..r).map(|k| 0.5 * (1.0 + theta(k, r).cos())).collect()
}

/// `t: (N)` → `weights: (N, r)`, computed in f64 (CUDA: in pairs of f32) and rounded once.
pub fn chebyshev_weights(t: &Tensor<f32>, r: usize) -> Result<Tensor<f32>> {
    let n = t.len();
    t.expect("chebyshev_weights", "t", [n])?;
    let mut weights = Tensor::uninit(t.device(), [n, r]);
    match t.device() {
        Device::Cpu(cpu) => {
            let (nodes, signs) = (chebyshev_nodes(r), signs(r));
            let (weights, t) = (weights.host_mut()?, t.host()?);
            cpu.each(weights.chunks_mut((ROWS * r).max(1)).zip(t.chunks(ROWS)), |(weights, t)| {
                let rows = weights.chunks_exact_mut(r.max(1)).zip(t);
                rows.for_each(|(w, t)| barycentric(w, *t as f64, &nodes, &signs));
            });
        }
        Device::Cuda(queue) => {
            let pairs = |xs: Vec<f64>| queue.constant(&xs.into_iter().flat_map(split).collect::<Vec<f32>>());
            let (nodes, signs) = (pairs(chebyshev_nodes(r))?, pairs(signs(r))?);
            let grid = Grid::covering(n, 1, 128);
            kernels::chebyshev_weights(
                queue,
                grid,
                weights.write()?,
                t.read()?,
                nodes,
                signs,
                n as u32,
                r as u32,
            )?;
        }
    }
    Ok(weights)
}

/// Returns the Chebyshev coefficients of the polynomial through `values` at the r nodes:
/// `c_m = (2 − [m = 0])/r · Σ_k f(t_k) cos(m·θ_k)`. The last ones bound the interpolation error.
pub fn chebyshev_coefficients(values: &[f64]) -> Vec<f64> {
    let r = values.len();
    (0..r)
        .map(|m| {
            let sum: f64 = values.iter().enumerate().map(|(k, f)| f * (m as f64 * theta(k, r)).cos()).sum();
            sum * if m == 0 { 1.0 } else { 2.0 } / r as f64
        })
        .collect()
}

/// Returns the weights of the barycentric formula, (−1)^k·sin θ_k.
fn signs(r: usize) -> Vec<f64> {
    (0..r).map(|k| if k % 2 == 0 { 1.0 } else { -1.0 } * theta(k, r).sin()).collect()
}

fn theta(k: usize, r: usize) -> f64 {
    (2 * k + 1) as f64 * PI / (2 * r) as f64
}

fn barycentric(w: &mut [f32], t: f64, nodes: &[f64], signs: &[f64]) {
    if let Some(hit) = nodes.iter().position(|node| *node == t) {
        w.fill(0.0);
        w[hit] = 1.0;
        return;
    }
    let sum: f64 = nodes.iter().zip(signs).map(|(node, c)| c / (t - node)).sum();
    for ((w, node), c) in w.iter_mut().zip(nodes).zip(signs) {
        *w = (c / (t - node) / sum) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_polynomial_is_reproduced_and_its_coefficients_found() -> Result<()> {
        let device = Device::cpu_with_threads(1)?;
        let r = 8;
        let f = |t: f64| 1.0 - 3.0 * t + 5.0 * t.powi(7);
        let values: Vec<f64> = chebyshev_nodes(r).into_iter().map(f).collect();
        let nodes = chebyshev_nodes(r);
        let t: Vec<f32> = (0..=100).map(|i| i as f32 / 100.0).chain([nodes[3] as f32]).collect();
        let weights = chebyshev_weights(&Tensor::from_f32(&device, [t.len()], &t)?, r)?;
        for (t, w) in t.iter().zip(weights.host()?.chunks_exact(r)) {
            let y: f64 = w.iter().zip(&values).map(|(w, v)| *w as f64 * v).sum();
            assert!((y - f(*t as f64)).abs() < 2e-6, "at {t}: {y}");
        }
        let coefficients = chebyshev_coefficients(&values);
        // t⁷ on [0, 1] has leading coefficient 2^(1−2·7) in shifted Chebyshev polynomials.
        assert!((coefficients[7] - 5.0 * 2f64.powi(-13)).abs() < 1e-14);
        Ok(())
    }
}
