//! Casts, scaled additions and zeros: the glue between f32 state (latents, sampler states, gradients) and storage types.
//!
//! `cast`: y = x in another storage type. `axpy`: y += a·x. Both are linear; the backward of a cast is a cast, that of
//! `axpy` is an `axpy`.

use crate::device::cuda::Grid;
use crate::device::{Device, Queue};
use crate::error::Result;
use crate::float::{DType, FloatX};
use crate::kernels;
use crate::ops::{pack, rows_per_block};
use crate::tensor::{Tensor, ViewMut};

/// `x: (..)` in storage X → the same in storage Y.
pub fn cast<X: FloatX, Y: FloatX>(x: &Tensor<X>) -> Result<Tensor<Y>> {
    let mut y = Tensor::uninit(x.device(), x.shape());
    match x.device() {
        Device::Cpu(cpu) => {
            let (y, x, isa, block) = (y.host_mut()?, x.host()?, cpu.isa(), rows_per_block(1));
            cpu.each(y.chunks_mut(block).zip(x.chunks(block)), |(y, x)| {
                isa.run(
                    #[inline(always)]
                    |_| {
                        for (y, x) in y.iter_mut().zip(x) {
                            *y = Y::from_f32(x.to_f32());
                        }
                    },
                );
            });
        }
        Device::Cuda(queue) => cast_cuda(queue, &mut y, x)?,
    }
    Ok(y)
}

/// Threads of a block; each has a pack of the narrower type: see `kernels/elementwise.cu`.
const THREADS: u32 = 256;

/// Kernels cast from and to f32; between bf16 and f16, which no run does, f32 is the way.
fn cast_cuda<X: FloatX, Y: FloatX>(queue: &Queue, y: &mut Tensor<Y>, x: &Tensor<X>) -> Result<()> {
    let n = x.len();
    let grid = Grid::covering(n, pack::<X>().max(pack::<Y>()), THREADS);
    match (X::DTYPE, Y::DTYPE) {
        (from, to) if from == to => queue.copy(y.write()?.address(), x.read()?.address(), n * size_of::<X>()),
        (DType::F32, _) => kernels::cast_from_f32(queue, grid, y.write()?, x.read()?.retyped(), n as u64),
        (_, DType::F32) => kernels::cast_to_f32(queue, grid, y.write()?.retyped(), x.read()?, n as u64),
        _ => {
            let wide = cast::<X, f32>(x)?;
            cast_cuda(queue, y, &wide)
        }
    }
}

/// Elements that a thread clears at a time.
const CLEARED: usize = 1 << 16;

/// Sets every element to zero. A device that fails says so when it is used next.
pub fn clear(y: &mut Tensor<f32>) -> Result<()> {
    match y.device().clone() {
        Device::Cpu(cpu) => cpu.each(y.host_mut()?.chunks_mut(CLEARED), |y| y.fill(0.0)),
        Device::Cuda(_) => y.view_mut().fill_zero(),
    }
    Ok(())
}

/// `y += a·x`, both `(..)`.
pub fn axpy<X: FloatX>(mut y: ViewMut<'_, f32>, a: f32, x: &Tensor<X>) -> Result<()> {
    x.expect("axpy", "x", y.shape())?;
    match x.device() {
        Device::Cpu(cpu) => {
            let (y, x, isa, block) = (y.host_mut()?, x.host()?, cpu.isa(), rows_per_block(1));
            cpu.each(y.chunks_mut(block).zip(x.chunks(block)), |(y, x)| {
                isa.run(
                    #[inline(always)]
                    |arch| {
                        for (y, x) in y.iter_mut().zip(x) {
                            *y = arch.fma(a, x.to_f32(), *y);
                        }
                    },
                );
            });
        }
        Device::Cuda(queue) => {
            let n = x.len();
            let grid = Grid::covering(n, pack::<X>(), THREADS);
            kernels::axpy(queue, grid, y.write()?, x.read()?, a, n as u64)?;
        }
    }
    Ok(())
}
