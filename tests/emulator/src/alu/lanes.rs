//! Loops over 32 lanes: how operands are read and results are stored.
//!
//! Each family (`unary`, `binary`, ...) takes the computation of one lane and returns the function of a warp. It exists
//! twice, for plain x86-64 and with AVX2 and FMA; the better one is chosen when an instruction is selected. The lane's
//! computation is a type of size zero (a closure that captures nothing), so it is compiled into both loops.

use super::AluFn;
use crate::isa::flag::{CARRY_IN, CARRY_OUT};
use crate::isa::{Alu, NONE};
use crate::regs::{FULL, LANES, Lanes32, Lanes64, Regs, Slot};

/// The type of a value in one lane.
pub(super) trait Lane: Copy {
    /// Such values in all lanes.
    type All: Copy;
    /// Returns an operand's register.
    fn load(regs: &Regs, slot: Slot) -> &Self::All;
    /// Returns the value of one lane.
    fn at(all: &Self::All, lane: usize) -> Self;
    /// Zero in all lanes.
    const ZERO: Self::All;
    /// Sets the value of one lane that is zero.
    fn put(all: &mut Self::All, lane: usize, value: Self);
    /// Writes the lanes of a mask.
    fn store(regs: &mut Regs, slot: Slot, values: &Self::All, mask: u32);
}

macro_rules! lane32 {
    ($($t:ty, |$x:ident| $from:expr, |$y:ident| $to:expr;)*) => {$(
        impl Lane for $t {
            type All = Lanes32;
            #[inline(always)]
            fn load(regs: &Regs, slot: Slot) -> &Lanes32 {
                &regs.r32[slot as usize]
            }
            #[inline(always)]
            fn at(all: &Lanes32, lane: usize) -> $t {
                let $x = all.0[lane];
                $from
            }
            const ZERO: Lanes32 = Lanes32([0; LANES]);
            #[inline(always)]
            fn put(all: &mut Lanes32, lane: usize, $y: $t) {
                all.0[lane] = $to;
            }
            #[inline(always)]
            fn store(regs: &mut Regs, slot: Slot, values: &Lanes32, mask: u32) {
                let Some(d) = regs.r32.get_mut(slot as usize) else {
                    return dropped(slot);
                };
                if mask == FULL {
                    *d = *values;
                    return;
                }
                for lane in 0..LANES {
                    d.0[lane] = if mask >> lane & 1 != 0 { values.0[lane] } else { d.0[lane] };
                }
            }
        }
    )*};
}

lane32! {
    u8, |x| x as u8, |y| u32::from(y);
    i8, |x| x as i8, |y| u32::from(y as u8);
    u16, |x| x as u16, |y| u32::from(y);
    i16, |x| x as i16, |y| u32::from(y as u16);
    u32, |x| x, |y| y;
    i32, |x| x as i32, |y| y as u32;
    f32, |x| f32::from_bits(x), |y| y.to_bits();
}

macro_rules! lane64 {
    ($($t:ty, |$x:ident| $from:expr, |$y:ident| $to:expr;)*) => {$(
        impl Lane for $t {
            type All = Lanes64;
            #[inline(always)]
            fn load(regs: &Regs, slot: Slot) -> &Lanes64 {
                &regs.r64[slot as usize]
            }
            #[inline(always)]
            fn at(all: &Lanes64, lane: usize) -> $t {
                let $x = all.0[lane];
                $from
            }
            const ZERO: Lanes64 = Lanes64([0; LANES]);
            #[inline(always)]
            fn put(all: &mut Lanes64, lane: usize, $y: $t) {
                all.0[lane] = $to;
            }
            #[inline(always)]
            fn store(regs: &mut Regs, slot: Slot, values: &Lanes64, mask: u32) {
                let Some(d) = regs.r64.get_mut(slot as usize) else {
                    return dropped(slot);
                };
                if mask == FULL {
                    *d = *values;
                    return;
                }
                for lane in 0..LANES {
                    d.0[lane] = if mask >> lane & 1 != 0 { values.0[lane] } else { d.0[lane] };
                }
            }
        }
    )*};
}

