//! Checks a kernel's instructions once, so that running them can rely on registers, lists and targets that are there.

use super::mma;
use super::module::LoadError;
use super::special::is_wide;
use crate::isa::{Addr, AtomOp, BarRed, Count, Inst, Kernel, List, MbarOp, NONE, Op, Space, Ty};
use crate::regs::Slot;

/// Longest list of a load or store, in registers.
const MAX_VECTOR: u32 = 8;
/// Largest load or store of a thread, in bytes.
const MAX_ACCESS: u32 = 32;

/// Refuses a kernel whose instructions name registers, list entries or targets that do not exist, or forms that are not
/// implemented.
pub fn check_kernel(kernel: &Kernel) -> Result<(), LoadError> {
    if !matches!(kernel.code.last(), Some(Inst { op: Op::Exit, guard: NONE, .. })) {
        return Err(LoadError::malformed(&kernel.name, "its last instruction is not an exit"));
    }
    for inst in &kernel.code {
        let mut check = Checker { kernel, inst, sound: true, known: true };
        check.pred(inst.guard);
        check.op();
        if !check.known {
            return Err(LoadError::unsupported(&kernel.name, inst.line, &format!("{:?}", inst.op)));
        }
        if !check.sound {
            let what = format!("PTX line {}: registers, lists or targets that are not there", inst.line);
            return Err(LoadError::malformed(&kernel.name, &what));
        }
    }
    Ok(())
}

struct Checker<'a> {
    kernel: &'a Kernel,
    inst: &'a Inst,
    sound: bool,
    known: bool,
}

