//! Operands: registers, immediates, special registers, addresses.

use super::Outcome;
use super::builder::{Builder, File, Register};
use super::modifiers::name_of;
use super::names::{Symbol, Variable};
use crate::isa::{Addr, AluOp, Count, NONE, Op, Space, Special, Ty, Value};
use crate::ptx::ast::{Address, Number, Operand, Span};
use crate::regs::Slot;

impl<'a> Builder<'_, 'a> {
    /// Finds a name that the function or the module declares.
    fn symbol(&mut self, name: &'a str) -> Outcome<Option<Symbol>> {
        let registers = &mut self.registers;
        match self.names.find(name, |ty| Register::push(registers, ty, false)) {
            Some(symbol) => Ok(Some(symbol)),
            None => Ok(self.symbols.find(name)?.map(Symbol::Variable)),
        }
    }

    /// Finds a register.
    pub(super) fn named_register(&mut self, name: &'a str) -> Outcome<Slot> {
        match self.symbol(name)? {
            Some(Symbol::Register(slot)) => Ok(slot),
            Some(Symbol::Variable(_)) => Err(format!("`{name}` is a variable, a register is needed")),
            None if name == "_" => Err("`_` is not allowed here".into()),
            None => Err(format!("the register `{name}` is not declared")),
        }
    }

    fn check(&self, name: &str, slot: Slot, ty: Ty) -> Outcome<Slot> {
        let register = self.registers[slot as usize];
        match (register.file == File::Pred) == (ty == Ty::Pred) && register.bytes == ty.bytes() {
            true => Ok(slot),
            false if ty == Ty::Pred => Err(format!("`{name}` is not a predicate")),
            false if register.file == File::Pred => Err(format!("`{name}` is a predicate")),
            false => {
                let (found, needed) = (register.bytes * 8, ty.bytes() * 8);
                Err(format!("`{name}` has {found} bits, the type `.{}` needs {needed}", name_of(ty)))
            }
        }
    }

    /// Returns the register of a result.
    pub(super) fn dest(&mut self, operand: &Operand<'a>, ty: Ty) -> Outcome<Slot> {
        match *operand {
            Operand::Name(name) => {
                let slot = self.named_register(name)?;
                self.check(name, slot, ty)
            }
            _ => Err("the result must be a register".into()),
        }
    }

    /// Returns the register of a result that may be `_`: [`NONE`] then.
    pub(super) fn dest_or_none(&mut self, operand: &Operand<'a>, ty: Ty) -> Outcome<Slot> {
        match *operand {
            Operand::Name("_") => Ok(NONE),
            _ => self.dest(operand, ty),
        }
    }

    /// Returns the register of a result that may be `_`: one that nobody reads then.
    pub(super) fn dest_or_unused(&mut self, operand: &Operand<'a>, ty: Ty) -> Outcome<Slot> {
        match *operand {
            Operand::Name("_") => Ok(self.temporary(ty)),
            _ => self.dest(operand, ty),
        }
    }

    /// Returns the results of `d|p`: the second is [`NONE`] where there is none.
    pub(super) fn pair(&mut self, operand: &Operand<'a>, d: Ty, p: Ty) -> Outcome<(Slot, Slot)> {
        match *operand {
            Operand::Pair(first, second) => {
                let d = self.dest_or_unused(&Operand::Name(first), d)?;
                Ok((d, self.dest_or_none(&Operand::Name(second), p)?))
            }
            _ => Ok((self.dest(operand, d)?, NONE)),
        }
    }

    /// Returns a register that holds an operand of a type.
    pub(super) fn source(&mut self, operand: &Operand<'a>, ty: Ty) -> Outcome<Slot> {
        match *operand {
            Operand::Name(name) => match self.symbol(name)? {
                Some(Symbol::Register(slot)) => self.check(name, slot, ty),
                Some(Symbol::Variable(variable)) => self.address_of(name, variable, 0, ty),
                None => self.special(name, None, ty),
            },
            Operand::Component(name, component) => self.special(name, Some(component), ty),
            Operand::Sum(name, offset) => match self.symbol(name)? {
                Some(Symbol::Variable(variable)) => self.address_of(name, variable, offset, ty),
                _ => Err(format!("`{name}` is not a variable")),
            },
            Operand::Number(number) if ty == Ty::Pred => {
                let value = bits_of(number, Ty::U32)?;
                let (zero, value) = (self.bits(false, 0), self.bits(false, u64::from(value != 0)));
                let d = self.temporary(Ty::Pred);
                self.alu(AluOp::Setp(crate::isa::Cmp::Ne, None), Ty::U32, d, value, zero);
                Ok(d)
            }
            Operand::Number(number) => {
                let bits = bits_of(number, ty)?;
                Ok(self.bits(ty.is_wide(), bits))
            }
            Operand::Not(name) => {
                let a = self.source(&Operand::Name(name), Ty::Pred)?;
                if ty != Ty::Pred {
                    return Err(format!("`!{name}` is a predicate"));
                }
                let d = self.temporary(Ty::Pred);
                self.alu(AluOp::Not, Ty::Pred, d, a, NONE);
                Ok(d)
            }
            Operand::Vector(_) => Err("a vector is not allowed here".into()),
            Operand::Pair(..) => Err("`a|b` is not allowed here".into()),
            Operand::Address(_) => Err("an address is not allowed here".into()),
        }
    }

    /// Returns a predicate and whether it is negated.
    pub(super) fn predicate(&mut self, operand: &Operand<'a>) -> Outcome<(Slot, bool)> {
        match *operand {
            Operand::Not(name) => Ok((self.source(&Operand::Name(name), Ty::Pred)?, true)),
            _ => Ok((self.source(operand, Ty::Pred)?, false)),
        }
    }

    /// Returns a number or a 32-bit register.
    pub(super) fn counted(&mut self, operand: &Operand<'a>) -> Outcome<Count> {
        match *operand {
            Operand::Number(number) => Ok(Count::Imm(bits_of(number, Ty::U32)? as u32)),
            _ => Ok(Count::Reg(self.source(operand, Ty::U32)?)),
        }
    }

    /// Returns a number that must be given as one.
    pub(super) fn immediate(&self, operand: &Operand<'a>, limit: u32) -> Outcome<u32> {
        let Operand::Number(number) = *operand else { return Err("a constant is needed".into()) };
        match bits_of(number, Ty::U32)? {
            value if value <= u64::from(limit) => Ok(value as u32),
            value => Err(format!("{value} is above {limit}")),
        }
    }

    /// Returns the elements of a vector operand, or the operand itself.
    pub(super) fn elements(&self, operand: &Operand<'a>) -> Vec<Operand<'a>> {
        match operand {
            Operand::Vector(span) => self.vector(*span).to_vec(),
            other => vec![*other],
        }
    }

    fn vector(&self, span: Span) -> &[Operand<'a>] {
        span.of(&self.body.elements)
    }

    /// Returns a register with the address of a variable, in its own space.
    fn address_of(&mut self, name: &str, variable: Variable, offset: i64, ty: Ty) -> Outcome<Slot> {
        let wide = match ty {
            Ty::B64 | Ty::U64 | Ty::S64 => true,
            Ty::B32 | Ty::U32 | Ty::S32 if !matches!(variable, Variable::Global(..)) => false,
            _ => return Err(format!("the address of `{name}` does not fit into `.{}`", name_of(ty))),
        };
        let base = match variable {
            Variable::Shared(base) | Variable::Local(base) => base,
            Variable::Param(base, _) => u64::from(base),
            Variable::Global(index, _) => {
                return Ok(self.constant(true, Value::Global { index, offset, generic: false }));
            }
        };
        let address = base.wrapping_add(offset as u64);
        Ok(self.bits(wide, if wide { address } else { address & 0xffff_ffff }))
    }

    fn special(&mut self, name: &str, component: Option<&str>, ty: Ty) -> Outcome<Slot> {
        let whole = || match component {
            Some(component) => format!("{name}.{component}"),
            None => name.to_string(),
        };
        let Some((special, own)) = special_of(name, component) else {
            return match (name.starts_with('%'), component) {
                (true, None) if !is_foreign(name) => Err(format!("the register `{name}` is not declared")),
                (true, _) => Err(format!("the special register `{}` is not supported", whole())),
                (false, _) => Err(format!("`{}` is not declared", whole())),
            };
        };
        let slot =
            if matches!(special, Special::Clock | Special::ClockHi | Special::Clock64 | Special::GlobalTimer)
            {
                let d = self.temporary(own);
                self.emit(Op::ReadSpecial { special, d });
                d
            } else {
                self.constant(own.is_wide(), Value::Special(special))
            };
        let slot = match name {
            "%globaltimer_hi" => {
                let (d, amount) = (self.temporary(Ty::U64), self.bits(false, 32));
                self.alu(AluOp::Shr, Ty::U64, d, slot, amount);
                self.converted(Ty::U32, Ty::U64, d)
            }
            "%globaltimer_lo" => self.converted(Ty::U32, Ty::U64, slot),
            _ => slot,
        };
        let own = if name.starts_with("%globaltimer_") { Ty::U32 } else { own };
        match (own.bytes(), ty.bytes()) {
            (own, needed) if own == needed && !ty.is_float() => Ok(slot),
            (8, 4) if name == "%gridid" => Ok(self.converted(Ty::U32, Ty::U64, slot)),
            (4, 2) => Ok(self.converted(Ty::U16, Ty::U32, slot)),
            (4, 8) => Ok(self.converted(Ty::U64, Ty::U32, slot)),
            _ => Err(format!("`{}` has {} bits, not those of `.{}`", whole(), own.bytes() * 8, name_of(ty))),
        }
    }

    /// Returns the address of an operand in brackets; `bytes` are accessed there.
    pub(super) fn address(&mut self, operand: &Operand<'a>, space: Space, bytes: u32) -> Outcome<Addr> {
        let Operand::Address(address) = *operand else {
            return Err("an address in brackets is needed".into());
        };
        if address.coordinates {
            return Err("an address with coordinates is not allowed here".into());
        }
        let Address { base, offset, .. } = address;
        let Some(name) = base else { return Ok(Addr { base: NONE, wide: true, offset }) };
        match self.symbol(name)? {
            Some(Symbol::Register(slot)) => {
                let register = self.registers[slot as usize];
                if i32::try_from(offset).is_err() {
                    return Err(format!("the offset {offset} does not fit into 32 bits"));
                }
                match register.file {
                    File::Wide => Ok(Addr { base: slot, wide: true, offset }),
                    File::Narrow
                        if register.bytes == 4 && !matches!(space, Space::Global | Space::Generic) =>
                    {
                        Ok(Addr { base: slot, wide: false, offset })
                    }
                    _ => Err(format!("the address register `{name}` must have 64 bits")),
                }
            }
            Some(Symbol::Variable(variable)) => self.variable_address(name, variable, offset, space, bytes),
            None if name.starts_with('%') => Err(format!("the register `{name}` is not declared")),
            None => Err(format!("`{name}` is not declared")),
        }
    }

    fn variable_address(
        &mut self,
        name: &str,
        variable: Variable,
        offset: i64,
        space: Space,
        bytes: u32,
    ) -> Outcome<Addr> {
        let absolute = |base: u64| Addr { base: NONE, wide: true, offset: offset.wrapping_add(base as i64) };
        let generic = space == Space::Generic;
        let value = match (variable, space) {
            (Variable::Shared(base), Space::Shared) | (Variable::Local(base), Space::Local) => {
                return Ok(absolute(base));
            }
            (Variable::Param(base, size), Space::Param) => {
                let end = offset.checked_add(i64::from(bytes));
                if offset < 0 || end.is_none_or(|end| end > i64::from(size)) {
                    return Err(format!(
                        "{bytes} bytes at offset {offset} are not inside of `{name}`, {size} bytes"
                    ));
                }
                return Ok(absolute(u64::from(base)));
            }
            (Variable::Global(index, false), Space::Global | Space::Generic)
            | (Variable::Global(index, true), Space::Const | Space::Generic) => {
                Value::Global { index, offset: 0, generic }
            }
            (Variable::Shared(base), Space::Generic) => Value::GenericShared(base),
            (Variable::Local(base), Space::Generic) => Value::GenericLocal(base),
            (Variable::Param(base, _), Space::Generic) => Value::GenericParam(u64::from(base)),
            _ => {
                let space = format!("{space:?}").to_lowercase();
                return Err(format!("`{name}` is not a variable of the space `.{space}`"));
            }
        };
        Ok(Addr { base: self.constant(true, value), wide: true, offset })
    }
}

