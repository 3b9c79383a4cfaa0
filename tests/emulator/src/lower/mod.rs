//! Turns the syntax tree into typed instructions.
