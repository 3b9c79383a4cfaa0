//! The C functions. Their rules are those of the CUDA driver API reference; each file is one of its chapters.

pub mod context;
pub mod copy;
pub mod device;
pub mod event;
pub mod fill;
pub mod graph;
pub mod launch;
pub mod lookup;
pub mod memory;
pub mod module;
pub mod occupancy;
pub mod option;
pub mod pool;
pub mod refused;
pub mod stream;

/// Lists all C functions: name and address.
pub(crate) fn symbols() -> Vec<(&'static str, usize)> {
    let chapters = [
        context::symbols(),
        copy::symbols(),
        device::symbols(),
        event::symbols(),
        fill::symbols(),
        graph::symbols(),
        launch::symbols(),
        lookup::symbols(),
        memory::symbols(),
        module::symbols(),
        occupancy::symbols(),
        option::symbols(),
        pool::symbols(),
        refused::symbols(),
        stream::symbols(),
    ];
    chapters.concat()
}