/// Converts an immediate to the bits of a type, zero-extended.
pub(super) fn bits_of(number: Number, ty: Ty) -> Outcome<u64> {
    let wrong = || Err(format!("a constant of this form is not of the type `.{}`", name_of(ty)));
    match (number, ty) {
        (Number::Integer { .. }, Ty::F32 | Ty::F64 | Ty::Pred | Ty::B128) => wrong(),
        (Number::Integer { bits, unsigned }, _) => {
            let width = ty.bytes() * 8;
            let value = if unsigned { i128::from(bits) } else { i128::from(bits as i64) };
            if value < -(1i128 << (width - 1)) || value >= 1i128 << width {
                return Err(format!("{value} does not fit into `.{}`", name_of(ty)));
            }
            Ok(if width == 64 { bits } else { bits & ((1 << width) - 1) })
        }
        (Number::Single(bits), Ty::F64) => Ok(f64::from(f32::from_bits(bits)).to_bits()),
        (Number::Single(bits), _) if ty.bytes() == 4 => Ok(u64::from(bits)),
        (Number::Double { value, .. }, Ty::F32) => Ok(u64::from((value as f32).to_bits())),
        (Number::Double { value, .. }, Ty::F64) => Ok(value.to_bits()),
        (Number::Double { value, exact: true }, _) if ty.bytes() == 8 => Ok(value.to_bits()),
        _ => wrong(),
    }
}

