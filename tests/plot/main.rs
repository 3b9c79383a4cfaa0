//! Figures: written whole, framed by white, showing the data where it is; and bad input named.
//!
//! The figures stay in cargo's `target/tmp`, to be looked at.

mod images;
mod moving;

use std::path::{Path, PathBuf};

use flowprior::device::{Arch, Isa};
use flowprior::metrics::{pearson, spearman};
use flowprior::plot::*;
use flowprior::rng::{Draw, Stream};

fn target(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn normals(n: usize, sample: u64) -> Vec<f32> {
    let mut x = vec![0.0; n];
    let draw = Draw::new(3, Stream::Toy, 0);
    Isa::detect().run(
        #[inline(always)]
        |arch: Arch| draw.fill_normal(arch, &mut x, sample, 0),
    );
    x
}

/// The five-Gaussian toy in normalised units: centres, standard deviation.
fn mixture() -> (Vec<[f64; 2]>, f64) {
    let std = 4.59f64.sqrt();
    let mode = |k: usize| (std::f64::consts::TAU * k as f64 / 5.0).sin_cos();
    ((0..5).map(mode).map(|(s, c)| [3.0 * c / std, 3.0 * s / std]).collect(), 0.3 / std)
}

fn samples(n: usize, spread: f64) -> Vec<[f32; 2]> {
    let (modes, sigma) = mixture();
    let noise = normals(2 * n, 1);
    let point = |(i, z): (usize, &[f32])| {
        let at = |axis: usize| (modes[i % 5][axis] + spread * sigma * z[axis] as f64) as f32;
        [at(0), at(1)]
    };
    noise.chunks(2).enumerate().map(point).collect()
}

fn density(y: [f64; 2], modes: &[[f64; 2]], scale: f64, variance: f64) -> Vec<f64> {
    let square = |m: &[f64; 2]| (y[0] - scale * m[0]).powi(2) + (y[1] - scale * m[1]).powi(2);
    modes.iter().map(|m| -square(m) / (2.0 * variance)).collect()
}

fn nll(y: [f32; 2]) -> f32 {
    let (modes, sigma) = mixture();
    let logs = density(y.map(f64::from), &modes, 1.0, sigma * sigma);
    let top = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logs.iter().map(|l| (l - top).exp()).sum();
    (-(top + (sum / 5.0).ln()) + (std::f64::consts::TAU * sigma * sigma).ln()) as f32
}

/// The alignment loss at y with the exact velocity of the mixture, summed over the two dimensions.
fn alignment_loss(y: [f32; 2], noise: &[f32]) -> f32 {
    let (modes, sigma) = mixture();
    let y = y.map(f64::from);
    let draws = noise.chunks(2).enumerate().map(|(i, eps)| {
        let s = 0.02 + 0.96 * (i % 20) as f64 / 19.0;
        let eps = [eps[0] as f64, eps[1] as f64];
        let z = [(1.0 - s) * eps[0] + s * y[0], (1.0 - s) * eps[1] + s * y[1]];
        let variance = (1.0 - s).powi(2) + (s * sigma).powi(2);
        let logs = density(z, &modes, s, variance);
        let top = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logs.iter().map(|l| (l - top).exp()).collect();
        let total: f64 = weights.iter().sum();
        let pull = (s * sigma * sigma - (1.0 - s)) / variance;
        let velocity = |axis: usize| -> f64 {
            let of = |m: &[f64; 2]| m[axis] + pull * (z[axis] - s * m[axis]);
            modes.iter().zip(&weights).map(|(m, w)| w / total * of(m)).sum()
        };
        (0..2).map(|a| (velocity(a) - (y[a] - eps[a])).powi(2)).sum::<f64>()
    });
    (draws.sum::<f64>() / (noise.len() / 2) as f64) as f32
}

struct Toy {
    extent: [f32; 4],
    nll: Vec<f32>,
    loss: Vec<f32>,
    data: Vec<[f32; 2]>,
    latents: Vec<[f32; 2]>,
    steps: Vec<f64>,
    loss_curve: Vec<f64>,
    nll_steps: Vec<f64>,
    nll_curve: Vec<f64>,
}

impl Toy {
    fn new(points: usize) -> Self {
        let (data, latents) = (samples(points, 1.0), samples(points / 5, 0.8));
        let extent = padded_extent(&[&data, &latents]);
        let grid = heat_grid(extent, 50);
        let noise = normals(400, 9);
        let steps: Vec<f64> = (1..=5000).map(f64::from).collect();
        let jitter = normals(steps.len(), 4);
        let curve = |(s, z): (&f64, &f32)| 2.5 + 2.4 / (1.0 + s / 60.0) + 0.12 * *z as f64;
        let nll_steps: Vec<f64> = std::iter::once(1.0).chain((1..=20).map(|i| 250.0 * i as f64)).collect();
        Self {
            extent,
            nll: grid.iter().map(|y| nll(*y)).collect(),
            loss: grid.iter().map(|y| alignment_loss(*y, &noise)).collect(),
            loss_curve: steps.iter().zip(&jitter).map(curve).collect(),
            nll_curve: nll_steps.iter().map(|s| 0.2 + 19.0 / (1.0 + s / 150.0)).collect(),
            data,
            latents,
            steps,
            nll_steps,
        }
    }

    fn panels(&self) -> ToyPanels<'_> {
        ToyPanels {
            title: "Five Gaussians: 1,000 latents aligned to a flow prior",
            extent: self.extent,
            side: 50,
            nll: &self.nll,
            loss: &self.loss,
            loss_title: "Alignment loss",
            loss_label: "alignment loss",
            data: &self.data,
            latents: &self.latents,
            steps: &self.steps,
            loss_curve: &self.loss_curve,
            nll_steps: &self.nll_steps,
            nll_curve: &self.nll_curve,
        }
    }
}

struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    fn read(path: &Path) -> Self {
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let (width, height) = (reader.info().width as usize, reader.info().height as usize);
        let mut rgb = vec![0; width * height * 3];
        reader.next_frame(&mut rgb).unwrap();
        Self { width, height, rgb }
    }

    fn at(&self, x: usize, y: usize) -> [u8; 3] {
        let i = 3 * (y * self.width + x);
        [self.rgb[i], self.rgb[i + 1], self.rgb[i + 2]]
    }

    fn count(&self, test: impl Fn([u8; 3]) -> bool) -> usize {
        self.rgb.chunks(3).filter(|p| test([p[0], p[1], p[2]])).count()
    }

    /// Nothing touches the edge of the page: no label is cut off.
    #[track_caller]
    fn assert_white_border(&self) {
        for x in 0..self.width {
            assert!(self.at(x, 3) == [255; 3] && self.at(x, self.height - 4) == [255; 3], "column {x}");
        }
        for y in 0..self.height {
            assert!(self.at(3, y) == [255; 3] && self.at(self.width - 4, y) == [255; 3], "row {y}");
        }
    }
}

fn reddish([r, g, b]: [u8; 3]) -> bool {
    r > 180 && g < 90 && b < 90
}

#[test]
fn toy_panels_show_both_maps_and_the_latents() {
    let toy = Toy::new(5000);
    let path = target("toy_panels.png");
    toy_panels(&path, &toy.panels()).unwrap();
    let picture = Picture::read(&path);
    assert_eq!((picture.width, picture.height), (2660, 880));
    picture.assert_white_border();
    assert!(picture.count(reddish) > 2000, "latents");
    // The darkest colour of the map: far from all data, in both maps.
    let dark = |[r, g, b]: [u8; 3]| r < 80 && g < 40 && (60..130).contains(&b);
    assert!(picture.count(dark) > 20_000, "far regions");
}

