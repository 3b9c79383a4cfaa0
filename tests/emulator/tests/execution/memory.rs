//! Loads, stores, spaces, and what is wrong with them.
