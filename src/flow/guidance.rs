//! Guided velocities: a strong and a weak velocity, extrapolated (FEATURES 4.4).
//!
//! ```text
//! w     v_weak + w·(v_strong − v_weak)                 w = 1 is v_strong (DiT, LFM)
//! 1+w   (1 + w)·v_strong − w·v_weak                    w = 0 is v_strong (facebookresearch/flow_matching)
//! ```
//! Classifier-free guidance: v_strong with the condition, v_weak without. Autoguidance (arXiv 2406.02507): v_weak of a smaller or less
//! trained network. Outside an interval of t the strong velocity stands alone (arXiv 2404.07724), and the weak one is not evaluated.
//! CFG-Zero* (arXiv 2503.18886) scales v_weak by each sample's least-squares factor and stands still in the first steps. All channels are
//! guided: guiding three of four is a known mistake (FEATURES 6.3).

use std::str::FromStr;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::flow::sampler::{Time, named};
use crate::ops::elementwise::cast;
use crate::ops::guidance::{WeakScale, guidance};
use crate::tensor::Tensor;

/// What the number w means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// v_weak + w·(v_strong − v_weak).
    W,
    /// (1 + w)·v_strong − w·v_weak.
    OnePlusW,
}

impl Form {
    /// Lists both with the names that a user types.
    pub const ALL: [(&str, Self); 2] = [("w", Self::W), ("1+w", Self::OnePlusW)];
}

impl FromStr for Form {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        named("guidance form", s, &Self::ALL)
    }
}

/// How a pair of velocities is combined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// w.
    pub scale: f64,
    /// What w means.
    pub form: Form,
    /// The times that are guided, both ends included.
    pub interval: (f64, f64),
    /// CFG-Zero*: v_weak is scaled by s*, and this many first steps stand still; `None` is plain guidance.
    pub zero: Option<usize>,
}

impl Guidance {
    /// Guides by w at all times.
    pub fn plain(scale: f64, form: Form) -> Self {
        Self { scale, form, interval: (0.0, 1.0), zero: None }
    }

