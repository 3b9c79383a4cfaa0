//! Latents on their way: a grid of snapshots, and an animation whose frames are what changed.

use std::io::BufReader;
use std::path::Path;

use flowprior::plot::*;

use super::{Picture, nll, reddish, samples, target};

const EXTENT: [f32; 4] = [-2.5, 2.5, -2.5, 2.5];

fn map() -> Vec<f32> {
    heat_grid(EXTENT, 40).iter().map(|y| nll(*y)).collect()
}

/// Latents that shrink from wide clouds to the modes in `count` moments.
fn passage(label: &str, count: u64) -> Passage {
    let moment = |i: u64| Moment {
        step: 250 * i,
        latents: samples(300, 4.0 / (1.0 + i as f64)),
        nll: 9.0 / (1.0 + i as f64),
    };
    Passage { label: label.to_owned(), moments: (0..count).map(moment).collect() }
}

/// All frames of an animation as a viewer shows them, one laid over the other, and how long each stays in milliseconds.
fn frames(path: &Path) -> Vec<(Vec<u8>, u16)> {
    let file = BufReader::new(std::fs::File::open(path).unwrap());
    let mut decoder = png::Decoder::new(file);
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().unwrap();
    let info = reader.info();
    let control = info.animation_control.expect("an animation");
    assert_eq!(control.num_plays, 0, "it goes on for ever");
    let mut shown = vec![0; 3 * (info.width * info.height) as usize];
    let mut frames = Vec::new();
    for i in 0..control.num_frames {
        let mut rgba = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut rgba).unwrap();
        let frame = reader.info().frame_control.unwrap();
        assert_eq!((frame.blend_op, frame.dispose_op), (png::BlendOp::Over, png::DisposeOp::None));
        for (shown, pixel) in shown.chunks_exact_mut(3).zip(rgba.chunks_exact(4)) {
            match pixel[3] {
                255 => shown.copy_from_slice(&pixel[..3]),
                alpha => assert!(alpha == 0 && i > 0, "frame {i} has alpha {alpha}"),
            }
        }
        frames.push((shown.clone(), frame.delay_num * (1000 / frame.delay_den)));
    }
    frames
}

#[test]
fn the_grid_has_a_block_of_rows_for_each_run() {
    let map = map();
    let plane = Plane { extent: EXTENT, side: 40, nll: &map };
    let path = target("snapshots.png");
    snapshot_grid(&path, "Five Gaussians", &plane, &[passage("one", 10), passage("other", 7)]).unwrap();
    let file = BufReader::new(std::fs::File::open(&path).unwrap());
    let mut decoder = png::Decoder::new(file);
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().unwrap();
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut rgb).unwrap();
    let picture = Picture { width, height, rgb };
    assert_eq!((width, height), (1677, 1473));
    picture.assert_white_border();
    assert!(picture.count(reddish) > 3000, "latents");
}

#[test]
fn an_animation_shows_each_moment_whole_and_stays_at_the_last() {
    let map = map();
    let plane = Plane { extent: EXTENT, side: 40, nll: &map };
    let draw = |name: &str, runs: &[Passage]| {
        snapshot_animation(target(name), "Five Gaussians", &plane, runs).unwrap();
        frames(&target(name))
    };
    // The second run is at its end after three moments.
    let found = draw("moving.png", &[passage("one", 5), passage("other", 3)]);
    assert_eq!(found.iter().map(|frame| frame.1).collect::<Vec<_>>(), [300, 300, 300, 300, 2500]);
    assert!(found.windows(2).all(|pair| pair[0].0 != pair[1].0), "every frame changes something");
    // The last frame by itself is the same picture, but for its choice of 255 colours.
    let last = |passage: Passage| Passage {
        moments: passage.moments[passage.moments.len() - 1..].to_vec(),
        ..passage
    };
    let alone = draw("still.png", &[last(passage("one", 5)), last(passage("other", 3))]);
    let far = found[4].0.iter().zip(&alone[0].0).filter(|(a, b)| a.abs_diff(**b) > 24).count();
    assert!(far * 1000 < found[4].0.len(), "{far} of {} values differ", found[4].0.len());
}

#[test]
fn what_cannot_be_drawn_is_named() {
    let map = map();
    let plane = Plane { extent: EXTENT, side: 40, nll: &map };
    let empty = Passage { label: "one".to_owned(), moments: Vec::new() };
    let text = |plane: &Plane, runs: &[Passage]| {
        snapshot_animation("figures/a.png", "title", plane, runs).unwrap_err().to_string()
    };
    assert!(text(&plane, &[empty]).contains("at least 1 of each run"));
    let short = Plane { nll: &map[1..], ..plane };
    assert!(
        text(&short, &[passage("one", 1)]).contains("1600 values"),
        "{}",
        text(&short, &[passage("one", 1)])
    );
    let unknown = vec![f32::NAN; 1600];
    let message = text(&Plane { nll: &unknown, ..plane }, &[passage("one", 1)]);
    assert!(message.contains("at least one finite value"), "{message}");
}