#[test]
fn the_same_figure_has_the_same_bytes_and_leaves_no_part_behind() {
    let toy = Toy::new(50);
    let folder = tempfile::tempdir().unwrap();
    let bytes = |name: &str| {
        toy_panels(folder.path().join(name), &toy.panels()).unwrap();
        std::fs::read(folder.path().join(name)).unwrap()
    };
    assert!(bytes("a.png") == bytes("b.png"));
    assert!(bytes("a.png") == bytes("b.png"), "replacing a file");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn heat_maps_put_the_first_row_at_the_bottom() {
    // The NLL falls with y: the map's light end must be at the top.
    let toy = Toy::new(10);
    let rows: Vec<f32> = (0..2500).map(|i| -((i / 50) as f32)).collect();
    let empty: &[[f32; 2]] = &[];
    let path = target("toy_upside.png");
    toy_panels(&path, &ToyPanels { nll: &rows, data: empty, latents: empty, ..toy.panels() }).unwrap();
    let picture = Picture::read(&path);
    let (top, bottom) = (picture.at(400, 240), picture.at(400, 700));
    assert!(top[0] > 150 && top[1] > 180, "top {top:?} should be yellow");
    assert!(bottom[1] < 80, "bottom {bottom:?} should be dark");
}

#[test]
fn cells_around_a_node_without_a_value_are_grey() {
    let toy = Toy::new(500);
    let extent = [-4.0, 4.0, -1.6, 1.6];
    let path = target("toy_wide.png");
    let grey_pixels = |values: &[f32]| {
        toy_panels(&path, &ToyPanels { extent, nll: values, ..toy.panels() }).unwrap();
        let picture = Picture::read(&path);
        picture.assert_white_border();
        picture.count(|p| p == [0xc8; 3])
    };
    let mut values: Vec<f32> = heat_grid(extent, 50).iter().map(|y| nll(*y)).collect();
    let whole = grey_pixels(&values);
    values[25 * 50 + 25] = f32::INFINITY;
    values[10 * 50 + 40] = f32::NAN;
    // Two nodes grey the four cells around each: 8 of 49² cells of a map of about 600 × 600 pixels, 150 a cell.
    let cells = grey_pixels(&values) - whole;
    assert!((1000..1400).contains(&cells), "{cells} grey pixels");
}

#[test]
fn heat_grid_and_extent_agree_with_the_figure() {
    let extent = padded_extent(&[&[[0.0, 1.0], [10.0, 2.0]], &[[5.0, 1.5]]]);
    let expected = [-2.0, 12.0, 0.8, 2.2];
    assert!(extent.iter().zip(expected).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6), "{extent:?}");
    let grid = heat_grid([0.0, 1.0, 10.0, 30.0], 3);
    assert_eq!(grid.len(), 9);
    assert_eq!((grid[0], grid[1], grid[3], grid[8]), ([0.0, 10.0], [0.5, 10.0], [0.0, 20.0], [1.0, 30.0]));
    assert_eq!(padded_extent(&[]), [0.0, 1.0, 0.0, 1.0]);
}

#[test]
fn curves_draw_two_axes_and_logs() {
    let toy = Toy::new(10);
    let log_rk: Vec<f64> = toy.nll_steps.iter().map(|s| 1.1 - 0.35 * (1.0 + s / 300.0).ln()).collect();
    let left = [Series { label: "alignment loss", x: &toy.steps, y: &toy.loss_curve, smooth: 17 }];
    let right = [Series { label: "mean log rₖ", x: &toy.nll_steps, y: &log_rk, smooth: 0 }];
    let path = target("curves_two_axes.png");
    let figure = Curves {
        title: "Digit autoencoder: latents approach the token embeddings",
        x_label: "step",
        x_scale: Scale::Log,
        left: ValueAxis { label: "alignment loss", scale: Scale::Linear, series: &left },
        right: ValueAxis { label: "mean log r₅ to 30,000 features", scale: Scale::Linear, series: &right },
    };
    curves(&path, &figure).unwrap();
    let picture = Picture::read(&path);
    assert_eq!((picture.width, picture.height), (1520, 940));
    picture.assert_white_border();
    assert!(picture.count(|[r, g, b]| r < 60 && g < 140 && b > 150) > 2000, "the blue curve");
    assert!(
        picture.count(|[r, g, b]| r > 180 && (60..140).contains(&g) && b < 60) > 2000,
        "the orange curve"
    );
}