/// Returns whether a name is that of a special register that the machine does not have.
fn is_foreign(name: &str) -> bool {
    let families = ["%envreg", "%pm", "%reserved_smem_offset"];
    let single = ["%is_explicit_cluster", "%aggr_smem_size", "%current_graph_exec"];
    single.contains(&name) || families.iter().any(|family| name.starts_with(family))
}

/// Returns a special register and its type.
fn special_of(name: &str, component: Option<&str>) -> Option<(Special, Ty)> {
    let axis = match component {
        None => None,
        Some("x") => Some(0u8),
        Some("y") => Some(1),
        Some("z") => Some(2),
        Some(_) => return None,
    };
    let special = match (name, axis) {
        ("%tid", Some(axis)) => Special::Tid(axis),
        ("%ntid", Some(axis)) => Special::Ntid(axis),
        ("%ctaid", Some(axis)) => Special::Ctaid(axis),
        ("%nctaid", Some(axis)) => Special::Nctaid(axis),
        ("%clusterid", Some(axis)) => Special::ClusterId(axis),
        ("%nclusterid", Some(axis)) => Special::NClusterId(axis),
        ("%cluster_ctaid", Some(axis)) => Special::ClusterCtaid(axis),
        ("%cluster_nctaid", Some(axis)) => Special::ClusterNctaid(axis),
        ("%cluster_ctarank", None) => Special::ClusterCtarank,
        ("%cluster_nctarank", None) => Special::ClusterNctarank,
        ("%laneid", None) => Special::LaneId,
        ("%warpid", None) => Special::WarpId,
        ("%nwarpid", None) => Special::NWarpId,
        ("%smid", None) => Special::SmId,
        ("%nsmid", None) => Special::NSmId,
        ("%lanemask_eq", None) => Special::LaneMaskEq,
        ("%lanemask_le", None) => Special::LaneMaskLe,
        ("%lanemask_lt", None) => Special::LaneMaskLt,
        ("%lanemask_ge", None) => Special::LaneMaskGe,
        ("%lanemask_gt", None) => Special::LaneMaskGt,
        ("%clock", None) => Special::Clock,
        ("%clock_hi", None) => Special::ClockHi,
        ("%dynamic_smem_size", None) => Special::DynamicSmemSize,
        ("%total_smem_size", None) => Special::TotalSmemSize,
        ("%gridid", None) => return Some((Special::GridId, Ty::U64)),
        ("%clock64", None) => return Some((Special::Clock64, Ty::U64)),
        ("%globaltimer" | "%globaltimer_lo" | "%globaltimer_hi", None) => {
            return Some((Special::GlobalTimer, Ty::U64));
        }
        _ => return None,
    };
    Some((special, Ty::U32))
}
