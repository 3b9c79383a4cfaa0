//! Attention's launches: none yet, so a CUDA device is refused.

use crate::device::Queue;
use crate::error::Result;
use crate::float::FloatX;
use crate::ops::attention::Sizes;
use crate::tensor::Tensor;

pub(super) fn forward<X: FloatX>(
    queue: &Queue,
    _o: &mut Tensor<X>,
    _lse: &mut Tensor<f32>,
    _qkv: &Tensor<X>,
    _sizes: Sizes,
) -> Result<()> {
    Err(queue.lacks("attention_forward"))
}

pub(super) fn backward<X: FloatX>(
    queue: &Queue,
    _dqkv: &mut Tensor<X>,
    _d_o: &Tensor<X>,
    _o: &Tensor<X>,
    _lse: &Tensor<f32>,
    _qkv: &Tensor<X>,
    _sizes: Sizes,
) -> Result<()> {
    Err(queue.lacks("attention_backward"))
}
