//! Nearest neighbours against all distances in f64, where products cancel too.

use flowprior::metrics::{Search, compare, compare_by, nearest};
use flowprior::ops::knn::{MOST_NEIGHBOURS, Own, knn, knn_within};
use flowprior::{DType, FloatX, Result, Tensor};

use crate::support::devices::{any_device, devices};
use crate::support::random::Random;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, no_backward};

#[derive(Debug)]
struct Knn {
    queries: usize,
    points: usize,
    d: usize,
    k: usize,
    /// Queries are the points.
    own: Own,
}

impl Knn {
    /// Distances to all candidates and their numbers, in order.
    fn sorted(&self, x: &Values, query: &[f64], i: usize) -> Vec<(f64, usize)> {
        let points = if self.own == Own::LeftOut { &x["queries"] } else { &x["points"] };
        let distance = |p: &[f64]| p.iter().zip(query).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let all = points.chunks_exact(self.d).map(distance).zip(0..).map(|(r, j)| (r, j as usize));
        let mut all: Vec<_> =
            all.filter(|(r, j)| !(r.is_nan() || self.own == Own::LeftOut && *j == i)).collect();
        all.sort_by(|a, b| a.partial_cmp(b).unwrap());
        all
    }
}

impl Case for Knn {
    fn inputs(&self) -> Inputs {
        // Multiples of 1/64: squares of differences are exact in f32, and some are equal.
        let numbers = |name: &str, n: usize| {
            let mut random = Random::new(name);
            (0..n * self.d).map(|_| (random.normal() * 64.0).round() / 64.0).collect::<Vec<f64>>()
        };
        let queries = ("queries", [self.queries, self.d], numbers("queries", self.queries));
        let points = ("points", [self.points, self.d], numbers("points", self.points));
        Inputs::default()
            .constant(queries.0, queries.1, queries.2)
            .when(self.own == Own::Counted, |inputs| inputs.constant(points.0, points.1, points.2))
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let (mut distances, mut numbers) = (Vec::new(), Vec::new());
        for (i, query) in x["queries"].chunks_exact(self.d).enumerate() {
            let found = self.sorted(x, query, i);
            let at = |j: usize| found.get(j).copied().unwrap_or((f64::NAN, 0));
            distances.extend((0..self.k).map(|j| at(j).0));
            numbers.extend((0..self.k).map(|j| at(j).1 as f64));
        }
        vec![distances, numbers]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let queries = x.single("queries");
        let points = if self.own == Own::LeftOut { queries } else { x.single("points") };
        let found = knn(queries, points, self.k, self.own)?;
        Ok(vec![answer(&found.distances), answer(&found.numbers)])
    }

    fn backward<X: FloatX>(&self, _: &Tensors<X>) -> Result<Backward> {
        no_backward("neighbours are held fixed: see entropy")
    }

    fn types(&self) -> &'static [DType] {
        &[DType::F32]
    }
}

#[test]
fn neighbours_are_exact_and_equal_ones_in_order() {
    let sizes =
        [(1, 1, 1, 1), (3, 5, 2, 5), (17, 70, 3, 4), (9, 130, 32, 24), (33, 300, 5, 25), (5, 259, 1, 100)];
    check_all(sizes.map(|(queries, points, d, k)| Knn { queries, points, d, k, own: Own::Counted }));
    let own = [(2, 1, 1), (6, 3, 5), (129, 2, 7), (200, 64, 40)];
    check_all(own.map(|(points, d, k)| Knn { queries: points, points, d, k, own: Own::LeftOut }));
}

/// Points in blocks of 128: each is merged into the lists of those before.
#[test]
fn blocks_of_points_give_the_neighbours_of_all() -> Result<()> {
    let (q, n) = (9, 389);
    for (d, k) in [(3, 5), (8, 24), (2, 100)] {
        let mut random = Random::new("blocks");
        let mut rows = |n: usize| -> Vec<f32> { (0..n * d).map(|_| random.normal() as f32).collect() };
        let (queries, points) = (rows(q), rows(n));
        let (expected, numbers) = {
            let (queries, points) = (&queries, &points);
            let square = |i: usize, j: usize| -> f64 {
                (0..d).map(|c| (queries[i * d + c] as f64 - points[j * d + c] as f64).powi(2)).sum()
            };
            let of = |i: usize| {
                let mut all: Vec<(f64, usize)> = (0..n).map(|j| (square(i, j), j)).collect();
                all.sort_by(|a, b| a.partial_cmp(b).unwrap());
                all[..k].iter().map(|(square, j)| (square.sqrt(), *j as f32)).collect::<Vec<_>>()
            };
            (0..q).flat_map(of).unzip::<f64, f32, Vec<_>, Vec<_>>()
        };
        for (name, device) in devices() {
            let [queries, points] =
                [(&queries, q), (&points, n)].map(|(rows, n)| Tensor::from_f32(device, [n, d], rows));
            let found = knn_within(&queries?, &points?, k, Own::Counted, 128 * q)?;
            assert_eq!(found.numbers.to_f32_vec()?, numbers, "{name}, k = {k}");
            for (found, expected) in found.distances.to_f32_vec()?.iter().zip(&expected) {
                assert!((*found as f64 - expected).abs() < 1e-5, "{name}, k = {k}: {found} {expected}");
            }
        }
    }
    Ok(())
}

