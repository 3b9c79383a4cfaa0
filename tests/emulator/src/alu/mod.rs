//! Arithmetic: one function of 32 lanes for each opcode form.
