//! Stream-ordered allocation and memory pools.

use std::ffi::c_int;
use std::sync::Arc;

use crate::driver::abi::{Handle, In, Out, PoolProperties};
use crate::driver::capture;
use crate::driver::codes::{Code, Failure, Result};
use crate::driver::entry::entries;
use crate::driver::graph::GraphMemory;
use crate::driver::pool::{self, Pool, is_narrow};
use crate::driver::queue;
use crate::driver::session::initialised;
use crate::driver::state::State;
use crate::driver::work::Work;

use super::device::on_device;
use super::memory::allocate;
use super::stream::on_stream;

/// Finds a pool; here an unknown handle is error 1.
fn find(state: &mut State, pool: Handle) -> Result<&mut Pool> {
    state.pools.get_mut(pool).map_err(|failure: Failure| Code::INVALID_VALUE.because(failure.message))
}

/// Allocates in the order of a stream. The address is there at once and the memory too; using it before the stream comes to
/// it is not detected.
fn allocate_in_order(address: Out<u64>, bytes: usize, pool: Option<Handle>, stream: Handle) -> Result<()> {
    let (mut state, context, stream) = on_stream(stream)?;
    address.check("dptr")?;
    let pool = pool.unwrap_or(state.current_pool);
    find(&mut state, pool)?;
    if capture::takes(&mut state, context, stream)? {
        if bytes == 0 {
            return Err(Code::INVALID_VALUE.because("an allocation of 0 bytes"));
        }
        let memory = Arc::new(GraphMemory::new(state.engine()?, bytes as u64)?);
        let allocated = memory.address;
        capture::add(&mut state, stream, Work::GraphAlloc(memory))?;
        return address.set(allocated);
    }
    let (_state, allocated) = allocate(state, context, bytes, Some(pool))?;
    address.set(allocated)
}

entries! {
    /// Allocates in the order of a stream.
    fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: Handle) {
        allocate_in_order(address, bytes, None, stream)
    }

    /// Allocates from a pool in the order of a stream.
    fn cuMemAllocFromPoolAsync(address: Out<u64>, bytes: usize, pool: Handle, stream: Handle) {
        allocate_in_order(address, bytes, Some(pool), stream)
    }

    /// Frees in the order of a stream.
    fn cuMemFreeAsync(address: u64, stream: Handle) {
        let (mut state, context, handle) = on_stream(stream)?;
        if capture::takes(&mut state, context, handle)? {
            if !capture::owns(&state, handle, address)? {
                return Err(Code::INVALID_VALUE.because("a capture can free only what it has allocated, and once"));
            }
            return capture::add(&mut state, handle, Work::GraphFree(address)).map(|_| ());
        }
        pool::forget(&mut state, address)?;
        state.freeing.insert(address);
        queue::submit(state, context, stream, Work::Free(address)).map(|_| ())
    }

    /// Makes a pool.
    fn cuMemPoolCreate(pool: Out<Handle>, properties: In<PoolProperties>) {
        let mut state = initialised()?;
        pool.check("pool")?;
        let properties = properties.get()?;
        if properties.allocation_type != 1 || properties.location.kind != 1 || properties.location.id != 0 {
            return Err(Code::INVALID_VALUE.because("a pool of other memory than that of device 0"));
        }
        if properties.handle_types != 0 {
            return Err(Code::NOT_SUPPORTED.because("a pool that other processes can open"));
        }
        let handle = state.handle();
        state.pools.insert(handle, Pool::new(properties.maximum));
        pool.set(handle)
    }

    /// Destroys a pool; what it has given out lives on.
    fn cuMemPoolDestroy(pool: Handle) {
        let mut state = initialised()?;
        if pool == state.default_pool {
            return Err(Code::INVALID_VALUE.because("the default pool cannot be destroyed"));
        }
        find(&mut state, pool)?;
        state.pools.remove(pool)?;
        if state.current_pool == pool {
            state.current_pool = state.default_pool;
        }
        Ok(())
    }

    /// Returns an attribute of a pool.
    fn cuMemPoolGetAttribute(pool: Handle, attribute: u32, value: Out<u64>) {
        let mut state = initialised()?;
        let found = find(&mut state, pool)?.attribute(attribute);
        let found = found.ok_or_else(|| Code::INVALID_VALUE.because(format!("no pool attribute {attribute}")))?;
        match is_narrow(attribute) {
            true => value.cast::<u32>().set(found as u32),
            false => value.set(found),
        }
    }

    /// Sets an attribute of a pool.
    fn cuMemPoolSetAttribute(pool: Handle, attribute: u32, value: Out<u64>) {
        let mut state = initialised()?;
        let value = if is_narrow(attribute) { value.cast::<u32>().get()?.into() } else { value.get()? };
        find(&mut state, pool)?.set_attribute(attribute, value)
    }

    /// Gives back what a pool reserves above a number of bytes.
    fn cuMemPoolTrimTo(pool: Handle, keep: usize) {
        let mut state = initialised()?;
        find(&mut state, pool)?.trim(keep as u64);
        Ok(())
    }

    /// Returns the pool that cuMemAllocAsync takes from at first.
    fn cuDeviceGetDefaultMemPool(pool: Out<Handle>, device: c_int) {
        let state = on_device(device)?;
        pool.set(state.default_pool)
    }

    /// Returns the pool that cuMemAllocAsync takes from.
    fn cuDeviceGetMemPool(pool: Out<Handle>, device: c_int) {
        let state = on_device(device)?;
        pool.set(state.current_pool)
    }

    /// Sets the pool that cuMemAllocAsync takes from.
    fn cuDeviceSetMemPool(device: c_int, pool: Handle) {
        let mut state = on_device(device)?;
        find(&mut state, pool)?;
        state.current_pool = pool;
        Ok(())
    }
}
