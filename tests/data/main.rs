//! Data sets from import to batch, and every way a file can be wrong.

#[path = "../support/emulator.rs"]
mod emulator;

mod command;
mod dataset;
mod hostile;
mod images;
mod import;
mod support;
