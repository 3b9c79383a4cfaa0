//! What the tests of whole kernels share: numbers in the formats of the device, cases with a reference for every output, and
//! the run of a case under given settings.

#![allow(dead_code)] // each test uses a part

pub mod case;
pub mod driver;
pub mod numbers;
pub mod philox;
pub mod settings;
