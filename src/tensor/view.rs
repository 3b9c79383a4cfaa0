//! Borrowed tensors: whole ones, and parts of a flat buffer.

use std::borrow::Cow;
use std::fmt;

use crate::device::cuda::{Read, Write};
use crate::device::{Device, Queue};
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::tensor::{Shape, elsewhere};

/// A borrowed tensor: a whole one, or a named part of a flat buffer.
#[derive(Clone, Copy)]
pub struct View<'a, X: FloatX> {
    pub(super) shape: Shape,
    pub(super) device: &'a Device,
    pub(super) elements: Elements<'a, X>,
}

#[derive(Clone, Copy)]
pub(super) enum Elements<'a, X> {
    Host(&'a [X]),
    /// Where they begin.
    Device(u64),
}

pub(super) enum ElementsMut<'a, X> {
    Host(&'a mut [X]),
    Device(u64),
}

impl<'a, X: FloatX> View<'a, X> {
    /// Returns the sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Returns the device it lives on.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// Returns the elements in host memory.
    ///
    /// # Errors
    /// A tensor of another device.
    pub fn host(&self) -> Result<&'a [X]> {
        match self.elements {
            Elements::Host(host) => Ok(host),
            Elements::Device(_) => Err(elsewhere("one in host memory", self.device)),
        }
    }

    /// Returns the elements for the host to read: where they lie, or a copy from the device.
    ///
    /// # Errors
    /// A device that failed.
    pub fn on_host(&self) -> Result<Cow<'a, [X]>> {
        match (self.elements, self.device) {
            (Elements::Host(host), _) => Ok(Cow::Borrowed(host)),
            (Elements::Device(address), Device::Cuda(queue)) => {
                let mut values = vec![X::from_f32(0.0); self.shape.len()];
                queue.download(&mut values, address)?;
                Ok(Cow::Owned(values))
            }
            (Elements::Device(_), device) => Err(elsewhere("one on the CUDA device", device)),
        }
    }

    /// Returns the elements for a kernel to read.
    pub(crate) fn read(&self) -> Result<Read<'a, X>> {
        match self.elements {
            Elements::Host(_) => Err(elsewhere("one on the CUDA device", self.device)),
            Elements::Device(address) => Ok(Read::at(address)),
        }
    }

    /// Copies the content to the host as f32.
    ///
    /// # Errors
    /// A device that failed.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        Ok(self.on_host()?.iter().map(|x| x.to_f32()).collect())
    }

    /// Borrows `shape.len()` elements from `offset` on, as a tensor of that shape.
    ///
    /// Panics when they are not inside: offsets come from a layout that was checked when it was built.
    pub fn part(&self, offset: usize, shape: impl Into<Shape>) -> View<'a, X> {
        let shape = shape.into();
        let elements = match self.elements {
            Elements::Host(host) => Elements::Host(&host[offset..offset + shape.len()]),
            Elements::Device(address) => {
                assert!(offset + shape.len() <= self.shape.len(), "a part outside of its tensor");
                Elements::Device(address + (offset * size_of::<X>()) as u64)
            }
        };
        View { shape, device: self.device, elements }
    }

    /// Checks the shape of the argument `arg` of operation `op`.
    ///
    /// # Errors
    /// Another shape, in a message that names both.
    pub fn expect(&self, op: &'static str, arg: &'static str, shape: impl Into<Shape>) -> Result<()> {
        let shape = shape.into();
        if self.shape == shape {
            return Ok(());
        }
        Err(Error::argument(op, arg, format!("shape {shape}"), format!("shape {}", self.shape)))
    }
}

/// A tensor borrowed to write.
pub struct ViewMut<'a, X: FloatX> {
    pub(super) shape: Shape,
    pub(super) device: &'a Device,
    pub(super) elements: ElementsMut<'a, X>,
}

