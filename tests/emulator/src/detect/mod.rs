//! Finds races by happens-before.
