//! Interpolation weights at Chebyshev nodes, against Lagrange's product form.

use flowprior::ops::chebyshev::{chebyshev_nodes, chebyshev_weights};
use flowprior::{DType, FloatX, Result};

use crate::support::random::Random;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, no_backward};

#[derive(Debug)]
struct Weights {
    n: usize,
    r: usize,
}

impl Case for Weights {
    fn inputs(&self) -> Inputs {
        let mut random = Random::new("t");
        let nodes = chebyshev_nodes(self.r);
        // Both ends and times on a node (as near as f32 comes) among the random ones.
        let special = [0.0, 1.0].into_iter().chain(nodes);
        let t = special.chain(std::iter::from_fn(|| Some(random.uniform()))).take(self.n).collect();
        Inputs::default().constant("t", [self.n], t)
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let angle = |k: usize| (2 * k + 1) as f64 * std::f64::consts::PI / (2 * self.r) as f64;
        let nodes: Vec<f64> = (0..self.r).map(|k| (1.0 + angle(k).cos()) / 2.0).collect();
        let weight = |t: f64, k: usize| -> f64 {
            let others = nodes.iter().enumerate().filter(|(j, _)| *j != k);
            others.map(|(_, node)| (t - node) / (nodes[k] - node)).product::<f64>() + 0.0 * t
        };
        vec![
            x["t"]
                .iter()
                .flat_map(|t| (0..self.r).map(move |k| (*t, k)))
                .map(|(t, k)| weight(t, k))
                .collect(),
        ]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        Ok(vec![answer(&chebyshev_weights(x.single("t"), self.r)?)])
    }

    fn backward<X: FloatX>(&self, _: &Tensors<X>) -> Result<Backward> {
        no_backward("t is drawn, not learned")
    }

    fn types(&self) -> &'static [DType] {
        &[DType::F32]
    }
}

#[test]
fn weights_match_lagranges_products() {
    check_all(
        [(1, 1), (4, 1), (5, 2), (7, 3), (40, 16), (600, 16), (257, 31)].map(|(n, r)| Weights { n, r }),
    );
}
