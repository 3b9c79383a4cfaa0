//! Casts and scaled additions: the glue between f32 state (latents, sampler states) and storage types.
//!
//! `cast`: y = x in another storage type. `axpy`: y += a·x. Both are linear; the backward of a cast is a cast, that of
//! `axpy` is an `axpy`.

use crate::device::Device;
use crate::error::Result;
use crate::float::FloatX;
use crate::ops::rows_per_block;
use crate::tensor::Tensor;

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
    }
    Ok(y)
}

/// `y += a·x`, both `(..)`.
pub fn axpy<X: FloatX>(y: &mut Tensor<f32>, a: f32, x: &Tensor<X>) -> Result<()> {
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
    }
    Ok(())
}
