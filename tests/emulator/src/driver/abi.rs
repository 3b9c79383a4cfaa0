//! What crosses the C boundary: pointers of the caller, wrapped so that each is checked before it is used, and the
//! structures of `cuda.h`.

use std::ffi::{CStr, c_char, c_void};

use super::codes::{Code, Result};

/// An opaque handle (`CUstream`, `CUevent`, ...): a number that is looked up in a table, never dereferenced.
pub type Handle = u64;

/// A host callback.
pub type HostFunction = Option<extern "C" fn(*mut c_void)>;

/// Where a result goes: null, or a place for one `T` (or for an array of them, see [`Out::set_at`]).
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Out<T> {}

impl<T> Out<T> {
    /// Makes one where nothing goes.
    pub fn nothing() -> Self {
        Out(std::ptr::null_mut())
    }

    /// Makes one of an address that came inside of an array.
    pub(crate) fn at(address: u64) -> Self {
        Out(address as *mut T)
    }

    /// Returns whether there is no place.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Takes it as a place for another type.
    pub fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }

    /// Takes it as an argument too.
    pub fn as_input(self) -> In<T> {
        In(self.0.cast_const())
    }

    /// Refuses a null pointer, so that nothing is done before.
    pub fn check(self, name: &str) -> Result<()> {
        match self.is_null() {
            true => Err(Code::INVALID_VALUE.because(format!("{name} is null"))),
            false => Ok(()),
        }
    }

    /// Writes a result; null is an error.
    pub fn set(self, value: T) -> Result<()> {
        self.check("a pointer for a result")?;
        self.set_at(0, value);
        Ok(())
    }

    /// Writes a result if there is a place for it.
    pub fn set_optional(self, value: T) {
        if !self.is_null() {
            self.set_at(0, value);
        }
    }

    /// Writes an element of an array whose length the caller has given.
    pub fn set_at(self, index: usize, value: T) {
        // SAFETY: not null; the C caller guarantees that it points to `index + 1` elements or more; no alignment assumed.
        unsafe { self.0.add(index).write_unaligned(value) };
    }

    /// Reads what is there, for arguments that go in and out.
    pub fn get(self) -> Result<T> {
        In(self.0.cast_const()).get()
    }
}

/// An argument behind a pointer: null, or one `T`, or an array.
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for In<T> {}

impl<T> In<T> {
    /// Returns whether nothing is given.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Makes one of an address that came inside of a structure.
    pub(crate) fn at(address: u64) -> Self {
        In(address as *const T)
    }

    /// Reads it; null is an error.
    pub fn get(self) -> Result<T> {
        self.get_at(0)
    }

    /// Reads an element of an array whose length the caller has given; null is an error.
    pub fn get_at(self, index: usize) -> Result<T> {
        if self.is_null() {
            return Err(Code::INVALID_VALUE.because("a pointer to an argument is null"));
        }
        // SAFETY: not null; the C caller guarantees that it points to `index + 1` elements or more; `T` is plain data of
        // `cuda.h`; no alignment assumed.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }

    /// Reads an array; null is an error unless it is empty.
    pub fn list(self, count: usize) -> Result<Vec<T>> {
        (0..count).map(|i| self.get_at(i)).collect()
    }
}

/// A zero-terminated string.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Text(*const c_char);

impl Text {
    /// Makes one of an address that came inside of a structure or as an image.
    pub(crate) fn at(address: u64) -> Self {
        Text(address as *const c_char)
    }

    /// Copies it; null and text that is no UTF-8 are errors.
    pub fn get(self) -> Result<String> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE.because("a pointer to a string is null"));
        }
        // SAFETY: not null; the C caller guarantees a terminating zero byte.
        let text = unsafe { CStr::from_ptr(self.0) };
        let text =
            text.to_str().map_err(|e| Code::INVALID_VALUE.because(format!("a string is no UTF-8: {e}")))?;
        Ok(text.to_owned())
    }

    /// Copies the bytes up to the terminating zero byte.
    pub(crate) fn bytes(self) -> Vec<u8> {
        // SAFETY: callers have checked that it is not null; the C caller guarantees a terminating zero byte.
        unsafe { CStr::from_ptr(self.0) }.to_bytes().to_vec()
    }
}

