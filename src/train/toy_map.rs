//! The plane of a two-dimensional toy as a grid of points: where data are likely, and where the alignment loss is low.

use crate::error::Result;
use crate::float::FloatX;
use crate::flow::objective::Velocity;
use crate::flow::{Estimate, Landscape};
use crate::metrics::spearman;
use crate::plot::{heat_grid, padded_extent};
use crate::train::reference::Reference;

/// Nodes per side: the reference's figures.
pub const SIDE: usize = 50;
/// Largest t of the likelihood estimate. With exact velocities 0.95 ranks the grid's nodes almost as well as 0.98 (0.997
/// and 0.999, FEATURES 1.3); with a trained network better (0.987 and 0.981), because beyond it the weight t/(1 − t)
/// multiplies above all the network's own error.
pub const TRUNCATION: f64 = 0.95;

/// The grid, and the true negative log-likelihood at its nodes.
#[derive(Clone, Debug)]
pub struct ToyMap {
    /// The part of the plane: x from, x to, y from, y to.
    pub extent: [f32; 4],
    /// −ln p at the nodes, row = y, ascending: (SIDE, SIDE).
    pub nll: Vec<f64>,
    nodes: Vec<f32>,
}

impl ToyMap {
    /// Lays the grid over all points of `sets`, padded by 20 %; `None` where the reference has no density.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn new(reference: &Reference, sets: &[&[[f32; 2]]]) -> Result<Option<Self>> {
        let extent = padded_extent(sets);
        let nodes = heat_grid(extent, SIDE).into_flattened();
        if reference.width() != 2 {
            return Ok(None);
        }
        Ok(reference.nll(&nodes)?.map(|nll| Self { extent, nll, nodes }))
    }

    /// Returns the estimate at the nodes, from `draws` draws of (t, noise) that are the same for all of them, t up to
    /// `truncation` for the likelihood.
    ///
    /// # Errors
    /// A network of another width.
    pub fn landscape<X: FloatX>(
        &self,
        velocity: Velocity<'_, X>,
        estimate: Estimate,
        draws: usize,
        truncation: f64,
        seed: u64,
    ) -> Result<Vec<f64>> {
        let landscape = Landscape { estimate, draws, truncation, tail: 0, seed };
        landscape.evaluate(velocity, &self.nodes)
    }

    /// Returns Spearman's correlation of a landscape with the true negative log-likelihood; NaN where it has none.
    pub fn spearman(&self, landscape: &[f64]) -> f64 {
        spearman(landscape, &self.nll).unwrap_or(f64::NAN)
    }
}
