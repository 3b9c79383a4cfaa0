//! The sinusoidal embedding: cosines first, `ω_i = 10000^(−i/half)`, a zero at the end of an odd width.

use flowprior::ops::timestep_embedding::timestep_embedding;
use flowprior::{DType, FloatX, Result};

use crate::support::random::Random;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, no_backward};

#[derive(Debug)]
struct Embedding {
    g: usize,
    h: usize,
    time_scale: f32,
}

impl Case for Embedding {
    fn inputs(&self) -> Inputs {
        let mut random = Random::new("t");
        Inputs::default().constant("t", [self.g], (0..self.g).map(|_| random.uniform()).collect())
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let half = self.h / 2;
        let mut e = Vec::new();
        for t in &x["t"] {
            let angle = |i: usize| self.time_scale as f64 * t * 10_000f64.powf(-(i as f64) / half as f64);
            e.extend((0..half).map(|i| angle(i).cos()));
            e.extend((0..half).map(|i| angle(i).sin()));
            e.resize(e.len() + self.h % 2, 0.0);
        }
        vec![e]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let e = answer(&timestep_embedding::<X>(x.single("t"), self.h, self.time_scale)?);
        let coarse = self.time_scale > 1.0 && X::DTYPE == DType::F32;
        let rounded = "the angle, up to 1000, is rounded to f32: 1000 · 2⁻²⁴, as in the reference network";
        Ok(vec![if coarse { e.within(1e-4, rounded) } else { e }])
    }

    fn backward<X: FloatX>(&self, _: &Tensors<X>) -> Result<Backward> {
        no_backward("t is drawn, not learned, and the frequencies are fixed")
    }
}

#[test]
fn embeddings_of_any_width_match() {
    let shapes = [(1, 1), (1, 2), (3, 3), (2, 7), (17, 256), (5, 1031), (300, 6)];
    check_all(shapes.map(|(g, h)| Embedding { g, h, time_scale: 1.0 }));
}

#[test]
fn times_scaled_by_a_thousand_match() {
    check_all([(9, 16), (2, 255)].map(|(g, h)| Embedding { g, h, time_scale: 1000.0 }));
}
