//! Dense tensors: contiguous, row-major, owning, of one storage type, on one device.
//!
//! Storage is `f32`, `bf16` or `f16`; arithmetic is always f32. Memory comes from the device's pool and returns to it.
//! Elements in host memory are slices; those of a CUDA device are addresses that launchers take.

mod view;

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

pub use view::{View, ViewMut};

use crate::device::Device;
use crate::device::cpu::HostBuf;
use crate::device::cuda::{DeviceBuf, Read, Write};
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::tensor::view::{Elements, ElementsMut};

/// The sizes of a tensor, at most four.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    dims: [usize; 4],
    rank: usize,
}

impl Shape {
    /// Returns the sizes.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.dims().iter().product()
    }

    /// Says whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the shape of a matrix of the same elements: first size, product of the others.
    fn matrix(self) -> Self {
        match self.dims() {
            [first, rest @ ..] if !rest.is_empty() => Self::from([*first, rest.iter().product()]),
            _ => self,
        }
    }
}

impl<const R: usize> From<[usize; R]> for Shape {
    fn from(sizes: [usize; R]) -> Self {
        Self::from(&sizes[..])
    }
}

impl From<&[usize]> for Shape {
    /// Panics on more than four sizes; files are checked before they get here.
    fn from(sizes: &[usize]) -> Self {
        let mut dims = [1; 4];
        dims[..sizes.len()].copy_from_slice(sizes);
        Self { dims, rank: sizes.len() }
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.dims(), f)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.dims(), f)
    }
}

/// A tensor that owns its memory.
pub struct Tensor<X: FloatX> {
    shape: Shape,
    device: Device,
    storage: Storage,
    element: PhantomData<X>,
}

enum Storage {
    Host(HostBuf),
    /// `None`: there was no memory, and whatever uses the device next says so.
    Device(Option<DeviceBuf>),
}

/// Says that a tensor lives elsewhere than an operation was told.
fn elsewhere(expected: &'static str, device: &Device) -> Error {
    Error::argument("a tensor", "device", expected, format!("{device:?}"))
}

impl<X: FloatX> Tensor<X> {
    /// Takes memory whose content is unspecified: for outputs that are written whole.
    pub fn uninit(device: &Device, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        let storage = match device {
            Device::Cpu(cpu) => Storage::Host(cpu.take(shape.len() * size_of::<X>())),
            Device::Cuda(queue) => Storage::Device(queue.take(shape.len() * size_of::<X>())),
        };
        Self { shape, device: device.clone(), storage, element: PhantomData }
    }

    /// Returns a tensor of zeros.
    pub fn zeros(device: &Device, shape: impl Into<Shape>) -> Self {
        let mut tensor = Self::uninit(device, shape);
        tensor.view_mut().fill_zero();
        tensor
    }

    /// Returns a tensor of this one's shape on its device, content unspecified.
    pub fn like(other: &Self) -> Self {
        Self::uninit(&other.device, other.shape)
    }

    /// Copies `values` to the device, rounding to the storage type.
    ///
    /// # Errors
    /// A shape that does not have as many elements as `values`.
    pub fn from_f32(device: &Device, shape: impl Into<Shape>, values: &[f32]) -> Result<Self> {
        let shape = shape.into();
        if shape.len() != values.len() {
            let expected = format!("{} elements for shape {shape}", shape.len());
            return Err(Error::argument(
                "from_f32",
                "values",
                expected,
                format!("{} elements", values.len()),
            ));
        }
        let mut tensor = Self::uninit(device, shape);
        match &mut tensor.storage {
            Storage::Host(buf) => {
                for (y, x) in buf.as_mut_slice::<X>().iter_mut().zip(values) {
                    *y = X::from_f32(*x);
                }
            }
            Storage::Device(_) => {
                let rounded: Vec<X> = values.iter().map(|x| X::from_f32(*x)).collect();
                tensor.view_mut().copy_from_host(&rounded)?;
            }
        }
        Ok(tensor)
    }

    /// Returns numbers that stay the same for the run. A CUDA device gets them once and copies them there from then on, without
    /// the host.
    ///
    /// # Errors
    /// A shape that does not have as many elements as `values`; a device that failed.
    pub fn constant(device: &Device, shape: impl Into<Shape>, values: &[X]) -> Result<Self> {
        let mut tensor = Self::uninit(device, shape);
        match device {
            Device::Cuda(queue) if tensor.len() == values.len() => {
                let from = queue.constant(values)?.address();
                queue.copy(tensor.write()?.address(), from, size_of_val(values))?;
            }
            _ => tensor.view_mut().copy_from_host(values)?,
        }
        Ok(tensor)
    }

