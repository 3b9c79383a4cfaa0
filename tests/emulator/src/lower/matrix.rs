//! Matrix operations: `mma.sync`, `ldmatrix`, `stmatrix`.

use super::Outcome;
use super::builder::{Builder, Parts};
use super::modifiers::{bit, name_of};
use crate::isa::{List, MmaKind, Op, Ty};
use crate::ptx::ast::Operand;
use crate::regs::Slot;

impl<'a> Builder<'_, 'a> {
    /// `ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {a, b, c, d}, [p]`
    pub(super) fn matrix_move(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        parts.modifiers.sync()?;
        if !parts.modifiers.take("m8n8") {
            return Err("only the shape `.m8n8` is supported".into());
        }
        let count = parts.modifiers.take_map(|m| match m {
            "x1" => Some(1),
            "x2" => Some(2),
            "x4" => Some(4),
            _ => None,
        });
        let Some(count) = count else { return Err("the number of matrices is missing".into()) };
        let trans = parts.modifiers.take("trans");
        let space = parts.modifiers.space();
        parts.modifiers.ty_of(bit(Ty::B16))?;
        parts.modifiers.finish()?;
        parts.count(2, 2)?;
        let load = parts.opcode == "ldmatrix";
        let (registers, address) = if load { (0, 1) } else { (1, 0) };
        let addr = self.shared_address(&parts.operands[address], space, 16)?;
        let regs = self.fragment(&parts.operands[registers], count, load)?;
        self.emit(if load { Op::LdMatrix { trans, regs, addr } } else { Op::StMatrix { trans, regs, addr } });
        Ok(())
    }

    /// Returns the registers of a fragment, of 32 bits each.
    fn fragment(&mut self, operand: &Operand<'a>, count: u32, written: bool) -> Outcome<List> {
        let elements = self.elements(operand);
        if elements.len() != count as usize {
            return Err(format!("a fragment has {} registers, {count} are needed", elements.len()));
        }
        let mut slots: Vec<Slot> = Vec::with_capacity(elements.len());
        for element in &elements {
            slots.push(match written {
                true => self.dest_or_unused(element, Ty::B32)?,
                false => self.source(element, Ty::B32)?,
            });
        }
        if written && (1..slots.len()).any(|i| slots[..i].contains(&slots[i])) {
            return Err("a register is written twice".into());
        }
        Ok(self.list(&slots))
    }

    /// `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {d}, {a}, {b}, {c}`
    pub(super) fn mma(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        if parts.modifiers.take("sp") || parts.modifiers.take("sp::ordered_metadata") {
            return Err("sparse matrix operations are not supported".into());
        }
        parts.modifiers.sync()?;
        let Some((m, n, k)) = parts.modifiers.take_map(shape) else {
            return Err("the shape is missing or not supported".into());
        };
        parts.modifiers.need("row")?;
        parts.modifiers.need("col")?;
        let satfinite = parts.modifiers.take("satfinite");
        let (d, a) = (parts.modifiers.ty()?, parts.modifiers.ty()?);
        let (b, c) = (parts.modifiers.ty()?, parts.modifiers.ty()?);
        parts.modifiers.finish()?;
        let kind = MmaKind { m, n, k, a, b, d, c };
        if !supported(kind) {
            let types = [d, a, b, c].map(name_of).join(".");
            return Err(format!("the shape m{m}n{n}k{k} with `.{types}` is not supported"));
        }
        if satfinite && d != Ty::S32 {
            return Err("`.satfinite` belongs to integer operations".into());
        }
        parts.count(4, 4)?;
        let (rows, columns, length) = (u32::from(m), u32::from(n), u32::from(k));
        let a = self.fragment(&parts.operands[1], packed(rows * length, a), false)?;
        let b = self.fragment(&parts.operands[2], packed(length * columns, b), false)?;
        let c = self.fragment(&parts.operands[3], packed(rows * columns, c), false)?;
        let d = self.fragment(&parts.operands[0], packed(rows * columns, d), true)?;
        self.emit(Op::Mma { kind, d, a, b, c, satfinite });
        Ok(())
    }
}

fn shape(name: &str) -> Option<(u8, u8, u8)> {
    Some(match name {
        "m8n8k4" => (8, 8, 4), // of f64 and of old f16 layouts: none is supported
        "m8n8k16" => (8, 8, 16),
        "m16n8k4" => (16, 8, 4),
        "m16n8k8" => (16, 8, 8),
        "m16n8k16" => (16, 8, 16),
        "m16n8k32" => (16, 8, 32),
        _ => return None,
    })
}

/// Returns whether a shape exists with these types.
fn supported(kind: MmaKind) -> bool {
    let MmaKind { m, n, k, a, b, d, c } = kind;
    match (m, n, k, a) {
        (16, 8, 8 | 16, Ty::F16) => b == a && d == c && matches!(d, Ty::F16 | Ty::F32),
        (16, 8, 8 | 16, Ty::Bf16) | (16, 8, 4 | 8, Ty::Tf32) => b == a && d == Ty::F32 && c == Ty::F32,
        (8, 8, 16, Ty::S8 | Ty::U8) | (16, 8, 16 | 32, Ty::S8 | Ty::U8) => {
            matches!(b, Ty::S8 | Ty::U8) && d == Ty::S32 && c == Ty::S32
        }
        _ => false,
    }
}

/// Returns how many registers each lane holds of a matrix.
fn packed(elements: u32, ty: Ty) -> u32 {
    (elements / 32 * ty.bytes()).div_ceil(4)
}
