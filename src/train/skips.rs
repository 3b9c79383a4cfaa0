//! Counts steps that were skipped because their loss or gradient was not finite, and ends a run that cannot recover.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Counts skipped steps; saved in checkpoints, so that a resumed run counts on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skips {
    /// Skipped steps of the whole run.
    pub total: u64,
    /// Skipped steps since the last good one.
    pub in_a_row: u64,
}

impl Skips {
    /// Counts a good step.
    pub fn good(&mut self) {
        self.in_a_row = 0;
    }

    /// Counts a step whose `what` ("loss", "gradient") was not finite; the weights must not have been touched.
    ///
    /// # Errors
    /// `Error::Diverged` on the `max`-th such step in a row.
    pub fn bad(&mut self, step: u64, what: &str, max: u64) -> Result<()> {
        self.total += 1;
        self.in_a_row += 1;
        self.verdict(step, what, max)
    }

    /// Says whether the run may go on after the steps that were counted, the last of them `step`.
    ///
    /// # Errors
    /// `Error::Diverged` when `max` steps in a row were skipped, or more.
    pub fn verdict(&self, step: u64, what: &str, max: u64) -> Result<()> {
        if self.in_a_row < max {
            return Ok(());
        }
        Err(Error::Diverged(format!(
            "step {step}: the {what} is not finite, the {} step in a row that had to be skipped; lower `optim.lr`, set \
             `optim.clip`, or go back to f32 (limit: `train.max_skipped`)",
            ordinal(self.in_a_row)
        )))
    }
}

fn ordinal(n: u64) -> String {
    let suffix = match (n % 10, n % 100) {
        (1, 1..=10 | 12..) => "st",
        (2, 1..=11 | 13..) => "nd",
        (3, 1..=12 | 14..) => "rd",
        _ => "th",
    };
    format!("{n}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bad_steps_in_a_row_end_the_run() -> Result<()> {
        let mut skips = Skips::default();
        for step in 0..10 {
            skips.bad(step, "loss", 3)?;
            skips.bad(step, "gradient", 3)?;
            skips.good();
        }
        assert_eq!(skips, Skips { total: 20, in_a_row: 0 });
        skips.bad(100, "loss", 3)?;
        skips.bad(101, "loss", 3)?;
        let error = skips.bad(102, "gradient", 3).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        let message = error.to_string();
        assert!(
            message.starts_with("step 102: the gradient is not finite, the 3rd step in a row"),
            "{message}"
        );
        Ok(())
    }

    #[test]
    fn ordinals_read_as_people_say_them() {
        let words: Vec<_> = [1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 101, 111].into_iter().map(ordinal).collect();
        assert_eq!(words.join(" "), "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 23rd 101st 111th");
    }
}
