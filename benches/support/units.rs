//! Wall time whose rates carry the units of the field: criterion itself counts "elements".

use std::time::{Duration, Instant};

use criterion::Throughput;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};

/// Measures time; elements per second are called after what the elements are.
pub struct Timed {
    /// What elements are counted in, and how many make one.
    units: Units,
}

/// A unit of rates.
#[derive(Clone, Copy)]
pub struct Units {
    name: &'static str,
    elements: f64,
}

impl Timed {
    /// Counts elements in a unit of so many: ("GFLOP/s", 1e9).
    pub fn rated(name: &'static str, elements: f64) -> Self {
        Self { units: Units { name, elements } }
    }
}

impl Measurement for Timed {
    type Intermediate = Instant;
    type Value = Duration;

    fn start(&self) -> Instant {
        WallTime.start()
    }

    fn end(&self, start: Instant) -> Duration {
        WallTime.end(start)
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        WallTime.add(a, b)
    }

    fn zero(&self) -> Duration {
        WallTime.zero()
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &self.units
    }
}

impl ValueFormatter for Units {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }

    fn scale_throughputs(&self, typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let Throughput::Elements(elements) = throughput else {
            return WallTime.formatter().scale_throughputs(typical, throughput, values);
        };
        for nanoseconds in values {
            *nanoseconds = *elements as f64 / self.elements / (*nanoseconds * 1e-9);
        }
        self.name
    }

    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}
