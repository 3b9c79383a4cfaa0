//! Micro-tests of `alu`: each legal form against a scalar model written from the PTX ISA, on edge values crossed pairwise
//! and on random ones, with full and partial masks; and each illegal form refused.
//!
//! The models share nothing with the code under test: integers are computed in 128 bits or bit by bit, floats by bisection
//! over the result's format against exact fixed-point numbers (see `exact`).

mod approximate;
mod bits;
mod compare;
mod convert;
mod exact;
mod floats;
mod harness;
mod integer;
mod legal;
mod moves;
