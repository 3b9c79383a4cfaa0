//! Data sets from import to batch, and every way a file can be wrong.

mod command;
mod dataset;
mod hostile;
mod import;
mod support;