/// Tight clusters far from the origin: scores cancel to nothing, and lists of candidates are of no use.
#[test]
fn neighbours_are_exact_where_products_cancel() -> Result<()> {
    let (n, d, k) = (240, 2, 3);
    let mut random = Random::new("far");
    let mut at = |i: usize| [1000.0, -3000.0][i % d] + (random.normal() * 256.0).round() as f32 / 4096.0;
    let points: Vec<f32> = (0..n * d).map(&mut at).collect();
    let mut expected = Vec::new();
    for (i, p) in points.chunks_exact(d).enumerate() {
        let square = |q: &[f32]| p.iter().zip(q).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum::<f64>();
        let mut all: Vec<(f64, usize)> = points.chunks_exact(d).map(square).zip(0..).collect();
        all.remove(i);
        all.sort_by(|a, b| a.partial_cmp(b).unwrap());
        expected.extend(all[..k].iter().map(|(_, j)| *j as f32));
    }
    for (name, device) in devices() {
        let y = Tensor::from_f32(device, [n, d], &points)?;
        let found = knn(&y, &y, k, Own::LeftOut)?;
        assert_eq!(found.numbers.to_f32_vec()?, expected, "{name}");
    }
    Ok(())
}

#[test]
fn more_neighbours_than_there_are_is_refused_with_a_sentence() {
    let error = |n: usize, k: usize, own| {
        let x = Tensor::<f32>::zeros(any_device(), [n, 2]);
        knn(&x, &x, k, own).unwrap_err().to_string()
    };
    let message = "knn: `k` has 5, expected from 1 to 4, with 4 points to choose from";
    assert_eq!(error(5, 5, Own::LeftOut), message);
    assert_eq!(error(4, 5, Own::Counted), message);
    assert!(error(4, 0, Own::Counted).starts_with("knn: `k` has 0, expected from 1 to 4"));
    let most = format!("knn: `k` has {}, expected from 1 to {MOST_NEIGHBOURS}", MOST_NEIGHBOURS + 1);
    assert!(error(300, MOST_NEIGHBOURS + 1, Own::Counted).starts_with(&most));
    let x = Tensor::<f32>::zeros(any_device(), [4, 2]);
    let other = Tensor::<f32>::zeros(any_device(), [4, 3]);
    assert!(knn(&x, &other, 1, Own::Counted).is_err());
}

/// What `eval` measures of neighbours on a device is what it measures here.
#[test]
fn measures_by_a_device_are_those_of_the_processor() -> Result<()> {
    let mut random = Random::new("measures");
    let mut rows = |n: usize| -> Vec<f32> { (0..n * 3).map(|_| random.normal() as f32).collect() };
    let (points, data) = (rows(90), rows(150));
    let here = compare(&points, &data, 3, 3, 1)?;
    for (name, device) in devices() {
        let search = Search::On(device);
        assert_eq!(search.nearest(&points, &data, 3)?, nearest(&points, &data, 3)?, "{name}");
        let there = compare_by(search, &points, &data, 3, 3, 1)?;
        let pairs = [(here.log_rk, there.log_rk), (here.nll_knn_data, there.nll_knn_data)];
        for (a, b) in pairs {
            assert!(
                (a.unwrap_or(f64::NAN) - b.unwrap_or(f64::NAN)).abs() < 1e-5,
                "{name}: {here:?} {there:?}"
            );
        }
        assert_eq!((here.nearest_share, here.coverage), (there.nearest_share, there.coverage), "{name}");
        assert!(search.kth_distances(&points, &data, 3, 151).is_err(), "{name}");
    }
    Ok(())
}