    /// Copies the content to the host as f32.
    ///
    /// # Errors
    /// A device that failed.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        self.view().to_f32_vec()
    }

    /// Copies the whole content of `other`.
    ///
    /// # Errors
    /// Another shape.
    pub fn copy_from(&mut self, other: &Self) -> Result<()> {
        self.view_mut().copy_from(other.view())
    }

    /// Returns a copy.
    pub fn duplicate(&self) -> Result<Self> {
        let mut copy = Self::like(self);
        copy.copy_from(self)?;
        Ok(copy)
    }

    /// Gives the same elements another shape.
    ///
    /// # Errors
    /// A shape with another number of elements.
    pub fn reshaped(mut self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.len() != self.len() {
            return Err(Error::argument(
                "reshaped",
                "shape",
                format!("{} elements", self.len()),
                format!("shape {shape}"),
            ));
        }
        self.shape = shape;
        Ok(self)
    }

    /// Returns the sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Returns the sizes of a matrix (rows, columns); a vector counts as one row.
    pub fn rows_cols(&self) -> (usize, usize) {
        let cols = self.shape.dims().last().copied().unwrap_or(1);
        (self.len().checked_div(cols).unwrap_or(0), cols)
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// Says whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.is_empty()
    }

    /// Returns the device it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Borrows it.
    pub fn view(&self) -> View<'_, X> {
        let elements = match &self.storage {
            Storage::Host(buf) => Elements::Host(&buf.as_slice()[..self.shape.len()]),
            Storage::Device(buf) => Elements::Device(buf.as_ref().map_or(0, DeviceBuf::address)),
        };
        View { shape: self.shape, device: &self.device, elements }
    }

    /// Borrows it to write.
    pub fn view_mut(&mut self) -> ViewMut<'_, X> {
        let elements = match &mut self.storage {
            Storage::Host(buf) => ElementsMut::Host(&mut buf.as_mut_slice()[..self.shape.len()]),
            Storage::Device(buf) => ElementsMut::Device(buf.as_ref().map_or(0, DeviceBuf::address)),
        };
        ViewMut { shape: self.shape, device: &self.device, elements }
    }

    /// Returns the elements in host memory.
    ///
    /// # Errors
    /// A tensor of another device.
    pub fn host(&self) -> Result<&[X]> {
        self.view().host()
    }

    /// Returns the elements for the host to read: where they lie, or a copy from the device.
    ///
    /// # Errors
    /// A device that failed.
    pub fn on_host(&self) -> Result<Cow<'_, [X]>> {
        self.view().on_host()
    }

    /// Returns the elements in host memory, to write.
    ///
    /// # Errors
    /// A tensor of another device.
    pub fn host_mut(&mut self) -> Result<&mut [X]> {
        let len = self.shape.len();
        match &mut self.storage {
            Storage::Host(buf) => Ok(&mut buf.as_mut_slice()[..len]),
            Storage::Device(_) => Err(elsewhere("one in host memory", &self.device)),
        }
    }

    /// Returns the elements for a kernel to read.
    pub(crate) fn read(&self) -> Result<Read<'_, X>> {
        self.view().read()
    }

    /// Returns the elements for a kernel to write.
    pub(crate) fn write(&mut self) -> Result<Write<'_, X>> {
        self.view_mut().into_write()
    }

    /// Checks the shape of the argument `arg` of operation `op`.
    ///
    /// # Errors
    /// Another shape, in a message that names both.
    pub fn expect(&self, op: &'static str, arg: &'static str, shape: impl Into<Shape>) -> Result<()> {
        self.view().expect(op, arg, shape)
    }
}

impl<X: FloatX> fmt::Debug for Tensor<X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor<{}>{:?}", X::DTYPE, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_shape_is_named() -> Result<()> {
        let device = Device::cpu_with_threads(1)?;
        let x = Tensor::<f32>::zeros(&device, [3, 2]);
        let message = x.expect("silu", "dy", [2, 3]).unwrap_err().to_string();
        assert_eq!(message, "silu: `dy` has shape [3, 2], expected shape [2, 3]");
        Ok(())
    }
}
