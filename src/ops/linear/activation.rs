//! The activations that a matrix product can apply on its way out, and their derivatives.

use crate::device::Arch;

/// An activation y = act(z).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// y = z.
    Identity,
    /// y = z·σ(z) (Elfwing et al. 2017; Ramachandran et al. 2017).
    Silu,
    /// y = z/2·(1 + tanh(√(2/π)·(z + 0.044715·z³))), the tanh form of GELU (Hendrycks & Gimpel 2016).
    GeluTanh,
}

/// √(2/π) of the tanh form of GELU.
const GELU_SCALE: f32 = 0.797_884_6;
/// The cubic coefficient of the tanh form of GELU.
const GELU_CUBIC: f32 = 0.044_715;

impl Activation {
    /// Returns act(z).
    #[inline(always)]
    pub fn apply(self, arch: Arch, z: f32) -> f32 {
        match self {
            Self::Identity => z,
            Self::Silu => silu(arch, z),
            Self::GeluTanh => gelu_tanh(arch, z),
        }
    }

    /// Returns act'(z).
    #[inline(always)]
    pub fn derivative(self, arch: Arch, z: f32) -> f32 {
        match self {
            Self::Identity => 1.0,
            Self::Silu => silu_derivative(arch, z),
            Self::GeluTanh => gelu_tanh_derivative(arch, z),
        }
    }
}

/// Returns z·σ(z).
#[inline(always)]
fn silu(arch: Arch, z: f32) -> f32 {
    z * arch.sigmoid(z)
}

#[inline(always)]
fn silu_derivative(arch: Arch, z: f32) -> f32 {
    let s = arch.sigmoid(z);
    s * arch.fma(z, 1.0 - s, 1.0)
}

/// Returns ½(1 + tanh u) = σ(2u), u the argument of the tanh: one exponential.
#[inline(always)]
fn gelu_gate(arch: Arch, z: f32) -> f32 {
    let u = GELU_SCALE * z * arch.fma(GELU_CUBIC * z, z, 1.0);
    arch.sigmoid(2.0 * u)
}

#[inline(always)]
fn gelu_tanh(arch: Arch, z: f32) -> f32 {
    z * gelu_gate(arch, z)
}

#[inline(always)]
fn gelu_tanh_derivative(arch: Arch, z: f32) -> f32 {
    // With g = σ(2u): y = z·g, y' = g + z·g·(1−g)·2u', u' = √(2/π)·(1 + 3·0.044715·z²).
    let g = gelu_gate(arch, z);
    let slope = 2.0 * GELU_SCALE * arch.fma(3.0 * GELU_CUBIC * z, z, 1.0);
    arch.fma(z * g * (1.0 - g), slope, g)
}
