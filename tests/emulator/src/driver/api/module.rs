//! Modules, libraries, functions and variables.

use std::ffi::c_int;

use crate::driver::abi::{Handle, In, Out, Text, write_text};
use crate::driver::codes::{Code, Failure, Result};
use crate::driver::entry::entries;
use crate::driver::module::{self, Function};
use crate::driver::session::{Guard, in_context};
use crate::driver::state::State;
use crate::driver::{capture, queue};

/// Options of the JIT compiler that are looked at: logs, and the size of each, which is also a result.
const INFO_LOG: u32 = 3;
const INFO_SIZE: u32 = 4;
const ERROR_LOG: u32 = 5;
const ERROR_SIZE: u32 = 6;
/// Wall time, a result.
const WALL_TIME: u32 = 2;
/// The first number that is no option.
const OPTIONS: u32 = 35;

/// The logs that a program wants.
#[derive(Default)]
struct Logs {
    info: (u64, usize),
    error: (u64, usize),
}

impl Logs {
    /// Reads the options; an option is its value's bits, not a pointer to it.
    fn read(count: u32, options: In<u32>, values: In<u64>) -> Result<Self> {
        let mut logs = Logs::default();
        for i in 0..count as usize {
            let (option, value) = (options.get_at(i)?, values.get_at(i)?);
            match option {
                INFO_LOG => logs.info.0 = value,
                INFO_SIZE => logs.info.1 = value as u32 as usize,
                ERROR_LOG => logs.error.0 = value,
                ERROR_SIZE => logs.error.1 = value as u32 as usize,
                OPTIONS.. => {
                    return Err(Code::INVALID_VALUE.because(format!("no option {option} of the compiler")));
                }
                _ => {}
            }
        }
        Ok(logs)
    }

