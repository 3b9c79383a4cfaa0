//! Zeroed memory that takes up room only where it is touched.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Zeroed bytes, aligned to 16: a larger alignment would make the allocator touch every page.
#[derive(Debug)]
pub struct Buffer {
    data: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a buffer owns its bytes; all access goes through raw pointers, whose users answer for it.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Allocates, or returns nothing if the host has no such room.
    pub fn zeroed(bytes: u64) -> Option<Self> {
        let layout = Layout::from_size_align(usize::try_from(bytes.max(1)).ok()?, 16).ok()?;
        // SAFETY: the layout has a size of at least one.
        let data = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { data, layout })
    }

    /// Returns where the bytes lie.
    pub fn data(&self) -> *mut u8 {
        self.data.as_ptr()
    }

    /// Returns how many they are.
    pub fn bytes(&self) -> u64 {
        self.layout.size() as u64
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout, and freed once.
        unsafe { dealloc(self.data.as_ptr(), self.layout) }
    }
}
