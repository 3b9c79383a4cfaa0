//! Figure 6 and animations: latents of a toy on their way over its map of −log p.

use std::path::{Path, PathBuf};

use super::Figures;
use super::toys::{Aligned, WEIGHTS};
use crate::data::Toy;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::plot::{Moment, Passage, Plane, heat_grid, snapshot_animation, snapshot_grid};
use crate::train::evaluate::EXTENT_ROWS;
use crate::train::reference::{Reference, mean};
use crate::train::sampling::points;
use crate::train::snapshots;

/// Nodes per side of the map: twice as many as the reference's, for ridges that are thin in a square.
const SIDE: usize = 100;
/// Snapshots of figure 6.
const SHOWN: usize = 10;
/// Room around the data, as a share of their larger side: nearly all normal latents begin within it, and the few others would make the
/// data small.
const MARGIN: f32 = 0.25;

impl Figures {
    /// Draws figure 6 and the animation of each toy.
    pub(super) fn passages(&self, mut say: impl FnMut(&str)) -> Result<Vec<String>> {
        let mut files = Vec::new();
        for toy in self.chosen(|_| true) {
            say(&format!("{toy}: prior, and latents with both weights"));
            self.train_toy(toy)?;
            say(&format!("{toy}: figure 6"));
            let folder = |weight| self.workshop().folder(&format!("{toy}-{weight}"));
            let runs = WEIGHTS.map(|(weight, label)| (folder(weight), label.to_owned()));
            let (still, moving) =
                (self.path(&format!("6-{toy}.png"))?, self.path(&format!("6-{toy}-moving.png"))?);
            let device = self.device()?;
            device.scope(|| {
                let way = Way::open(&device, &runs)?;
                let few: Vec<Passage> = way.passages.iter().map(shown).collect();
                let title = format!("{}; those beyond the map are not drawn", way.title());
                snapshot_grid(&still, &title, &way.plane(), &few)?;
                snapshot_animation(&moving, &way.title(), &way.plane(), &way.passages)
            })?;
            files.extend([still, moving].map(|path| path.display().to_string()));
        }
        Ok(files)
    }

    /// Draws the animation of one run.
    pub(super) fn animate(&self) -> Result<Vec<String>> {
        let run = self.run.clone().unwrap_or_default();
        let device = self.device()?;
        let path = device.scope(|| {
            let name = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let way = Way::open(&device, &[(run.clone(), name)])?;
            let path = run.join("figures").join("moving.png");
            snapshot_animation(&path, &way.title(), &way.plane(), &way.passages).map(|()| path)
        })?;
        Ok(vec![path.display().to_string()])
    }
}

/// The way of the latents of one toy, in one or several runs.
struct Way {
    toy: Toy,
    passages: Vec<Passage>,
    extent: [f32; 4],
    nll: Vec<f32>,
}

impl Way {
    fn open(device: &Device, runs: &[(PathBuf, String)]) -> Result<Self> {
        let first = &runs[0].0;
        let aligned = Aligned::open(device, first)?;
        let reference = aligned.reference(first)?;
        let passage = |(run, label): &(PathBuf, String)| passage(run, label, reference);
        let passages = runs.iter().map(passage).collect::<Result<Vec<_>>>()?;
        let data = points(&reference.rows()[..reference.rows().len().min(2 * EXTENT_ROWS)]);
        let extent = square(&data);
        let nll = reference.nll(heat_grid(extent, SIDE).as_flattened())?.unwrap_or_default();
        let toy = reference.toy().unwrap_or(Toy::Gaussians);
        Ok(Self { toy, passages, extent, nll: nll.iter().map(|v| *v as f32).collect() })
    }

    fn plane(&self) -> Plane<'_> {
        Plane { extent: self.extent, side: SIDE, nll: &self.nll }
    }

    fn title(&self) -> String {
        format!("{}: {} latents on −log p of the data", self.toy, self.passages[0].moments[0].latents.len())
    }
}

/// Reads the snapshots of a run.
fn passage(run: &Path, label: &str, reference: &Reference) -> Result<Passage> {
    let found = snapshots::read(run)?;
    if found.is_empty() {
        let expected = "at least 1: train with --set train.snapshots_every=250";
        return Err(Error::data(run, "snapshots", expected, "none"));
    }
    let moment = |snapshot: snapshots::Snapshot| {
        let nll = reference.nll(&snapshot.latents)?.map_or(f64::NAN, |nll| mean(&nll));
        Ok(Moment { step: snapshot.step, latents: points(&snapshot.latents), nll })
    };
    let moments = found.into_iter().map(moment).collect::<Result<_>>()?;
    Ok(Passage { label: label.to_owned(), moments })
}

/// Takes ten of the moments, the first and the last among them, and the more of them the earlier: that is where latents move.
fn shown(passage: &Passage) -> Passage {
    let count = passage.moments.len();
    let mut next = 0;
    let mut moments = Vec::new();
    for i in 0..SHOWN.min(count) {
        let share = i as f64 / (SHOWN.min(count) - 1).max(1) as f64;
        let at = (count as f64).powf(share).round() as usize - 1;
        let at = at.max(next).min(count - 1);
        moments.push(passage.moments[at].clone());
        next = at + 1;
    }
    Passage { label: passage.label.clone(), moments }
}

/// A square around all points that are finite, with a margin.
fn square(points: &[[f32; 2]]) -> [f32; 4] {
    let (mut low, mut high) = ([f32::INFINITY; 2], [f32::NEG_INFINITY; 2]);
    for point in points.iter().filter(|p| p[0].is_finite() && p[1].is_finite()) {
        for axis in 0..2 {
            low[axis] = low[axis].min(point[axis]);
            high[axis] = high[axis].max(point[axis]);
        }
    }
    let half = (0.5 + MARGIN) * (high[0] - low[0]).max(high[1] - low[1]).max(1e-3);
    let middle = [0, 1].map(|axis| 0.5 * (low[axis] + high[axis]));
    [middle[0] - half, middle[0] + half, middle[1] - half, middle[1] + half]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_moments_are_shown_most_of_them_early() {
        let moment = |i| Moment { step: 250 * i, latents: Vec::new(), nll: 0.0 };
        let steps = |count: u64| {
            let passage = Passage { label: String::new(), moments: (0..count).map(moment).collect() };
            shown(&passage).moments.iter().map(|m| m.step).collect::<Vec<_>>()
        };
        assert_eq!(steps(21), [0, 250, 500, 750, 1000, 1250, 1750, 2500, 3500, 5000]);
        assert_eq!(steps(3), [0, 250, 500]);
        assert_eq!(steps(1), [0]);
    }

    #[test]
    fn the_square_holds_all_finite_points() {
        let found = square(&[[0.0, 1.0], [4.0, 2.0], [f32::NAN, 9.0]]);
        let expected = [-1.0, 5.0, -1.5, 4.5];
        assert!(found.iter().zip(expected).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-5), "{found:?}");
    }
}