    /// Writes the log of errors and the sizes that were used.
    fn write(&self, message: &str, count: u32, options: In<u32>, values: Out<u64>) -> Result<()> {
        write_text(Out::at(self.info.0), self.info.1, "");
        write_text(Out::at(self.error.0), self.error.1, message);
        for i in 0..count as usize {
            match options.get_at(i)? {
                INFO_SIZE => values.set_at(i, 0),
                ERROR_SIZE => values.set_at(i, message.len().min(self.error.1.saturating_sub(1)) as u64),
                WALL_TIME => values.set_at(i, 0),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Locks the state for loading: not while a capture runs.
fn to_load() -> Result<(Guard, u64)> {
    let (mut state, context) = in_context()?;
    capture::check_unsafe(&mut state)?;
    Ok((state, context))
}

fn load(place: Out<Handle>, image: u64, library: bool, jit: (u32, In<u32>, Out<u64>)) -> Result<()> {
    let (mut state, context) = to_load()?;
    place.check("the place for the handle")?;
    let (count, options, values) = jit;
    let logs = Logs::read(count, options, values.as_input())?;
    let loaded = module::load(&mut state, context, image, library);
    let message = loaded.as_ref().err().map_or("", |failure| failure.message.as_str());
    logs.write(message, count, options, values)?;
    place.set(loaded?)
}

fn no_options() -> (u32, In<u32>, Out<u64>) {
    (0, In::at(0), Out::nothing())
}

fn load_file(place: Out<Handle>, path: Text, library: bool) -> Result<()> {
    let (mut state, context) = to_load()?;
    place.check("the place for the handle")?;
    let path = path.get()?;
    let read = std::fs::read(&path);
    let mut bytes = read.map_err(|error| Code::FILE_NOT_FOUND.because(format!("{path}: {error}")))?;
    bytes.push(0);
    place.set(module::load(&mut state, context, bytes.as_ptr() as u64, library)?)
}

fn unload(handle: Handle, library: bool) -> Result<()> {
    let (mut state, context) = in_context()?;
    check_kind(&state, handle, library)?;
    capture::check_unsafe(&mut state)?;
    let mut state = queue::drain_context(state, context)?;
    module::unload(&mut state, handle)
}

fn check_kind(state: &State, handle: Handle, library: bool) -> Result<()> {
    match state.images.get(handle)?.library == library {
        true => Ok(()),
        false => {
            Err(Code::INVALID_HANDLE.because("a library where a module is needed, or the other way round"))
        }
    }
}

fn get_function(place: Out<Handle>, image: Handle, name: Text, library: bool) -> Result<()> {
    let (mut state, _) = in_context()?;
    place.check("the place for the handle")?;
    check_kind(&state, image, library)?;
    place.set(module::function(&mut state, image, &name.get()?)?)
}

fn get_global(address: Out<u64>, bytes: Out<usize>, image: Handle, name: Text, library: bool) -> Result<()> {
    let (state, _) = in_context()?;
    check_kind(&state, image, library)?;
    let name = name.get()?;
    let found = state.images.get(image)?.loaded.variable(&name);
    let (start, size) = found.ok_or_else(|| Code::NOT_FOUND.because(format!("no variable `{name}`")))?;
    address.set_optional(start);
    bytes.set_optional(size as usize);
    Ok(())
}

fn attribute_of(function: &Function, state: &State, attribute: u32) -> Result<c_int> {
    let found = function.attribute(state.settings.device, attribute);
    found.ok_or_else(|| Code::INVALID_VALUE.because(format!("no function attribute {attribute}")))
}

fn set_attribute(state: &mut State, function: Handle, attribute: u32, value: c_int) -> Result<()> {
    let device = state.settings.device;
    state.functions.get_mut(function)?.set_attribute(device, attribute, value)
}

fn parameter(function: &Function, index: usize, offset: Out<usize>, size: Out<usize>) -> Result<()> {
    let found = function.program.kernel.params.get(index);
    let found =
        found.ok_or_else(|| -> Failure { Code::INVALID_VALUE.because(format!("no parameter {index}")) })?;
    offset.set(found.offset as usize)?;
    size.set_optional(found.size as usize);
    Ok(())
}

entries! {
    /// Loads a module from a file.
    fn cuModuleLoad(module: Out<Handle>, path: Text) {
        load_file(module, path, false)
    }

    /// Loads a module from memory.
    fn cuModuleLoadData(module: Out<Handle>, image: u64) {
        load(module, image, false, no_options())
    }

    /// Loads a module from memory, with logs.
    fn cuModuleLoadDataEx(module: Out<Handle>, image: u64, count: u32, options: In<u32>, values: Out<u64>) {
        load(module, image, false, (count, options, values))
    }

    /// Loads a module from a fat binary: it has no code that can run here.
    fn cuModuleLoadFatBinary(module: Out<Handle>, image: u64) {
        load(module, image, false, no_options())
    }

    /// Unloads a module after all work is done.
    fn cuModuleUnload(module: Handle) {
        unload(module, false)
    }

    /// Finds a kernel.
    fn cuModuleGetFunction(function: Out<Handle>, module: Handle, name: Text) {
        get_function(function, module, name, false)
    }

    /// Returns the number of kernels.
    fn cuModuleGetFunctionCount(count: Out<u32>, module: Handle) {
        let (state, _) = in_context()?;
        check_kind(&state, module, false)?;
        count.set(state.images.get(module)?.loaded.kernels().count() as u32)
    }

    /// Finds a variable.
    fn cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: Handle, name: Text) {
        get_global(address, bytes, module, name, false)
    }

    /// Says that modules are loaded at once.
    fn cuModuleGetLoadingMode(mode: Out<u32>) {
        drop(crate::driver::session::initialised()?);
        mode.set(1)
    }

    /// Loads a library from memory.
    fn cuLibraryLoadData(
        library: Out<Handle>, image: u64, jit_options: In<u32>, jit_values: Out<u64>, jit_count: u32, _options: In<u32>,
        _values: In<u64>, _count: u32,
    ) {
        load(library, image, true, (jit_count, jit_options, jit_values))
    }

    /// Loads a library from a file.
    fn cuLibraryLoadFromFile(
        library: Out<Handle>, path: Text, _jit_options: In<u32>, _jit_values: Out<u64>, _jit_count: u32, _options: In<u32>,
        _values: In<u64>, _count: u32,
    ) {
        load_file(library, path, true)
    }

    /// Unloads a library after all work is done.
    fn cuLibraryUnload(library: Handle) {
        unload(library, true)
    }

    /// Finds a kernel of a library.
    fn cuLibraryGetKernel(kernel: Out<Handle>, library: Handle, name: Text) {
        get_function(kernel, library, name, true)
    }

    /// Finds a variable of a library.
    fn cuLibraryGetGlobal(address: Out<u64>, bytes: Out<usize>, library: Handle, name: Text) {
        get_global(address, bytes, library, name, true)
    }

    /// Returns the number of kernels of a library.
    fn cuLibraryGetKernelCount(count: Out<u32>, library: Handle) {
        let (state, _) = in_context()?;
        check_kind(&state, library, true)?;
        count.set(state.images.get(library)?.loaded.kernels().count() as u32)
    }

    /// Returns the function of a kernel: the same.
    fn cuKernelGetFunction(function: Out<Handle>, kernel: Handle) {
        let (state, _) = in_context()?;
        state.functions.get(kernel)?;
        function.set(kernel)
    }

    /// Returns an attribute of a kernel.
    fn cuKernelGetAttribute(value: Out<c_int>, attribute: u32, kernel: Handle, _device: c_int) {
        let (state, _) = in_context()?;
        value.set(attribute_of(state.functions.get(kernel)?, &state, attribute)?)
    }

    /// Sets an attribute of a kernel.
    fn cuKernelSetAttribute(attribute: u32, value: c_int, kernel: Handle, _device: c_int) {
        let (mut state, _) = in_context()?;
        set_attribute(&mut state, kernel, attribute, value)
    }

    /// Returns an attribute of a function.
    fn cuFuncGetAttribute(value: Out<c_int>, attribute: u32, function: Handle) {
        let (state, _) = in_context()?;
        value.set(attribute_of(state.functions.get(function)?, &state, attribute)?)
    }

    /// Sets an attribute of a function.
    fn cuFuncSetAttribute(function: Handle, attribute: u32, value: c_int) {
        let (mut state, _) = in_context()?;
        set_attribute(&mut state, function, attribute, value)
    }

    /// Sets the preference between first level cache and shared memory; it changes nothing.
    fn cuFuncSetCacheConfig(function: Handle, config: u32) {
        let (state, _) = in_context()?;
        state.functions.get(function)?;
        match config > 3 {
            true => Err(Code::INVALID_VALUE.because(format!("cache preference {config}"))),
            false => Ok(()),
        }
    }

    /// Returns the module of a function.
    fn cuFuncGetModule(module: Out<Handle>, function: Handle) {
        let (state, _) = in_context()?;
        module.set(state.functions.get(function)?.image)
    }

    /// Returns where a parameter lies in the parameter buffer.
    fn cuFuncGetParamInfo(function: Handle, index: usize, offset: Out<usize>, size: Out<usize>) {
        let (state, _) = in_context()?;
        parameter(state.functions.get(function)?, index, offset, size)
    }

    /// Returns where a parameter lies in the parameter buffer.
    fn cuKernelGetParamInfo(kernel: Handle, index: usize, offset: Out<usize>, size: Out<usize>) {
        let (state, _) = in_context()?;
        parameter(state.functions.get(kernel)?, index, offset, size)
    }

    /// Says that a function is loaded.
    fn cuFuncIsLoaded(loaded: Out<u32>, function: Handle) {
        let (state, _) = in_context()?;
        state.functions.get(function)?;
        loaded.set(1)
    }

    /// Loads a function, which is loaded.
    fn cuFuncLoad(function: Handle) {
        let (state, _) = in_context()?;
        state.functions.get(function)?;
        Ok(())
    }
}