/// Writes text into a caller's buffer of `size` bytes, cut where it does not fit, and terminates it with a zero byte.
pub fn write_text(buffer: Out<u8>, size: usize, text: &str) {
    if buffer.is_null() || size == 0 {
        return;
    }
    let length = text.len().min(size - 1);
    for (i, byte) in text.bytes().take(length).enumerate() {
        buffer.set_at(i, byte);
    }
    buffer.set_at(length, 0);
}

/// `CUuuid`
pub type Uuid = [u8; 16];

/// `CUmemLocation`
#[derive(Clone, Copy)]
#[repr(C)]
pub struct MemoryLocation {
    /// 1: a device
    pub kind: u32,
    /// Its number.
    pub id: i32,
}

/// `CUmemPoolProps`
#[derive(Clone, Copy)]
#[repr(C)]
pub struct PoolProperties {
    /// 1: pinned device memory
    pub allocation_type: u32,
    /// 0: not shared with other processes
    pub handle_types: u32,
    /// Where.
    pub location: MemoryLocation,
    /// Unused here.
    pub security: u64,
    /// 0: no limit
    pub maximum: u64,
    /// `usage` and reserved bytes.
    pub reserved: [u8; 56],
}

/// `CUDA_MEMCPY2D`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Copy2d {
    pub src_x: usize,
    pub src_y: usize,
    pub src_type: u32,
    pub src_host: u64,
    pub src_device: u64,
    pub src_array: u64,
    pub src_pitch: usize,
    pub dst_x: usize,
    pub dst_y: usize,
    pub dst_type: u32,
    pub dst_host: u64,
    pub dst_device: u64,
    pub dst_array: u64,
    pub dst_pitch: usize,
    pub width: usize,
    pub height: usize,
}

/// `CUDA_MEMCPY3D`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Copy3d {
    pub src_x: usize,
    pub src_y: usize,
    pub src_z: usize,
    pub src_lod: usize,
    pub src_type: u32,
    pub src_host: u64,
    pub src_device: u64,
    pub src_array: u64,
    pub reserved0: u64,
    pub src_pitch: usize,
    pub src_height: usize,
    pub dst_x: usize,
    pub dst_y: usize,
    pub dst_z: usize,
    pub dst_lod: usize,
    pub dst_type: u32,
    pub dst_host: u64,
    pub dst_device: u64,
    pub dst_array: u64,
    pub reserved1: u64,
    pub dst_pitch: usize,
    pub dst_height: usize,
    pub width: usize,
    pub height: usize,
    pub depth: usize,
}

/// `CUDA_KERNEL_NODE_PARAMS` (version 2; version 1 is its beginning)
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs)]
pub struct KernelNode {
    pub function: Handle,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub params: In<In<u8>>,
    pub extra: In<u64>,
    pub kernel: Handle,
    pub context: Handle,
}

/// `CUDA_MEMSET_NODE_PARAMS`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs)]
pub struct FillNode {
    pub address: u64,
    pub pitch: usize,
    pub value: u32,
    pub element: u32,
    pub width: usize,
    pub height: usize,
}

/// `CUDA_HOST_NODE_PARAMS`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs)]
pub struct HostNode {
    pub function: HostFunction,
    pub data: u64,
}

/// `CUlaunchAttribute`
#[derive(Clone, Copy)]
#[repr(C)]
pub struct LaunchAttribute {
    /// `CUlaunchAttributeID`
    pub id: u32,
    /// The value starts at 8 bytes.
    pub padding: u32,
    /// A union of 64 bytes, in words.
    pub value: [u32; 16],
}

/// `CUlaunchConfig`
#[derive(Clone, Copy)]
#[repr(C)]
#[allow(missing_docs)]
pub struct LaunchConfig {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub stream: Handle,
    pub attributes: In<LaunchAttribute>,
    pub count: u32,
}

/// `CUgraphExecUpdateResultInfo`
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UpdateResult {
    /// `CUgraphExecUpdateResult`
    pub result: u32,
    /// The node of the new graph that does not fit.
    pub node: Handle,
    /// The node that it depends on.
    pub from: Handle,
}
