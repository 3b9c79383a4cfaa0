//! The registers of one warp: 32 lanes side by side, so that an instruction is a loop that the compiler turns into
//! vector code.

/// Threads of a warp.
pub const LANES: usize = 32;
/// All lanes.
pub const FULL: u32 = u32::MAX;

/// A register of up to 32 bits in all lanes; narrower values are zero-extended.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Lanes32(pub [u32; LANES]);

/// A register of 64 bits in all lanes.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Lanes64(pub [u64; LANES]);

/// The number of a register in its file: 64-bit values, predicates and all others have a file each.
///
/// Immediates and special registers are registers too, filled when a warp starts, so operands need no case distinction.
pub type Slot = u32;

/// The three register files of a warp.
#[derive(Clone, Debug, Default)]
pub struct Regs {
    /// 32, 16 and 8 bits.
    pub r32: Vec<Lanes32>,
    /// 64 bits.
    pub r64: Vec<Lanes64>,
    /// Predicates: bit i is lane i.
    pub pred: Vec<u32>,
    /// The carry flag of `add.cc` and its like: bit i is lane i.
    pub carry: u32,
}

impl Regs {
    /// Makes files of these sizes, all zero.
    pub fn new(r32: usize, r64: usize, pred: usize) -> Self {
        Self {
            r32: vec![Lanes32([0; LANES]); r32],
            r64: vec![Lanes64([0; LANES]); r64],
            pred: vec![0; pred],
            carry: 0,
        }
    }
}

/// Calls `f` for each lane of a mask, in ascending order.
#[inline(always)]
pub fn for_lanes(mask: u32, mut f: impl FnMut(usize)) {
    let mut left = mask;
    while left != 0 {
        f(left.trailing_zeros() as usize);
        left &= left - 1;
    }
}
