//! Device memory: allocations, bounds, bytes never written.
