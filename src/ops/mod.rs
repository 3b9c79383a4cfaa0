//! (being written)

pub mod linear;
