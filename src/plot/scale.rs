//! Scales: from values to positions along an axis, with the ticks a reader expects.

/// How values are spread along an axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences take equal lengths.
    #[default]
    Linear,
    /// Equal ratios take equal lengths; values that are not positive are left out.
    Log,
}

impl Scale {
    /// Says whether a value has a place on an axis of this scale.
    pub(super) fn shows(self, value: f64) -> bool {
        value.is_finite() && (self == Self::Linear || value > 0.0)
    }

    fn forward(self, value: f64) -> f64 {
        if self == Self::Log { value.log10() } else { value }
    }

    fn back(self, position: f64) -> f64 {
        if self == Self::Log { 10f64.powf(position) } else { position }
    }
}

/// The range an axis covers; `lo` and `hi` are logarithms on a log scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Range {
    scale: Scale,
    lo: f64,
    hi: f64,
}

/// A mark on an axis: its share of the length, and the text beside it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    pub at: f32,
    pub label: String,
}

impl Range {
    /// Covers all values that the scale shows, plus a share `pad` of the length at both ends.
    pub fn of(scale: Scale, values: impl IntoIterator<Item = f64>, pad: f64) -> Option<Self> {
        let mut range: Option<(f64, f64)> = None;
        for value in values.into_iter().filter(|v| scale.shows(*v)) {
            let p = scale.forward(value);
            range = Some(range.map_or((p, p), |(lo, hi)| (lo.min(p), hi.max(p))));
        }
        range.map(|(lo, hi)| {
            // A flat curve gets a range around it that is wide enough for f64 to tell its ticks apart.
            let least = if scale == Scale::Log { 1e-3 } else { 1e-9 * lo.abs().max(hi.abs()).max(1e-12) };
            let flat = hi - lo < least;
            let extra = if flat { (0.05 * lo.abs()).max(least) } else { pad * (hi - lo) };
            Self { scale, lo: lo - extra, hi: hi + extra }
        })
    }

    /// Covers exactly `lo` to `hi` on a linear scale.
    pub fn exactly(lo: f64, hi: f64) -> Self {
        Self { scale: Scale::Linear, lo, hi }
    }

    /// Returns the share of the axis at which a value stands, 0 to 1 within the range.
    pub fn share(&self, value: f64) -> f32 {
        ((self.scale.forward(value) - self.lo) / (self.hi - self.lo)) as f32
    }

    /// Says whether the axis shows a value.
    pub fn shows(&self, value: f64) -> bool {
        self.scale.shows(value)
    }

    /// Returns the length covered (in decades on a log scale).
    pub fn length(&self) -> f64 {
        self.hi - self.lo
    }

    /// Returns labelled ticks, about `wanted` of them.
    pub fn ticks(&self, wanted: usize) -> Vec<Tick> {
        match self.scale {
            Scale::Log if self.length() > 0.7 => self.log_ticks(wanted),
            _ => self.linear_ticks(wanted),
        }
    }

    /// Returns the shares of the unlabelled ticks at 2 to 9 times each power of ten.
    pub fn minor_ticks(&self) -> Vec<f32> {
        if self.scale == Scale::Linear || !(0.7..=8.0).contains(&self.length()) {
            return Vec::new();
        }
        let powers = self.lo.floor() as i32..=self.hi.ceil() as i32;
        powers
            .flat_map(|p| (2..10).map(move |m| (m as f64).log10() + p as f64))
            .filter(|p| (self.lo..=self.hi).contains(p))
            .map(|p| ((p - self.lo) / self.length()) as f32)
            .collect()
    }

    fn log_ticks(&self, wanted: usize) -> Vec<Tick> {
        let decades = self.length();
        let multiples: &[u32] = if decades < 1.5 {
            &[1, 2, 5]
        } else if decades < 2.2 {
            &[1, 3]
        } else {
            &[1]
        };
        let stride = (decades / (1.5 * wanted.max(1) as f64)).ceil().max(1.0) as i32;
        let powers = self.lo.floor() as i32..=self.hi.ceil() as i32;
        let as_powers = multiples.len() == 1 && (self.lo < -2.5 || self.hi > 3.5);
        powers
            .filter(|p| p.rem_euclid(stride) == 0)
            .flat_map(|p| multiples.iter().map(move |m| (p, *m)))
            .map(|(p, m)| ((m as f64).log10() + p as f64, p, m))
            .filter(|(at, ..)| (self.lo - 1e-9..=self.hi + 1e-9).contains(at))
            .map(|(at, p, m)| Tick {
                at: ((at - self.lo) / self.length()) as f32,
                label: if as_powers { format!("10{}", superscript(p)) } else { power_label(p, m) },
            })
            .collect()
    }

    fn linear_ticks(&self, wanted: usize) -> Vec<Tick> {
        let (lo, hi) = (self.scale.back(self.lo), self.scale.back(self.hi));
        let step = round_step((hi - lo) / wanted.max(1) as f64);
        let labels = Labels::new(lo.abs().max(hi.abs()), step);
        let first = (lo / step - 1e-9).ceil() as i64;
        let last = (hi / step + 1e-9).floor() as i64;
        (first..=last)
            .map(|i| i as f64 * step)
            .map(|v| Tick { at: self.share(v), label: labels.of(v) })
            .collect()
    }
}