#[test]
fn curves_draw_several_on_a_log_axis() {
    let steps: Vec<f64> = (0..100_000).map(f64::from).collect();
    let jitter = normals(steps.len(), 8);
    let make = |rate: f64| -> Vec<f64> {
        let of = |(s, z): (&f64, &f32)| (0.02 + (-s / rate).exp()) * (1.0 + 0.08 * *z as f64);
        steps.iter().zip(&jitter).map(of).collect()
    };
    let (mut a, b, c) = (make(20_000.0), make(9000.0), make(3000.0));
    a[50_000..52_000].fill(f64::NAN);
    let series = [
        Series { label: "training loss, learning rate 1e-4", x: &steps, y: &a, smooth: 501 },
        Series { label: "learning rate 2e-4", x: &steps, y: &b, smooth: 501 },
        Series { label: "learning rate 4e-4", x: &steps, y: &c, smooth: 501 },
        Series { label: "floor", x: &[0.0, 99_999.0], y: &[0.02, 0.02], smooth: 0 },
    ];
    let left = ValueAxis { label: "loss − floor", scale: Scale::Log, series: &series };
    let path = target("curves_log.png");
    let figure = Curves { title: "Stage 1", x_label: "step", left, ..Curves::default() };
    curves(&path, &figure).unwrap();
    Picture::read(&path).assert_white_border();
}

#[test]
fn a_single_flat_curve_is_still_a_figure() {
    let left = [Series { label: "loss", x: &[1.0, 2.0, 3.0], y: &[2.0, 2.0, 2.0], smooth: 0 }];
    let left = ValueAxis { label: "loss", series: &left, ..ValueAxis::default() };
    let path = target("curves_flat.png");
    curves(&path, &Curves { title: "Flat", x_label: "step", left, ..Curves::default() }).unwrap();
    Picture::read(&path).assert_white_border();
}

#[test]
fn scatter_xy_colours_a_trajectory_by_step() {
    let steps: Vec<f64> = (1..=60).map(|i| 1.12f64.powi(i).round()).collect();
    let z = normals(120, 2);
    let loss: Vec<f64> =
        steps.iter().zip(&z).map(|(s, z)| 1.6 / (1.0 + s / 80.0) + 1.2 + 0.03 * *z as f64).collect();
    let log_rk: Vec<f64> = loss.iter().zip(&z[60..]).map(|(l, z)| 0.7 * l - 0.9 + 0.03 * *z as f64).collect();
    let note = format!(
        "Pearson {:.3}, Spearman {:.3}",
        pearson(&loss, &log_rk).unwrap(),
        spearman(&loss, &log_rk).unwrap()
    );
    let path = target("scatter_xy.png");
    let figure = Relation {
        title: "Alignment loss follows the distance to the features",
        note: &note,
        x_label: "alignment loss",
        y_label: "mean log r₅",
        x: &loss,
        y: &log_rk,
        colour: &steps,
        colour_label: "step",
        colour_scale: Scale::Log,
        join: Join::Path,
        ..Relation::default()
    };
    scatter_xy(&path, &figure).unwrap();
    let picture = Picture::read(&path);
    assert_eq!((picture.width, picture.height), (1280, 1000));
    picture.assert_white_border();
}

#[test]
fn scatter_xy_shows_a_crowd_of_pixels() {
    let toy = Toy::new(5000);
    let (x, y): (Vec<f64>, Vec<f64>) =
        toy.nll.iter().zip(&toy.loss).map(|(a, b)| (*a as f64, *b as f64)).unzip();
    let note = format!("Spearman {:.3} over 2,500 grid points", spearman(&x, &y).unwrap());
    let path = target("scatter_crowd.png");
    let figure = Relation {
        title: "Loss landscape against likelihood",
        note: &note,
        x_label: "−log p(y)",
        y_label: "alignment loss",
        x: &x,
        y: &y,
        ..Relation::default()
    };
    scatter_xy(&path, &figure).unwrap();
    Picture::read(&path).assert_white_border();
}

