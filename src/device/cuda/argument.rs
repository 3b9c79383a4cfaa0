//! What launchers take: device memory to read or to write, and numbers.

use std::marker::PhantomData;

/// An argument as its bytes: the driver reads as many as the kernel declares, the low ones first.
#[derive(Clone, Copy, Debug)]
pub struct Argument(#[allow(dead_code)] u64); // the driver reads it through a pointer

impl From<u64> for Argument {
    fn from(x: u64) -> Self {
        Self(x)
    }
}

impl From<u32> for Argument {
    fn from(x: u32) -> Self {
        Self(x as u64)
    }
}

impl From<i32> for Argument {
    fn from(x: i32) -> Self {
        Self(x as u32 as u64)
    }
}

impl From<f32> for Argument {
    fn from(x: f32) -> Self {
        Self(x.to_bits() as u64)
    }
}

/// Device memory that a kernel reads.
#[derive(Clone, Copy, Debug)]
pub struct Read<'a, T> {
    address: u64,
    elements: PhantomData<&'a [T]>,
}

/// Device memory that a kernel writes.
#[derive(Debug)]
pub struct Write<'a, T> {
    address: u64,
    elements: PhantomData<&'a mut [T]>,
}

impl<T> Read<'_, T> {
    /// Names elements by their address; they must stay alive for `'_`.
    pub(crate) fn at(address: u64) -> Self {
        Self { address, elements: PhantomData }
    }

    /// A null pointer, for an argument that the kernel need not have.
    pub(crate) fn none() -> Self {
        Self::at(0)
    }

    pub(crate) fn address(self) -> u64 {
        self.address
    }
}

impl<'a, T> Read<'a, T> {
    /// Names the same elements by another type: the one that they have, where only their `DType` is known.
    pub(crate) fn retyped<U>(self) -> Read<'a, U> {
        debug_assert_eq!(size_of::<T>(), size_of::<U>());
        Read::at(self.address)
    }
}

impl<'a, T> Write<'a, T> {
    /// Names the same elements by another type, as [`Read::retyped`] does.
    pub(crate) fn retyped<U>(self) -> Write<'a, U> {
        debug_assert_eq!(size_of::<T>(), size_of::<U>());
        Write::at(self.address)
    }

    /// Names elements by their address; they must stay alive for `'_`.
    pub(crate) fn at(address: u64) -> Self {
        Self { address, elements: PhantomData }
    }

    /// A null pointer, for an argument that the kernel need not have.
    pub(crate) fn none() -> Self {
        Self::at(0)
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}
