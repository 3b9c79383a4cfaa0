//! Grids of images: crisp squares, places left free, rows of classes in colour.

use super::*;

/// Ten ramps and rings of 8 × 8, like small digits.
fn tiles() -> Vec<Vec<f32>> {
    let pixel = |i: usize, x: i32, y: i32| {
        let r = (((x - 4).pow(2) + (y - 4).pow(2)) as f32).sqrt();
        (1.0 - (r - 1.0 - 0.2 * i as f32).abs() / 1.5).max(0.0)
    };
    (0..30).map(|i| (0..64).map(|p| pixel(i % 10, p % 8, p / 8)).collect()).collect()
}

#[test]
fn image_grid_draws_crisp_squares_where_they_belong() {
    let mut tiles = tiles();
    tiles[0] = (0..64).map(|p| ((p % 8 + p / 8) % 2) as f32).collect(); // a chess board
    let images: Vec<&[f32]> = tiles.iter().map(Vec::as_slice).collect();
    let path = target("image_grid.png");
    let figure = ImageGrid {
        title: "Digits: originals, reconstructions, decoded prior samples",
        images: &images,
        channels: 1,
        width: 8,
        height: 8,
        columns: 10,
        captions: &["original", "reconstruction", "decoded sample"],
        range: (0.0, 1.0),
    };
    image_grid(&path, &figure).unwrap();
    let picture = Picture::read(&path);
    picture.assert_white_border();
    // 7 points a pixel: 14 × 14 squares of pure black and white. Find the board's top left corner from its outline.
    let board: Vec<(usize, usize)> = (0..picture.height)
        .flat_map(|y| (0..picture.width).map(move |x| (x, y)))
        .filter(|(x, y)| {
            *x + 14 < picture.width && picture.at(*x, *y) == [0; 3] && picture.at(x + 12, *y) == [0; 3]
        })
        .filter(|(x, y)| picture.at(x + 20, *y) == [255; 3] && picture.at(x + 34, *y) == [0; 3])
        .collect();
    assert!(board.len() > 14, "alternating squares of 14 pixels");
}

#[test]
fn a_short_last_row_and_no_captions_are_fine() {
    let tiles = tiles();
    let images: Vec<&[f32]> = tiles[..7].iter().map(Vec::as_slice).collect();
    let path = target("image_grid_short.png");
    let figure = ImageGrid {
        title: "",
        images: &images,
        channels: 1,
        width: 16,
        height: 4,
        columns: 4,
        captions: &[],
        range: (0.0, 1.0),
    };
    image_grid(&path, &figure).unwrap();
    Picture::read(&path).assert_white_border();
}

#[test]
fn a_row_of_the_grid_shows_each_class_in_colour() {
    let (red, blue) = ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0]);
    let flat = |colour: [f32; 3]| colour.iter().flat_map(|c| vec![*c; 16]).collect::<Vec<f32>>();
    let images = [red, blue, red, red].map(flat).concat();
    let names = ["coat", "bag"].map(str::to_owned);
    let path = target("class_grid.png");
    let figure = ClassGrid {
        title: "Samples",
        images: &images,
        shape: [3, 4, 4],
        labels: &[0, 7, 0, 0],
        names: &names,
        columns: 2,
        range: (0.0, 1.0),
    };
    class_grid(&path, &figure).unwrap();
    let picture = Picture::read(&path);
    picture.assert_white_border();
    // Two images of class 0 (the third is left out), one of class 7 below the first, and nothing beside it.
    let pixels = |colour: [u8; 3]| {
        let all = (0..picture.height).flat_map(|y| (0..picture.width).map(move |x| (x, y)));
        all.filter(|(x, y)| picture.at(*x, *y) == colour).count()
    };
    let (red, blue) = (pixels([255, 0, 0]), pixels([0, 0, 255]));
    assert!(blue > 1000 && red.abs_diff(2 * blue) < red / 20, "{red} red, {blue} blue");
    let message = class_grid("c.png", &ClassGrid { labels: &[0], ..figure }).unwrap_err().to_string();
    assert_eq!(message, "c.png: labels: expected 1 images, found 4");
    let message = class_grid("c.png", &ClassGrid { shape: [2, 4, 6], ..figure }).unwrap_err().to_string();
    assert_eq!(message, "c.png: channels: expected 1 (grey) or 3 (red, green, blue), found 2");
}