#[test]
fn scatter_2d_overlays_groups_or_sets_them_side_by_side() {
    let (data, model) = (samples(3000, 1.0), samples(1000, 1.3));
    let groups =
        [Group { label: "data", points: &data }, Group { label: "samples, 50 Heun steps", points: &model }];
    for (name, layout, width) in
        [("scatter_overlay.png", Layout::Overlay, 1080), ("scatter_side.png", Layout::SideBySide, 1640)]
    {
        scatter_2d(target(name), "Five Gaussians", &groups, layout).unwrap();
        let picture = Picture::read(&target(name));
        assert_eq!(picture.width, width);
        picture.assert_white_border();
    }
}

#[test]
fn moving_average_cuts_its_window_at_the_ends_and_skips_gaps() {
    assert_eq!(moving_average(&[1.0, 2.0, 6.0, 3.0], 3), [1.5, 3.0, 11.0 / 3.0, 4.5]);
    assert_eq!(moving_average(&[1.0, 2.0, 6.0], 2), [1.0, 1.5, 4.0]);
    assert_eq!(moving_average(&[1.0, f64::NAN, 3.0], 3), [1.0, 2.0, 3.0]);
    assert_eq!(moving_average(&[1.0, 5.0], 1), [1.0, 5.0]);
    assert_eq!(moving_average(&[1.0, 5.0], 0), [1.0, 5.0]);
    assert!(moving_average(&[f64::NAN], 3)[0].is_nan() && moving_average(&[], 17).is_empty());
}

#[test]
fn messages_name_the_file_the_list_and_its_length() {
    let toy = Toy::new(10);
    let text = |figure: ToyPanels| toy_panels("figures/toy.png", &figure).unwrap_err().to_string();
    let short = ToyPanels { nll: &toy.nll[1..], ..toy.panels() };
    assert_eq!(text(short), "figures/toy.png: nll: expected 2500 values, found 2499");
    let short = ToyPanels { loss_curve: &toy.loss_curve[..7], ..toy.panels() };
    assert_eq!(text(short), "figures/toy.png: loss_curve: expected 5000 values, found 7");
    let flat = ToyPanels { extent: [1.0, 1.0, 0.0, 1.0], ..toy.panels() };
    assert_eq!(text(flat), "figures/toy.png: extent: expected ascending finite limits, found 1 to 1, 0 to 1");
    let nan = vec![f32::NAN; 2500];
    assert!(
        text(ToyPanels { loss: &nan, ..toy.panels() })
            .contains("(b) Alignment loss: expected at least one finite")
    );
    let nothing = curves("c.png", &Curves::default()).unwrap_err().to_string();
    assert_eq!(nothing, "c.png: curves: expected at least one x to show, found none");
    let nothing = scatter_2d("s.png", "", &[], Layout::Overlay).unwrap_err().to_string();
    assert_eq!(nothing, "s.png: points: expected at least one finite point, found none");
    let relation = Relation { x: &[1.0], y: &[1.0, 2.0], ..Relation::default() };
    assert_eq!(
        scatter_xy("s.png", &relation).unwrap_err().to_string(),
        "s.png: y: expected 1 values, found 2"
    );
    let image: &[f32] = &[0.0; 5];
    let grid = ImageGrid {
        title: "",
        images: &[image],
        channels: 1,
        width: 2,
        height: 2,
        columns: 1,
        captions: &[],
        range: (0.0, 1.0),
    };
    assert_eq!(
        image_grid("i.png", &grid).unwrap_err().to_string(),
        "i.png: image 0: expected 4 values, found 5"
    );
    let black = ImageGrid { images: &[&image[..4]], range: (1.0, 1.0), ..grid };
    assert!(
        image_grid("i.png", &black).unwrap_err().to_string().contains("range: expected black below white")
    );
    assert!(!Path::new("i.png").exists());
}

#[test]
fn a_folder_that_is_not_there_is_an_io_error_with_the_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing").join("a.png");
    let left = [Series { label: "", x: &[1.0, 2.0], y: &[1.0, 3.0], smooth: 0 }];
    let left = ValueAxis { series: &left, ..ValueAxis::default() };
    let error = curves(&path, &Curves { left, ..Curves::default() }).unwrap_err();
    assert!(matches!(error, flowprior::Error::Io { .. }));
    assert!(
        error.to_string().contains("missing/a.png") && error.to_string().contains("cannot write"),
        "{error}"
    );
}
