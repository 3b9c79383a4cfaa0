//! Modifiers of an instruction: each is taken once, and none may be left.

use super::Outcome;
use crate::isa::{Order, Round, Scope, Space, Ty};

/// The modifiers of one instruction.
#[derive(Clone, Debug)]
pub(super) struct Modifiers<'a, 'b> {
    list: &'b [&'a str],
    used: u32,
}

impl<'a, 'b> Modifiers<'a, 'b> {
    pub(super) fn new(list: &'b [&'a str]) -> Outcome<Self> {
        match list.len() <= 32 {
            true => Ok(Self { list, used: 0 }),
            false => Err("more modifiers than any instruction has".into()),
        }
    }

    /// Returns the modifiers that nobody has taken.
    fn left(&self) -> impl Iterator<Item = (usize, &'a str)> + '_ {
        self.list.iter().copied().enumerate().filter(|(i, _)| self.used & (1 << i) == 0)
    }

    /// Takes a modifier if it is there.
    pub(super) fn take(&mut self, name: &str) -> bool {
        self.take_map(|m| (m == name).then_some(())).is_some()
    }

    /// Takes the first modifier that `f` knows.
    pub(super) fn take_map<T>(&mut self, f: impl Fn(&'a str) -> Option<T>) -> Option<T> {
        let (i, value) = self.left().find_map(|(i, m)| Some((i, f(m)?)))?;
        self.used |= 1 << i;
        Some(value)
    }

    /// Takes a modifier that must be there.
    pub(super) fn need(&mut self, name: &str) -> Outcome {
        match self.take(name) {
            true => Ok(()),
            false => Err(format!("`.{name}` is missing")),
        }
    }

    /// Takes the next type.
    pub(super) fn ty(&mut self) -> Outcome<Ty> {
        match self.take_map(type_of) {
            Some(ty) => Ok(ty),
            None => match self.left().find(|(_, m)| FOREIGN_TYPES.contains(m)) {
                Some((_, ty)) => Err(format!("the type `.{ty}` is not supported")),
                None => Err("the type is missing".into()),
            },
        }
    }

    /// Takes a type that is one of a set.
    pub(super) fn ty_of(&mut self, set: u32) -> Outcome<Ty> {
        let ty = self.ty()?;
        match set & bit(ty) != 0 {
            true => Ok(ty),
            false => Err(format!("the type `.{}` is not allowed here", name_of(ty))),
        }
    }

    /// Takes `.sync.aligned`, of which the second may be missing.
    pub(super) fn sync(&mut self) -> Outcome {
        self.need("sync")?;
        self.take("aligned");
        Ok(())
    }

    /// Takes a state space.
    pub(super) fn space(&mut self) -> Option<Space> {
        self.take_map(|m| {
            Some(match m {
                "global" => Space::Global,
                "shared" | "shared::cta" | "shared::cluster" => Space::Shared,
                "local" => Space::Local,
                "const" => Space::Const,
                "param" | "param::entry" | "param::func" => Space::Param,
                _ => return None,
            })
        })
    }

    /// Takes the scope of a memory order.
    pub(super) fn scope(&mut self) -> Option<Scope> {
        self.take_map(|m| {
            Some(match m {
                "cta" => Scope::Cta,
                "cluster" => Scope::Cluster,
                "gpu" | "gl" => Scope::Gpu,
                "sys" => Scope::Sys,
                _ => return None,
            })
        })
    }

    /// Takes a memory order.
    pub(super) fn order(&mut self) -> Option<Order> {
        self.take_map(|m| {
            Some(match m {
                "weak" => Order::Weak,
                "volatile" => Order::Volatile,
                "relaxed" => Order::Relaxed,
                "acquire" => Order::Acquire,
                "release" => Order::Release,
                "acq_rel" => Order::AcqRel,
                "sc" => Order::Sc,
                _ => return None,
            })
        })
    }

    /// Takes the rounding.
    pub(super) fn round(&mut self) -> Round {
        self.take_map(round_of).unwrap_or(Round::None)
    }

    /// Takes all cache hints; returns whether a cache policy is among the operands.
    pub(super) fn cache_hints(&mut self) -> bool {
        let mut policy = false;
        while let Some(hint) = self.take_map(|m| is_cache_hint(m).then_some(m)) {
            policy |= hint == "L2::cache_hint";
        }
        policy
    }

    /// Refuses what is left.
    pub(super) fn finish(&self) -> Outcome {
        match self.left().next() {
            None => Ok(()),
            Some((_, ty)) if FOREIGN_TYPES.contains(&ty) => Err(format!("the type `.{ty}` is not supported")),
            Some((_, modifier)) => Err(format!("unknown modifier `.{modifier}`")),
        }
    }
}

fn is_cache_hint(modifier: &str) -> bool {
    match modifier {
        "ca" | "cg" | "cs" | "lu" | "cv" | "nc" | "wb" | "wt" => true,
        _ => ["L1::", "L2::", "level::"].iter().any(|level| {
            let hint = modifier.strip_prefix(level).unwrap_or("");
            matches!(
                hint,
                "evict_normal"
                    | "evict_unchanged"
                    | "evict_first"
                    | "evict_last"
                    | "no_allocate"
                    | "cache_hint"
            ) || matches!(hint, "64B" | "128B" | "256B")
        }),
    }
}

/// Types of the ISA that [`Ty`] does not have.
const FOREIGN_TYPES: &[&str] = &[
    "f32x2", "u16x2", "s16x2", "u8x4", "s8x4", "e4m3", "e5m2", "e4m3x2", "e5m2x2", "e4m3x4", "e5m2x4",
    "e2m1", "e2m1x2", "e2m1x4", "e2m3", "e3m2", "e2m3x2", "e3m2x2", "ue8m0", "ue8m0x2", "ue4m3", "s4", "u4",
    "s2", "u2", "b1", "b4x16", "e8m0", "f8f6f4",
];

/// Reads a type.
pub(super) fn type_of(name: &str) -> Option<Ty> {
    Some(match name {
        "b8" => Ty::B8,
        "b16" => Ty::B16,
        "b32" => Ty::B32,
        "b64" => Ty::B64,
        "b128" => Ty::B128,
        "u8" => Ty::U8,
        "u16" => Ty::U16,
        "u32" => Ty::U32,
        "u64" => Ty::U64,
        "s8" => Ty::S8,
        "s16" => Ty::S16,
        "s32" => Ty::S32,
        "s64" => Ty::S64,
        "f16" => Ty::F16,
        "f16x2" => Ty::F16x2,
        "bf16" => Ty::Bf16,
        "bf16x2" => Ty::Bf16x2,
        "f32" => Ty::F32,
        "tf32" => Ty::Tf32,
        "f64" => Ty::F64,
        "pred" => Ty::Pred,
        _ => return None,
    })
}

/// Writes a type.
pub(super) fn name_of(ty: Ty) -> String {
    format!("{ty:?}").to_lowercase()
}

/// Reads a rounding.
pub(super) fn round_of(name: &str) -> Option<Round> {
    Some(match name {
        "rn" => Round::Nearest,
        "rna" => Round::NearestAway,
        "rz" => Round::Zero,
        "rm" => Round::Down,
        "rp" => Round::Up,
        "rni" => Round::IntNearest,
        "rzi" => Round::IntZero,
        "rmi" => Round::IntDown,
        "rpi" => Round::IntUp,
        _ => return None,
    })
}

/// Returns the bit of a type in a set of types.
pub(super) const fn bit(ty: Ty) -> u32 {
    1 << ty as u32
}

/// `.u16 .s16`
pub(super) const INT16: u32 = bit(Ty::U16) | bit(Ty::S16);
/// `.u32 .s32`
pub(super) const INT32: u32 = bit(Ty::U32) | bit(Ty::S32);
/// `.u64 .s64`
pub(super) const INT64: u32 = bit(Ty::U64) | bit(Ty::S64);
/// All of 16, 32 and 64 bits.
pub(super) const INTS: u32 = INT16 | INT32 | INT64;
/// `.b16 .b32 .b64`
pub(super) const BITS: u32 = bit(Ty::B16) | bit(Ty::B32) | bit(Ty::B64);
/// `.f32`
pub(super) const F32: u32 = bit(Ty::F32);
/// `.f32 .f64`
pub(super) const FLOATS: u32 = F32 | bit(Ty::F64);
/// Halves, alone and in pairs.
pub(super) const HALVES: u32 = bit(Ty::F16) | bit(Ty::F16x2) | bit(Ty::Bf16) | bit(Ty::Bf16x2);
