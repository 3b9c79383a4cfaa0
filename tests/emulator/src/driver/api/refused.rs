//! What the emulator does not have: managed memory, memory of other programs, tensor maps. Attributes of the device say so,
//! and a program that goes on gets error 801 with a line.

use crate::driver::abi::{Handle, In, MemoryLocation, Out};
use crate::driver::codes::{Code, Result};
use crate::driver::entry::entries;
use crate::driver::session::in_context;

fn refuse(what: &str) -> Result<()> {
    drop(in_context()?);
    Err(Code::NOT_SUPPORTED.because(format!("{what} is not emulated")))
}

entries! {
    /// Refuses managed memory.
    fn cuMemAllocManaged(_address: Out<u64>, _bytes: usize, _flags: u32) {
        refuse("managed memory")
    }

    /// Refuses advice on managed memory.
    fn cuMemAdvise_v2(_address: u64, _bytes: usize, _advice: u32, _location: MemoryLocation) {
        refuse("managed memory")
    }

    /// Refuses to move managed memory.
    fn cuMemPrefetchAsync_v2(_address: u64, _bytes: usize, _location: MemoryLocation, _flags: u32, _stream: Handle) {
        refuse("managed memory")
    }

    /// Refuses to attach managed memory to a stream.
    fn cuStreamAttachMemAsync(_stream: Handle, _address: u64, _bytes: usize, _flags: u32) {
        refuse("managed memory")
    }

    /// Refuses memory of a graphics program.
    fn cuImportExternalMemory(_memory: Out<Handle>, _description: In<u64>) {
        refuse("memory of another program")
    }

    /// Refuses memory of a graphics program.
    fn cuExternalMemoryGetMappedBuffer(_address: Out<u64>, _memory: Handle, _description: In<u64>) {
        refuse("memory of another program")
    }

    /// Refuses memory of a graphics program.
    fn cuDestroyExternalMemory(_memory: Handle) {
        drop(in_context()?);
        Err(Code::INVALID_HANDLE.because("no memory of another program was imported"))
    }

    /// Refuses tensor maps, after the checks that need no device.
    fn cuTensorMapEncodeTiled(
        map: Out<[u8; 128]>, kind: u32, rank: u32, address: u64, sizes: In<u64>, _strides: In<u64>, boxes: In<u32>,
        _element_strides: In<u32>, interleave: u32, swizzle: u32, promotion: u32, fill: u32,
    ) {
        let invalid = |what: String| Err(Code::INVALID_VALUE.because(what));
        map.check("tensorMap")?;
        if !(1..=5).contains(&rank) || kind > 15 || interleave > 2 || swizzle > 6 || promotion > 3 || fill > 1 {
            return invalid(format!("rank {rank}, type {kind}, interleave {interleave}, swizzle {swizzle}"));
        }
        if address == 0 || !address.is_multiple_of(16) {
            return invalid(format!("the address {address:#x} is not aligned to 16 bytes"));
        }
        for i in 0..rank as usize {
            let (size, part) = (sizes.get_at(i)?, boxes.get_at(i)?);
            if !(1..=1 << 32).contains(&size) || !(1..=256).contains(&part) {
                return invalid(format!("dimension {i}: size {size}, box {part}"));
            }
        }
        refuse("a tensor map")
    }
}
