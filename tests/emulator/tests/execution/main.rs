//! Kernels from PTX text, run and compared with what the ISA says: control flow, synchronisation, memory, matrices.

mod harness;

mod asynchronous;
mod atomics;
mod collective;
mod control;
mod matrix;
mod memory;