lane64! {
    u64, |x| x, |y| y;
    i64, |x| x as i64, |y| y as u64;
    f64, |x| f64::from_bits(x), |y| y.to_bits();
}

impl Lane for bool {
    type All = u32;
    #[inline(always)]
    fn load(regs: &Regs, slot: Slot) -> &u32 {
        &regs.pred[slot as usize]
    }
    #[inline(always)]
    fn at(all: &u32, lane: usize) -> bool {
        all >> lane & 1 != 0
    }
    const ZERO: u32 = 0;
    #[inline(always)]
    fn put(all: &mut u32, lane: usize, value: bool) {
        *all |= u32::from(value) << lane;
    }
    #[inline(always)]
    fn store(regs: &mut Regs, slot: Slot, values: &u32, mask: u32) {
        let Some(d) = regs.pred.get_mut(slot as usize) else {
            return dropped(slot);
        };
        *d = *d & !mask | values & mask;
    }
}

/// Computes the value of each lane. A macro, since a closure may be left out of line: see [`lane`].
macro_rules! collect {
    ($t:ty, $lane:ident => $value:expr) => {{
        let mut all = <$t as $crate::alu::lanes::Lane>::ZERO;
        for $lane in 0..$crate::regs::LANES {
            <$t as $crate::alu::lanes::Lane>::put(&mut all, $lane, $value);
        }
        all
    }};
}
pub(super) use collect;

/// Checks that a result outside the file is one that nobody wants.
#[inline(always)]
fn dropped(slot: Slot) {
    debug_assert_eq!(slot, NONE, "a result's slot lies outside its file");
}

/// Returns whether the machine has what the fast loops need.
pub(super) fn fast() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
}

/// Returns the value of a type without size, of which the caller has seen one.
#[inline(always)]
pub(super) fn conjure<F: Copy>() -> F {
    const { assert!(size_of::<F>() == 0, "the computation of a lane captures nothing") };
    // SAFETY: a value of size zero has no bits; `F` is inhabited, since each family takes a value of it by argument.
    unsafe { std::ptr::NonNull::<F>::dangling().read() }
}

