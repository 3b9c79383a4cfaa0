//! Initialisation and devices.

use std::ffi::c_int;
use std::sync::Arc;

use crate::driver::abi::{Handle, Out, Text, Uuid, write_text};
use crate::driver::attributes;
use crate::driver::codes::{Code, Result};
use crate::driver::engine::Engine;
use crate::driver::entry::entries;
use crate::driver::journal;
use crate::driver::pool::Pool;
use crate::driver::session::{Guard, check_sticky, initialised, lock};
use crate::driver::state::State;

use super::context;

/// Where the one device says that it is.
const BUS: &str = "0000:01:00.0";

/// Locks the state for a call about a device.
pub(super) fn on_device(device: c_int) -> Result<Guard> {
    let state = initialised()?;
    match device {
        0 => Ok(state),
        _ => Err(Code::INVALID_DEVICE.because(format!("device {device}: there is only device 0"))),
    }
}

fn start(state: &mut State) -> Result<()> {
    if state.settings.memory == 0 {
        return Err(Code::NO_DEVICE.because("a CUDA_EMULATOR_* variable is wrong"));
    }
    journal::open(&state.settings.report, &state.settings.counters)
        .map_err(|error| Code::OPERATING_SYSTEM.because(format!("a report or counters file: {error}")))?;
    state.engine = Some(Arc::new(Engine::new(&state.settings)));
    state.seed(state.settings.seed);
    let pool = state.handle();
    state.pools.insert(pool, Pool::new(0));
    (state.default_pool, state.current_pool) = (pool, pool);
    Ok(())
}

entries! {
    /// Starts the driver.
    fn cuInit(flags: u32) {
        if flags != 0 {
            return Err(Code::INVALID_VALUE.because(format!("flags {flags} must be 0")));
        }
        let mut state = lock();
        match state.engine {
            Some(_) => Ok(()),
            None => start(&mut state),
        }
    }

    /// Returns the CUDA version of the driver.
    fn cuDriverGetVersion(version: Out<c_int>) {
        version.set(lock().settings.driver as c_int)
    }

    /// Returns a device.
    fn cuDeviceGet(device: Out<c_int>, ordinal: c_int) {
        drop(on_device(ordinal)?);
        device.set(0)
    }

    /// Returns the number of devices.
    fn cuDeviceGetCount(count: Out<c_int>) {
        drop(initialised()?);
        count.set(1)
    }

    /// Returns the name of a device.
    fn cuDeviceGetName(name: Out<u8>, size: c_int, device: c_int) {
        let state = on_device(device)?;
        name.check("name")?;
        let size = usize::try_from(size).ok().filter(|size| *size > 0);
        let size = size.ok_or_else(|| Code::INVALID_VALUE.because("the size of the buffer is not positive"))?;
        write_text(name, size, &state.settings.device.name());
        Ok(())
    }

    /// Returns the identity of a device.
    fn cuDeviceGetUuid(uuid: Out<Uuid>, device: c_int) {
        drop(on_device(device)?);
        uuid.set(*b"cuda-emulator-00")
    }

    /// Returns the identity of a device.
    fn cuDeviceGetUuid_v2(uuid: Out<Uuid>, device: c_int) {
        drop(on_device(device)?);
        uuid.set(*b"cuda-emulator-00")
    }

    /// Returns the memory of a device.
    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: c_int) {
        let state = on_device(device)?;
        bytes.set(state.settings.memory as usize)
    }

    /// Returns an attribute of a device.
    fn cuDeviceGetAttribute(value: Out<c_int>, attribute: u32, device: c_int) {
        let state = on_device(device)?;
        let found = attributes::attribute(state.settings.device, attribute);
        value.set(found.ok_or_else(|| Code::INVALID_VALUE.because(format!("no device attribute {attribute}")))?)
    }

    /// Returns the compute capability of a device.
    fn cuDeviceComputeCapability(major: Out<c_int>, minor: Out<c_int>, device: c_int) {
        let state = on_device(device)?;
        let capability = state.settings.device.capability;
        major.set(capability.0 as c_int)?;
        minor.set(capability.1 as c_int)
    }

    /// Returns the bus address of a device.
    fn cuDeviceGetPCIBusId(text: Out<u8>, size: c_int, device: c_int) {
        drop(on_device(device)?);
        text.check("pciBusId")?;
        match usize::try_from(size) {
            Ok(size) if size > BUS.len() => {
                write_text(text, size, BUS);
                Ok(())
            }
            _ => Err(Code::INVALID_VALUE.because(format!("the buffer of {size} bytes is too small"))),
        }
    }

    /// Finds a device by its bus address.
    fn cuDeviceGetByPCIBusId(device: Out<c_int>, text: Text) {
        drop(initialised()?);
        match text.get()? == BUS {
            true => device.set(0),
            false => Err(Code::INVALID_DEVICE.because(format!("no device at that address; there is one at {BUS}"))),
        }
    }

    /// Says that no device can reach another: there is only one.
    fn cuDeviceCanAccessPeer(can: Out<c_int>, device: c_int, peer: c_int) {
        drop(on_device(device)?);
        drop(on_device(peer)?);
        can.set(0)
    }

    /// Retains the primary context.
    fn cuDevicePrimaryCtxRetain(context: Out<Handle>, device: c_int) {
        let mut state = on_device(device)?;
        context.check("pctx")?;
        check_sticky(&state)?;
        let handle = match state.primary.context {
            Some(handle) => handle,
            None => {
                let flags = state.primary.flags;
                context::create(&mut state, flags)
            }
        };
        state.primary.context = Some(handle);
        state.primary.count += 1;
        context.set(handle)
    }

    /// Releases the primary context; the last release destroys what it holds.
    fn cuDevicePrimaryCtxRelease_v2(device: c_int) {
        let mut state = on_device(device)?;
        let Some(handle) = state.primary.context else {
            return Err(Code::INVALID_CONTEXT.because("the primary context is not active"));
        };
        state.primary.count -= 1;
        if state.primary.count > 0 {
            return Ok(());
        }
        state.primary.context = None;
        context::destroy(state, handle)
    }

    /// Destroys what the primary context holds, retained or not.
    fn cuDevicePrimaryCtxReset_v2(device: c_int) {
        let mut state = on_device(device)?;
        let Some(handle) = state.primary.context.take() else { return Ok(()) };
        state.primary.count = 0;
        context::destroy(state, handle)
    }

    /// Returns the flags of the primary context, and whether it is active.
    fn cuDevicePrimaryCtxGetState(device: c_int, flags: Out<u32>, active: Out<c_int>) {
        let state = on_device(device)?;
        flags.set(state.primary.flags)?;
        active.set(state.primary.context.is_some().into())
    }

    /// Sets the flags of the primary context.
    fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, flags: u32) {
        let mut state = on_device(device)?;
        context::check_flags(flags)?;
        state.primary.flags = flags;
        if let Some(handle) = state.primary.context {
            state.contexts.get_mut(handle)?.flags = flags;
        }
        Ok(())
    }
}