impl<'a, X: FloatX> ViewMut<'a, X> {
    /// Returns the sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Returns the device it lives on.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// Borrows it to read.
    pub fn as_view(&self) -> View<'_, X> {
        let elements = match &self.elements {
            ElementsMut::Host(host) => Elements::Host(host),
            ElementsMut::Device(address) => Elements::Device(*address),
        };
        View { shape: self.shape, device: self.device, elements }
    }

    /// Borrows it again, for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, X> {
        let elements = match &mut self.elements {
            ElementsMut::Host(host) => ElementsMut::Host(host),
            ElementsMut::Device(address) => ElementsMut::Device(*address),
        };
        ViewMut { shape: self.shape, device: self.device, elements }
    }

    /// Returns the elements in host memory, to write.
    ///
    /// # Errors
    /// A tensor of another device.
    pub fn host_mut(&mut self) -> Result<&mut [X]> {
        match &mut self.elements {
            ElementsMut::Host(host) => Ok(host),
            ElementsMut::Device(_) => Err(elsewhere("one in host memory", self.device)),
        }
    }

    /// Returns the elements for a kernel to write.
    pub(crate) fn write(&mut self) -> Result<Write<'_, X>> {
        self.reborrow().into_write()
    }

    /// The same, for as long as it is borrowed itself.
    pub(crate) fn into_write(self) -> Result<Write<'a, X>> {
        match self.elements {
            ElementsMut::Host(_) => Err(elsewhere("one on the CUDA device", self.device)),
            ElementsMut::Device(address) => Ok(Write::at(address)),
        }
    }

    /// Returns the device's queue and the address of the first element.
    fn on_device(&self) -> Result<(&'a Queue, u64)> {
        match (&self.elements, self.device) {
            (ElementsMut::Device(address), Device::Cuda(queue)) => Ok((queue, *address)),
            (_, device) => Err(elsewhere("one on the CUDA device", device)),
        }
    }

    /// Copies elements from host memory.
    ///
    /// # Errors
    /// Another number of elements; a device that failed.
    pub fn copy_from_host(&mut self, values: &[X]) -> Result<()> {
        if values.len() != self.shape.len() {
            let (expected, found) = (self.shape.len(), values.len());
            return Err(Error::argument(
                "copy_from_host",
                "values",
                format!("{expected} elements"),
                format!("{found} elements"),
            ));
        }
        match &mut self.elements {
            ElementsMut::Host(host) => host.copy_from_slice(values),
            ElementsMut::Device(_) => {
                let (queue, address) = self.on_device()?;
                queue.upload(address, values)?;
            }
        }
        Ok(())
    }

    /// Copies elements from host memory, on a CUDA device without waiting for it.
    ///
    /// # Errors
    /// Another number of elements; a device that failed.
    pub fn stage(&mut self, values: &[X]) -> Result<()> {
        match (&self.elements, values.len() == self.shape.len()) {
            (ElementsMut::Device(_), true) => {
                let (queue, address) = self.on_device()?;
                queue.stage(address, values)
            }
            _ => self.copy_from_host(values),
        }
    }

    /// Copies the content of another view on the same device.
    ///
    /// # Errors
    /// Another shape or device.
    pub fn copy_from(&mut self, other: View<'_, X>) -> Result<()> {
        other.expect("copy_from", "other", self.shape)?;
        match self.device {
            Device::Cpu(_) => self.host_mut()?.copy_from_slice(other.host()?),
            Device::Cuda(queue) => {
                let bytes = self.shape.len() * size_of::<X>();
                queue.copy(self.write()?.address(), other.read()?.address(), bytes)?;
            }
        }
        Ok(())
    }

    /// Sets every element to zero. A device that fails says so when it is used next.
    pub fn fill_zero(&mut self) {
        match &mut self.elements {
            ElementsMut::Host(host) => host.fill(X::from_f32(0.0)),
            ElementsMut::Device(_) => {
                if let Ok((queue, address)) = self.on_device() {
                    queue.zero(address, self.shape.len() * size_of::<X>());
                }
            }
        }
    }

    /// Splits off non-overlapping parts, each given by offset and shape, in the order asked for.
    ///
    /// Panics when parts overlap or lie outside: offsets come from a layout that was checked when it was built.
    pub fn parts<const P: usize>(self, wanted: [(usize, Shape); P]) -> [ViewMut<'a, X>; P] {
        let ranges = wanted.map(|(offset, shape)| offset..offset + shape.len());
        let parts = match self.elements {
            ElementsMut::Host(host) => {
                host.get_disjoint_mut(ranges).map(|parts| parts.map(ElementsMut::Host))
            }
            // Checked by the same rule, on elements without a size.
            ElementsMut::Device(address) => {
                vec![(); self.shape.len()].get_disjoint_mut(ranges.clone()).map(|_| {
                    ranges.map(|range| ElementsMut::Device(address + (range.start * size_of::<X>()) as u64))
                })
            }
        };
        let parts = parts.unwrap_or_else(|e| panic!("parts of a flat buffer: {e}"));
        let mut shapes = wanted.iter();
        parts.map(|elements| {
            let shape = shapes.next().map_or(Shape::from([0]), |(_, shape)| *shape);
            ViewMut { shape, device: self.device, elements }
        })
    }
}

impl<'a, X: FloatX> ViewMut<'a, X> {
    /// Splits off any number of parts, each given by offset and shape, in ascending order.
    ///
    /// Panics when parts overlap or lie outside: offsets come from a layout that was checked when it was built.
    pub(crate) fn split(self, wanted: impl Iterator<Item = (usize, Shape)>) -> Vec<ViewMut<'a, X>> {
        let (device, mut rest, mut at) = (self.device, self.elements, 0);
        let part = |(offset, shape): (usize, Shape)| {
            let (skipped, len) = (offset - at, shape.len());
            at = offset + len;
            let elements = match std::mem::replace(&mut rest, ElementsMut::Host(&mut [])) {
                ElementsMut::Host(host) => {
                    let (part, behind) = host[..].split_at_mut(skipped).1.split_at_mut(len);
                    rest = ElementsMut::Host(behind);
                    ElementsMut::Host(part)
                }
                ElementsMut::Device(address) => {
                    let start = address + (skipped * size_of::<X>()) as u64;
                    rest = ElementsMut::Device(start + (len * size_of::<X>()) as u64);
                    ElementsMut::Device(start)
                }
            };
            ViewMut { shape, device, elements }
        };
        wanted.map(part).collect()
    }
}

impl<X: FloatX> fmt::Debug for View<'_, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View<{}>{:?}", X::DTYPE, self.shape)
    }
}

impl<X: FloatX> fmt::Debug for ViewMut<'_, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ViewMut<{}>{:?}", X::DTYPE, self.shape)
    }
}