    /// Returns w as the form `w` has it.
    pub fn weight(&self) -> f64 {
        match self.form {
            Form::W => self.scale,
            Form::OnePlusW => 1.0 + self.scale,
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// A weight that is not finite, an interval that is none or lies outside of 0 to 1.
    pub fn check(&self) -> Result<()> {
        let (low, high) = self.interval;
        if !self.scale.is_finite() {
            return Err(Error::Usage(format!("guidance needs a finite weight, not {}", self.scale)));
        }
        if !(0.0 <= low && low < high && high <= 1.0) {
            return Err(Error::Usage(format!(
                "guidance acts in an interval of t within 0 to 1, not in {low} to {high}"
            )));
        }
        Ok(())
    }

    /// Says whether the steps of a solve, or the times of an adaptive one that only the device knows, decide what is evaluated.
    pub fn depends_on_time(&self) -> bool {
        self.interval != (0.0, 1.0) || self.zero.is_some_and(|steps| steps > 0)
    }

    /// Returns the guided velocity of `rows` rows and `d` columns; `strong` and `weak` are evaluated where they count.
    ///
    /// # Errors
    /// An adaptive solve, whose times the host does not know, where these decide; errors of the velocities.
    pub fn velocity<X: FloatX>(
        &self,
        device: &Device,
        [rows, d]: [usize; 2],
        time: Time<'_>,
        strong: impl FnOnce() -> Result<Tensor<X>>,
        weak: impl FnOnce() -> Result<Tensor<X>>,
    ) -> Result<Tensor<f32>> {
        let (t, step) = match time {
            Time::Known { t, step } => (t, step),
            Time::OnDevice(_) if self.depends_on_time() => {
                return Err(Error::Usage(
                    "guidance in an interval, or one that stands still at first, needs a fixed grid: dopri5 keeps its times on the device"
                        .into(),
                ));
            }
            // Anywhere: the interval is the whole.
            Time::OnDevice(_) => (self.interval.0, usize::MAX),
        };
        if self.zero.is_some_and(|first| step < first) {
            return Ok(Tensor::zeros(device, [rows, d]));
        }
        let inside = (self.interval.0..=self.interval.1).contains(&t);
        if !inside || self.weight() == 1.0 {
            return cast(&strong()?);
        }
        let scale = if self.zero.is_some() { WeakScale::Projected } else { WeakScale::One };
        guidance(&strong()?, &weak()?, self.weight() as f32, scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRONG: [f32; 4] = [1.0, 2.0, -1.0, 0.5];
    const WEAK: [f32; 4] = [0.5, 1.0, 1.0, 1.0];

    fn at(how: &Guidance, t: f64, step: usize) -> (Vec<f32>, usize) {
        let device = Device::cpu_with_threads(1).unwrap();
        let calls = std::cell::Cell::new(0);
        let made = |values: &[f32]| {
            calls.set(calls.get() + 1);
            Tensor::<f32>::from_f32(&device, [2, 2], values)
        };
        let time = Time::Known { t, step };
        let v = how.velocity(&device, [2, 2], time, || made(&STRONG), || made(&WEAK)).unwrap();
        (v.to_f32_vec().unwrap(), calls.get())
    }

    #[test]
    fn both_forms_name_the_same_velocities() {
        let expected = [1.5, 3.0, -3.0, 0.0];
        assert_eq!(at(&Guidance::plain(2.0, Form::W), 0.5, 0), (expected.into(), 2));
        assert_eq!(at(&Guidance::plain(1.0, Form::OnePlusW), 0.5, 0), (expected.into(), 2));
        assert_eq!(at(&Guidance::plain(0.0, Form::W), 0.5, 0).0, WEAK);
        for strong_alone in [Guidance::plain(1.0, Form::W), Guidance::plain(0.0, Form::OnePlusW)] {
            assert_eq!(at(&strong_alone, 0.5, 0), (STRONG.into(), 1));
        }
    }

    #[test]
    fn an_interval_includes_its_ends_and_saves_evaluations_elsewhere() {
        let how = Guidance { interval: (0.25, 0.5), ..Guidance::plain(2.0, Form::W) };
        for (t, guided) in [(0.0, false), (0.249, false), (0.25, true), (0.5, true), (0.51, false)] {
            assert_eq!(at(&how, t, 0).1, if guided { 2 } else { 1 }, "{t}");
        }
    }

    #[test]
    fn cfg_zero_projects_each_sample_and_stands_still_first() {
        let how = Guidance { zero: Some(2), ..Guidance::plain(2.0, Form::W) };
        assert_eq!(at(&how, 0.0, 1), (vec![0.0; 4], 0));
        // s* is 2 for the first sample, whose velocities are parallel, and −¼ for the second.
        let (v, calls) = at(&how, 0.1, 2);
        let expected = [1.0, 2.0, -1.75, 1.25];
        assert!(v.iter().zip(expected).all(|(v, e)| (v - e).abs() < 1e-6) && calls == 2, "{v:?}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (low, high) in [(0.5, 0.5), (0.6, 0.2), (-0.1, 1.0), (0.0, 1.1), (f64::NAN, 1.0)] {
            let how = Guidance { interval: (low, high), ..Guidance::plain(2.0, Form::W) };
            assert!(how.check().unwrap_err().to_string().contains("within 0 to 1"));
        }
        let message = Guidance::plain(f64::INFINITY, Form::W).check().unwrap_err().to_string();
        assert_eq!(message, "guidance needs a finite weight, not inf");
        let message = "w+1".parse::<Form>().unwrap_err().to_string();
        assert_eq!(message, "unknown guidance form `w+1`: expected `w`, `1+w`");
        let how = Guidance { interval: (0.0, 0.5), ..Guidance::plain(2.0, Form::W) };
        let device = Device::cpu_with_threads(1).unwrap();
        let t = Tensor::zeros(&device, [1]);
        let zeros = || Ok(Tensor::<f32>::zeros(&device, [1, 1]));
        let found = how.velocity(&device, [1, 1], Time::OnDevice(&t), zeros, zeros);
        assert!(found.unwrap_err().to_string().contains("needs a fixed grid"));
    }
}