/// The one of 1, 2, 5, 10 times a power of ten that is nearest in ratio.
fn round_step(ideal: f64) -> f64 {
    let power = 10f64.powf(ideal.log10().floor());
    let (mut best, mut off) = (power, f64::INFINITY);
    for step in [power, 2.0 * power, 5.0 * power, 10.0 * power] {
        let ratio = (step / ideal).ln().abs();
        if ratio < off {
            (best, off) = (step, ratio);
        }
    }
    best
}

/// How all numbers of one axis are written: divided by a unit, with as many decimals as the step needs.
struct Labels {
    unit: f64,
    suffix: String,
    decimals: usize,
}

impl Labels {
    fn new(largest: f64, step: f64) -> Self {
        let (unit, suffix) = if !(1e-3..1e9).contains(&largest) {
            let power = largest.log10().floor() as i32;
            (10f64.powi(power), format!("·10{}", superscript(power)))
        } else if largest >= 2e6 {
            (1e6, "M".to_owned())
        } else if largest >= 1e4 {
            (1e3, "k".to_owned())
        } else {
            (1.0, String::new())
        };
        let decimals = (-(step / unit).log10() - 1e-9).ceil().clamp(0.0, 15.0) as usize;
        Self { unit, suffix, decimals }
    }

    fn of(&self, value: f64) -> String {
        let number = format!("{:.*}", self.decimals, value / self.unit);
        if number.trim_matches(['-', '0', '.']).is_empty() {
            return "0".to_owned();
        }
        format!("{}{}", number.replace('-', "−"), self.suffix)
    }
}

/// `m · 10^p` written out: "0.05", "1", "200", "5k".
fn power_label(p: i32, m: u32) -> String {
    match p {
        ..-4 | 6.. if m == 1 => format!("10{}", superscript(p)),
        ..-4 | 6.. => format!("{m}·10{}", superscript(p)),
        ..0 => format!("{:.*}", -p as usize, m as f64 * 10f64.powi(p)),
        0..4 => format!("{}", m as u64 * 10u64.pow(p as u32)),
        4..6 => format!("{}k", m as u64 * 10u64.pow(p as u32 - 3)),
    }
}

fn superscript(power: i32) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let raise = |c: char| c.to_digit(10).map_or('⁻', |d| DIGITS[d as usize]);
    power.to_string().chars().map(raise).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, lo: f64, hi: f64, wanted: usize) -> Vec<String> {
        let ticks = Range::of(scale, [lo, hi], 0.0).map(|r| r.ticks(wanted)).unwrap_or_default();
        assert!(ticks.iter().all(|t| (-1e-6..=1.000_001).contains(&t.at)), "{ticks:?}");
        ticks.into_iter().map(|t| t.label).collect()
    }

    #[test]
    fn linear_ticks_are_round_numbers_with_the_decimals_they_need() {
        assert_eq!(labels(Scale::Linear, 1.27, 2.03, 4), ["1.4", "1.6", "1.8", "2.0"]);
        assert_eq!(labels(Scale::Linear, -0.3, 0.31, 3), ["−0.2", "0", "0.2"]);
        assert_eq!(labels(Scale::Linear, 0.0, 100_000.0, 5), ["0", "20k", "40k", "60k", "80k", "100k"]);
        assert_eq!(labels(Scale::Linear, 0.0, 4e-5, 4), ["0", "1·10⁻⁵", "2·10⁻⁵", "3·10⁻⁵", "4·10⁻⁵"]);
    }

    #[test]
    fn log_ticks_are_powers_on_long_axes_and_multiples_on_short_ones() {
        assert_eq!(labels(Scale::Log, 1.0, 1e5, 6), ["10⁰", "10¹", "10²", "10³", "10⁴", "10⁵"]);
        assert_eq!(labels(Scale::Log, 0.5, 2000.0, 6), ["1", "10", "100", "1000"]);
        assert_eq!(labels(Scale::Log, 3.0, 80.0, 6), ["5", "10", "20", "50"]);
        assert_eq!(labels(Scale::Log, 1e-12, 1.0, 3), ["10⁻¹²", "10⁻⁹", "10⁻⁶", "10⁻³", "10⁰"]);
        assert_eq!(labels(Scale::Log, 1.2, 1.5, 3), ["1.2", "1.3", "1.4", "1.5"]);
    }

    #[test]
    fn values_without_a_place_do_not_stretch_the_range() {
        let range = Range::of(Scale::Log, [0.0, -3.0, f64::NAN, 10.0, 1000.0, f64::INFINITY], 0.0);
        assert_eq!(range, Some(Range { scale: Scale::Log, lo: 1.0, hi: 3.0 }));
        assert_eq!(Range::of(Scale::Linear, [f64::NAN], 0.1), None);
    }

    #[test]
    fn a_flat_curve_still_gets_an_axis() {
        for value in [0.0, 1.0, -3e7, 1e-30] {
            let range = Range::of(Scale::Linear, [value, value], 0.05);
            assert!(range.is_some_and(|r| r.length() > 0.0 && !r.ticks(4).is_empty()), "{value}");
        }
    }
}