/// Defines a function twice, plain and with AVX2 and FMA, and a selector between both.
macro_rules! twice {
    ($(#[$doc:meta])* $name:ident, $plain:ident, $fast:ident,
     <$($g:ident: $bound:path),*>, $f:ident: $signature:path, ($regs:ident, $i:ident, $mask:ident) $body:block) => {
        $(#[$doc])*
        pub(super) fn $name<$($g: $bound,)* F: $signature + Copy>(_: F) -> AluFn {
            #[inline(always)]
            fn body<$($g: $bound,)* F: $signature + Copy>($regs: &mut Regs, $i: &Alu, $mask: u32) {
                let $f: F = $crate::alu::lanes::conjure();
                $body
            }
            // SAFETY: safe to call anywhere; `unsafe` only to share the type of the fast one.
            unsafe fn $plain<$($g: $bound,)* F: $signature + Copy>(regs: &mut Regs, i: &Alu, mask: u32) {
                body::<$($g,)* F>(regs, i, mask);
            }
            #[target_feature(enable = "avx2,fma,bmi1,bmi2,f16c,lzcnt,popcnt")]
            fn $fast<$($g: $bound,)* F: $signature + Copy>(regs: &mut Regs, i: &Alu, mask: u32) {
                body::<$($g,)* F>(regs, i, mask);
            }
            if fast() { $fast::<$($g,)* F> } else { $plain::<$($g,)* F> }
        }
    };
}
pub(super) use twice;

twice! {
    /// d = f(a)
    unary, unary_plain, unary_fast, <D: Lane, A: Lane>, f: Fn(&Alu, A) -> D, (regs, i, mask) {
        let a = A::load(regs, i.a);
        let d = collect!(D, lane => f(i, A::at(a, lane)));
        D::store(regs, i.d, &d, mask);
    }
}

twice! {
    /// d = f(a, b)
    binary, binary_plain, binary_fast, <D: Lane, A: Lane, B: Lane>, f: Fn(&Alu, A, B) -> D, (regs, i, mask) {
        let (a, b) = (A::load(regs, i.a), B::load(regs, i.b));
        let d = collect!(D, lane => f(i, A::at(a, lane), B::at(b, lane)));
        D::store(regs, i.d, &d, mask);
    }
}

twice! {
    /// d = f(a, b, c)
    ternary, ternary_plain, ternary_fast, <D: Lane, A: Lane, B: Lane, C: Lane>,
    f: Fn(&Alu, A, B, C) -> D, (regs, i, mask) {
        let (a, b, c) = (A::load(regs, i.a), B::load(regs, i.b), C::load(regs, i.c));
        let d = collect!(D, lane => f(i, A::at(a, lane), B::at(b, lane), C::at(c, lane)));
        D::store(regs, i.d, &d, mask);
    }
}

twice! {
    /// d = f(a, b, c, d2): the last slot is an operand here
    quaternary, quaternary_plain, quaternary_fast, <D: Lane, A: Lane, B: Lane>,
    f: Fn(&Alu, A, A, B, B) -> D, (regs, i, mask) {
        let (a, b) = (A::load(regs, i.a), A::load(regs, i.b));
        let (c, e) = (B::load(regs, i.c), B::load(regs, i.d2));
        let d = collect!(D, lane => f(i, A::at(a, lane), A::at(b, lane), B::at(c, lane), B::at(e, lane)));
        D::store(regs, i.d, &d, mask);
    }
}

twice! {
    /// (d, carry) = f(a, b, carry)
    carrying, carrying_plain, carrying_fast, <A: Lane>,
    f: Fn(&Alu, A, A, bool) -> (A, bool), (regs, i, mask) {
        let (a, b) = (A::load(regs, i.a), A::load(regs, i.b));
        let carry_in = if i.flags & CARRY_IN != 0 { regs.carry } else { 0 };
        let (mut d, mut out) = (A::ZERO, 0);
        for lane in 0..LANES {
            let (value, carry) = f(i, A::at(a, lane), A::at(b, lane), bool::at(&carry_in, lane));
            A::put(&mut d, lane, value);
            bool::put(&mut out, lane, carry);
        }
        A::store(regs, i.d, &d, mask);
        set_carry(regs, i, out, mask);
    }
}

twice! {
    /// (d, carry) = f(a, b, c, carry)
    carrying_product, carrying_product_plain, carrying_product_fast, <A: Lane>,
    f: Fn(&Alu, A, A, A, bool) -> (A, bool), (regs, i, mask) {
        let (a, b, c) = (A::load(regs, i.a), A::load(regs, i.b), A::load(regs, i.c));
        let carry_in = if i.flags & CARRY_IN != 0 { regs.carry } else { 0 };
        let (mut d, mut out) = (A::ZERO, 0);
        for lane in 0..LANES {
            let (value, carry) =
                f(i, A::at(a, lane), A::at(b, lane), A::at(c, lane), bool::at(&carry_in, lane));
            A::put(&mut d, lane, value);
            bool::put(&mut out, lane, carry);
        }
        A::store(regs, i.d, &d, mask);
        set_carry(regs, i, out, mask);
    }
}

/// Writes the carry flag of the lanes of a mask, if the instruction does.
fn set_carry(regs: &mut Regs, i: &Alu, carry: u32, mask: u32) {
    if i.flags & CARRY_OUT != 0 {
        regs.carry = regs.carry & !mask | carry & mask;
    }
}

/// The computation of a lane with one operand: see [`lane`].
pub(super) trait Unary<D, A>: Copy {
    /// Computes the result.
    fn apply(self, i: &Alu, a: A) -> D;
}

/// With two operands.
pub(super) trait Binary<D, A, B>: Copy {
    /// Computes the result.
    fn apply(self, i: &Alu, a: A, b: B) -> D;
}

/// With three operands.
pub(super) trait Ternary<D, A, B, C>: Copy {
    /// Computes the result.
    fn apply(self, i: &Alu, a: A, b: B, c: C) -> D;
}

twice! {
    /// Like [`unary`], for a [`lane`].
    unary_lane, unary_lane_plain, unary_lane_fast, <D: Lane, A: Lane>, f: Unary<D, A>, (regs, i, mask) {
        let a = A::load(regs, i.a);
        let d = collect!(D, lane => f.apply(i, A::at(a, lane)));
        D::store(regs, i.d, &d, mask);
    }
}

twice! {
    /// Like [`binary`], for a [`lane`].
    binary_lane, binary_lane_plain, binary_lane_fast, <D: Lane, A: Lane, B: Lane>,
    f: Binary<D, A, B>, (regs, i, mask) {
        let (a, b) = (A::load(regs, i.a), B::load(regs, i.b));
        let d = collect!(D, lane => f.apply(i, A::at(a, lane), B::at(b, lane)));
        D::store(regs, i.d, &d, mask);
    }
}

twice! {
    /// Like [`ternary`], for a [`lane`].
    ternary_lane, ternary_lane_plain, ternary_lane_fast, <D: Lane, A: Lane, B: Lane, C: Lane>,
    f: Ternary<D, A, B, C>, (regs, i, mask) {
        let (a, b, c) = (A::load(regs, i.a), B::load(regs, i.b), C::load(regs, i.c));
        let d = collect!(D, lane => f.apply(i, A::at(a, lane), B::at(b, lane), C::at(c, lane)));
        D::store(regs, i.d, &d, mask);
    }
}

/// Makes the computation of a lane that must be compiled into the loop however large it is: a closure may be left out of
/// line, and would then be compiled for plain x86-64.
macro_rules! lane {
    (|$i:pat_param, $a:ident: $ta:ty| -> $d:ty $body:block) => {{
        #[derive(Clone, Copy)]
        struct Computation;
        impl $crate::alu::lanes::Unary<$d, $ta> for Computation {
            #[inline(always)]
            fn apply(self, $i: &Alu, $a: $ta) -> $d $body
        }
        Computation
    }};
    (|$i:pat_param, $a:ident: $ta:ty, $b:ident: $tb:ty| -> $d:ty $body:block) => {{
        #[derive(Clone, Copy)]
        struct Computation;
        impl $crate::alu::lanes::Binary<$d, $ta, $tb> for Computation {
            #[inline(always)]
            fn apply(self, $i: &Alu, $a: $ta, $b: $tb) -> $d $body
        }
        Computation
    }};
    (|$i:pat_param, $a:ident: $ta:ty, $b:ident: $tb:ty, $c:ident: $tc:ty| -> $d:ty $body:block) => {{
        #[derive(Clone, Copy)]
        struct Computation;
        impl $crate::alu::lanes::Ternary<$d, $ta, $tb, $tc> for Computation {
            #[inline(always)]
            fn apply(self, $i: &Alu, $a: $ta, $b: $tb, $c: $tc) -> $d $body
        }
        Computation
    }};
}
pub(super) use lane;

/// Matches a type suffix with the Rust type that computes it: `by_type!(ty, T in [U32 = u32, ...] => function)`.
macro_rules! by_type {
    ($ty:expr, $alias:ident in [$($($variant:ident)|+ = $t:ty),* $(,)?] => $body:expr) => {
        match $ty {
            $($(Ty::$variant)|+ => {
                type $alias = $t;
                Some($body)
            })*
            _ => None,
        }
    };
}
pub(super) use by_type;
