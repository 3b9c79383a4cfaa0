//! Reads PTX text into a syntax tree.
