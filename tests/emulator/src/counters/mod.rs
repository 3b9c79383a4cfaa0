//! Counts what a launch does.