impl Checker<'_> {
    fn r32(&mut self, slot: Slot) {
        self.sound &= slot < self.kernel.r32;
    }

    fn r64(&mut self, slot: Slot) {
        self.sound &= slot < self.kernel.r64;
    }

    fn word(&mut self, slot: Slot, wide: bool) {
        if wide { self.r64(slot) } else { self.r32(slot) }
    }

    /// A register that may be missing.
    fn optional(&mut self, slot: Slot, wide: bool) {
        if slot != NONE {
            self.word(slot, wide);
        }
    }

    fn pred(&mut self, slot: Slot) {
        self.sound &= slot == NONE || slot < self.kernel.preds;
    }

    fn needed_pred(&mut self, slot: Slot) {
        self.sound &= slot < self.kernel.preds;
    }

    fn addr(&mut self, addr: Addr) {
        self.optional(addr.base, addr.wide);
    }

    fn count(&mut self, count: Count) {
        if let Count::Reg(slot) = count {
            self.r32(slot);
        }
    }

    fn list(&mut self, list: List) -> &[Slot] {
        let range = list.start as usize..list.start as usize + list.len as usize;
        let slots = self.kernel.lists.get(range);
        self.sound &= slots.is_some();
        slots.unwrap_or_default()
    }

    fn words(&mut self, list: List, wide: bool, sinks: bool) {
        for slot in self.list(list).to_vec() {
            if sinks { self.optional(slot, wide) } else { self.word(slot, wide) }
        }
    }

    fn vector(&mut self, ty: Ty, list: List, sinks: bool) {
        self.known &= ty != Ty::B128 && ty != Ty::Pred;
        self.sound &= matches!(list.len, 1 | 2 | 4 | 8) && list.len <= MAX_VECTOR;
        self.sound &= list.len * ty.bytes() <= MAX_ACCESS;
        self.words(list, ty.is_wide(), sinks);
    }

    fn atom(&mut self, op: AtomOp, ty: Ty) {
        let integer = matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64);
        self.known &= match op {
            AtomOp::And | AtomOp::Or | AtomOp::Xor => matches!(ty, Ty::B32 | Ty::B64),
            AtomOp::Add => {
                integer || matches!(ty, Ty::F32 | Ty::F64 | Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2)
            }
            AtomOp::Min | AtomOp::Max => integer || matches!(ty, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2),
            AtomOp::Inc | AtomOp::Dec => ty == Ty::U32,
            AtomOp::Exch => matches!(ty, Ty::B32 | Ty::B64),
            AtomOp::Cas => matches!(ty, Ty::B16 | Ty::B32 | Ty::B64),
        };
    }

    fn op(&mut self) {
        match self.inst.op {
            Op::Alu(_) | Op::CpAsyncCommit | Op::CpAsyncWait { .. } | Op::CpAsyncWaitAll => {}
            Op::Exit | Op::Trap | Op::Brkpt | Op::Yield | Op::Fence { .. } => {}
            Op::Ld { ty, dst, addr, .. } => {
                self.vector(ty, dst, true);
                self.addr(addr);
            }
            Op::St { ty, src, addr, space, .. } => {
                self.vector(ty, src, false);
                self.addr(addr);
                self.known &= !matches!(space, Space::Param | Space::Const);
            }
            Op::Hint { addr, .. } | Op::CpAsyncArrive { addr, .. } => self.addr(addr),
            Op::Atom { op, ty, d, addr, b, c, .. } => {
                self.atom(op, ty);
                self.addr(addr);
                self.optional(d, ty.is_wide());
                self.word(b, ty.is_wide());
                if op == AtomOp::Cas {
                    self.word(c, ty.is_wide());
                }
            }
            Op::CpAsync { size, src, dst, from, ignore } => {
                self.sound &= matches!(size, 4 | 8 | 16);
                src.into_iter().for_each(|count| self.count(count));
                self.addr(dst);
                self.addr(from);
                self.pred(ignore);
            }
            Op::LdMatrix { regs, addr, .. } | Op::StMatrix { regs, addr, .. } => {
                self.sound &= matches!(regs.len, 1 | 2 | 4);
                self.words(regs, false, false);
                self.addr(addr);
            }
            Op::Mma { kind, d, a, b, c, satfinite } => match mma::Shape::of(kind) {
                Some(shape) => {
                    self.known &= !satfinite || shape.integer();
                    self.sound &= [a.len, b.len, c.len, d.len] == shape.registers();
                    [a, b, c, d].into_iter().for_each(|list| self.words(list, false, false));
                }
                None => self.known = false,
            },
            _ => self.control(),
        }
    }

    fn control(&mut self) {
        match self.inst.op {
            Op::Cvta { wide, d, a, space, .. } => {
                self.word(d, wide);
                self.word(a, wide);
                self.known &= wide || space == Space::Shared;
            }
            // The address may lie in either file; 64-bit addresses are the only ones today.
            Op::IsSpace { d, a, .. } => {
                self.needed_pred(d);
                self.r64(a);
            }
            Op::Bra { target, .. } => self.sound &= (target as usize) < self.kernel.code.len(),
            Op::Brx { index, targets } => {
                self.r32(index);
                let last = self.kernel.code.len() as u32;
                let inside = self.list(targets).iter().all(|&target| target < last);
                self.sound &= inside;
            }
            Op::BarSync { bar, count, .. } => {
                self.count(bar);
                count.into_iter().for_each(|count| self.count(count));
            }
            Op::BarArrive { bar, count, .. } => {
                self.count(bar);
                self.count(count);
            }
            Op::BarRed { op, bar, count, d, p, .. } => {
                self.count(bar);
                count.into_iter().for_each(|count| self.count(count));
                if op == BarRed::Popc {
                    self.r32(d)
                } else {
                    self.needed_pred(d)
                }
                self.needed_pred(p);
            }
            _ => self.collective(),
        }
    }

    fn collective(&mut self) {
        match self.inst.op {
            Op::BarWarp { mask } => self.r32(mask),
            Op::Shfl { d, p, a, b, c, mask, .. } => {
                self.optional(d, false);
                self.pred(p);
                [a, b, c, mask].into_iter().for_each(|slot| self.r32(slot));
            }
            Op::Vote { mode, d, p, mask, .. } => {
                if mode == crate::isa::Vote::Ballot {
                    self.r32(d)
                } else {
                    self.needed_pred(d)
                }
                self.needed_pred(p);
                self.r32(mask);
            }
            Op::Match { all, wide, d, p, a, mask } => {
                self.optional(d, false);
                self.pred(p);
                self.word(a, wide);
                self.r32(mask);
                self.sound &= all || p == NONE;
            }
            Op::Redux { op, ty, d, a, mask } => {
                [d, a, mask].into_iter().for_each(|slot| self.r32(slot));
                self.known &= match op {
                    AtomOp::Add | AtomOp::Min | AtomOp::Max => matches!(ty, Ty::U32 | Ty::S32),
                    AtomOp::And | AtomOp::Or | AtomOp::Xor => ty == Ty::B32,
                    _ => false,
                };
            }
            Op::ActiveMask { d } => self.r32(d),
            Op::Elect { d, p, mask } => {
                self.optional(d, false);
                self.needed_pred(p);
                self.r32(mask);
            }
            Op::Mbar { op, d, addr, count, .. } => {
                self.optional(d, op != MbarOp::PendingCount);
                self.addr(addr);
                count.into_iter().for_each(|count| self.count(count));
            }
            Op::MbarWait { parity, d, addr, state, .. } => {
                self.needed_pred(d);
                self.addr(addr);
                self.word(state, !parity);
            }
            Op::ReadSpecial { special, d } => self.word(d, is_wide(special)),
            _ => self.known = false,
        }
    }
}
