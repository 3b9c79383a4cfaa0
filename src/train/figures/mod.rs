//! The paper's figures, each by one command, with our weight beside the paper's: `flowprior figures`.
//!
//! ```text
//! 3        toys whose density is exact      OUT/figures/3-TOY.png   maps of −log p and of the loss, latents, curves: a column a weight
//! 5        the other toys, the same         OUT/figures/5-TOY.png
//! 4        an autoencoder's latents         OUT/figures/4.png       mean log r_k against the alignment loss, over its training
//! 6        latents of the toys on the way   OUT/figures/6-TOY.png   ten snapshots, and 6-TOY-moving.png, an animation of all
//! animate  any run of 2-D latents           RUN/figures/moving.png  the animation
//! ```
//! What they need is trained as ordinary runs in OUT/runs (see `parts`), once for all figures.

mod measure;
mod moving;
mod neighbours;
mod toys;

use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use crate::data::Toy;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::train::config::Config;
use crate::train::log::Console;
use crate::train::parts::{QUICK, Workshop};
use crate::train::setup;
use crate::train::signal::StopFlag;

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// The paper's figure 3, for toys whose density is exact.
    Three,
    /// Its figure 4.
    Four,
    /// Its figure 5, as figure 3 for the other toys.
    Five,
    /// Its figure 6.
    Six,
    /// An animation of a run's latents.
    Animate,
}

impl Figure {
    /// Lists them with the names a user types.
    const ALL: [(&'static str, Self); 5] = [
        ("3", Self::Three),
        ("4", Self::Four),
        ("5", Self::Five),
        ("6", Self::Six),
        ("animate", Self::Animate),
    ];

    /// Returns the name a user types.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, figure)| *figure == self).map_or("", |(name, _)| name)
    }
}

impl FromStr for Figure {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|(name, _)| *name == s).map(|(_, figure)| *figure);
        found.ok_or_else(|| Error::Usage(format!("unknown figure `{s}`: expected 3, 4, 5, 6 or animate")))
    }
}

/// How figures are made.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The folder of their runs and of the figures.
    pub out: PathBuf,
    /// The toys of figures 3, 5 and 6; none for those that the figure shows by itself.
    pub toys: Vec<Toy>,
    /// The run of figure 4 and of an animation; without one figure 4 trains its own.
    pub run: Option<PathBuf>,
    /// Trains for a moment only, to see that everything works.
    pub quick: bool,
    /// Worker threads of the CPU; 0 for one per core.
    pub threads: usize,
    /// Where progress of the runs is shown.
    pub console: Console,
    /// Asks to stop.
    pub stop: StopFlag,
}

impl Figures {
    /// Draws a figure, saying what begins, and returns the closing lines: what was measured, and the files.
    ///
    /// # Errors
    /// An option that the figure has no use for; `Error::Stopped` after a signal; a folder that holds something else; a disk that is full.
    pub fn draw(&self, figure: Figure, say: impl FnMut(&str)) -> Result<Vec<String>> {
        self.check(figure)?;
        let exact = |toy: &Toy| toy.mixture().is_some();
        match figure {
            Figure::Three => self.triptychs(figure, exact, say),
            Figure::Five => self.triptychs(figure, |toy| !exact(toy), say),
            Figure::Six => self.passages(say),
            Figure::Four => self.neighbours(say),
            Figure::Animate => self.animate(),
        }
    }

    fn check(&self, figure: Figure) -> Result<()> {
        let (name, toys) = (figure.name(), matches!(figure, Figure::Three | Figure::Five | Figure::Six));
        if toys && self.run.is_some() {
            return Err(Error::Usage(format!(
                "figures {name}: trains its own runs; --run is for 4 and animate"
            )));
        }
        if !toys && !self.toys.is_empty() {
            return Err(Error::Usage(format!("figures {name}: shows no toys; --toy is for 3, 5 and 6")));
        }
        if figure == Figure::Animate && self.run.is_none() {
            return Err(Error::Usage("figures animate: name a run of 2-D latents with --run".to_owned()));
        }
        Ok(())
    }

    /// Returns the toys to draw: those that were named, or those that `usual` takes.
    fn chosen(&self, usual: impl Fn(&Toy) -> bool) -> Vec<Toy> {
        if self.toys.is_empty() { Toy::ALL.into_iter().filter(usual).collect() } else { self.toys.clone() }
    }

    fn workshop(&self) -> Workshop {
        Workshop { root: self.out.join("runs"), console: self.console, stop: self.stop.clone() }
    }

    /// Returns what all runs change of their presets.
    fn common_sets(&self) -> Vec<String> {
        let quick = QUICK.iter().filter(|_| self.quick).map(|set| (*set).to_owned());
        quick.chain([format!("threads={}", self.threads)]).collect()
    }

    fn device(&self) -> Result<Device> {
        setup::device(&Config { threads: self.threads, ..Default::default() })
    }

    /// Names a file of `OUT/figures`.
    fn path(&self, name: &str) -> Result<PathBuf> {
        let folder = self.out.join("figures");
        fs::create_dir_all(&folder).map_err(Error::io(&folder, "create folder"))?;
        Ok(folder.join(name))
    }
}
