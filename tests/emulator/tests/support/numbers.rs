//! Element types, random and index-coded numbers.

use half::{bf16, f16};

/// The type of a buffer's elements. Tests hold all of them as f64, which has room for each value of every type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F32,
    F16,
    Bf16,
    I32,
    U32,
    U8,
}

impl Element {
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 | Element::I32 | Element::U32 => 4,
            Element::F16 | Element::Bf16 => 2,
            Element::U8 => 1,
        }
    }

    /// Half of a unit in the last place, relative: what rounding to the type may cost.
    pub fn rounding(self) -> f64 {
        match self {
            Element::F32 => 2f64.powi(-24),
            Element::F16 => 2f64.powi(-11),
            Element::Bf16 => 2f64.powi(-8),
            Element::I32 | Element::U32 | Element::U8 => 0.0,
        }
    }

    pub fn encode(self, values: &[f64]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(values.len() * self.bytes());
        for &v in values {
            match self {
                Element::F32 => bytes.extend((v as f32).to_le_bytes()),
                Element::F16 => bytes.extend(f16::from_f64(v).to_le_bytes()),
                Element::Bf16 => bytes.extend(bf16::from_f64(v).to_le_bytes()),
                Element::I32 => bytes.extend((v as i32).to_le_bytes()),
                Element::U32 => bytes.extend((v as u32).to_le_bytes()),
                Element::U8 => bytes.push(v as u8),
            }
        }
        bytes
    }

    pub fn decode(self, bytes: &[u8]) -> Vec<f64> {
        let one = |b: &[u8]| match self {
            Element::F32 => f32::from_le_bytes(b.try_into().unwrap()) as f64,
            Element::F16 => f16::from_le_bytes(b.try_into().unwrap()).to_f64(),
            Element::Bf16 => bf16::from_le_bytes(b.try_into().unwrap()).to_f64(),
            Element::I32 => i32::from_le_bytes(b.try_into().unwrap()) as f64,
            Element::U32 => u32::from_le_bytes(b.try_into().unwrap()) as f64,
            Element::U8 => b[0] as f64,
        };
        bytes.chunks_exact(self.bytes()).map(one).collect()
    }

    /// The values as a buffer of this type holds them.
    pub fn round(self, values: &[f64]) -> Vec<f64> {
        self.decode(&self.encode(values))
    }
}

/// Splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * 2f64.powi(-53)
    }

    /// A sum of uniforms with mean 0 and deviation 1; it has no long tails, which would ask for wide tolerances.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }

    pub fn normals(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// How inputs are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// Random numbers.
    Random,
    /// Numbers that tell their index: an element that comes from a wrong place is seen as such.
    Coded,
}

impl Inputs {
    pub const ALL: [Inputs; 2] = [Inputs::Random, Inputs::Coded];

    /// Numbers of deviation 1 or so. Coded ones are multiples of 1/32 in [-4, 4), and exact in every type; they repeat
    /// only after 251 elements, a prime.
    pub fn numbers(self, random: &mut Random, n: usize) -> Vec<f64> {
        match self {
            Inputs::Random => random.normals(n),
            Inputs::Coded => {
                let first = random.below(251);
                (0..n)
                    .map(|i| ((i * 97 + first) % 251) as f64 / 32.0 - 3.92)
                    .map(|v| (v * 32.0).round() / 32.0)
                    .collect()
            }
        }
    }
}
