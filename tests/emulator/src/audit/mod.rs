//! What the compiler made of a kernel, against budgets.
