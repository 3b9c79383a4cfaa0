//! The presets: configurations by name, carried in the program. A preset is one or more TOML texts, laid over each other.

use crate::error::{Error, Result};

const TOY: &str = include_str!("../../presets/toy.toml");
const REFERENCE: &str = include_str!("../../presets/reference.toml");

const PRESETS: &[(&str, &[&str])] = &[
    ("toy-gaussians", &[TOY, include_str!("../../presets/toy-gaussians.toml")]),
    ("toy-grid", &[TOY, include_str!("../../presets/toy-grid.toml")]),
    ("toy-moons", &[TOY, include_str!("../../presets/toy-moons.toml")]),
    ("toy-rings", &[TOY, include_str!("../../presets/toy-rings.toml")]),
    ("toy-spiral", &[TOY, include_str!("../../presets/toy-spiral.toml")]),
    ("toy-swissroll", &[TOY, include_str!("../../presets/toy-swissroll.toml")]),
    ("reference-prior", &[REFERENCE, include_str!("../../presets/reference-prior.toml")]),
    ("reference-align", &[REFERENCE, include_str!("../../presets/reference-align.toml")]),
    ("reference-dit", &[include_str!("../../presets/reference-dit.toml")]),
    ("fashion", &[include_str!("../../presets/fashion.toml")]),
    ("demo", &[include_str!("../../presets/demo.toml")]),
];

/// Lists the names of all presets.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// Returns the TOML texts of a preset, in the order they are laid over each other.
///
/// # Errors
/// `Error::Usage` for an unknown name, with the nearest one.
pub fn texts(name: &str) -> Result<&'static [&'static str]> {
    if let Some((_, texts)) = PRESETS.iter().find(|(known, _)| *known == name) {
        return Ok(texts);
    }
    let nearest = names().min_by_key(|known| strsim::damerau_levenshtein(name, known)).unwrap_or_default();
    let all: Vec<_> = names().collect();
    Err(Error::Usage(format!("unknown preset `{name}`; did you mean `{nearest}`? All: {}", all.join(", "))))
}
