//! Variables: their layout, and the initial values of global and constant ones.

use std::collections::HashMap;

use super::modifiers::type_of;
use super::names::Variable;
use super::operand::bits_of;
use super::{Error, Outcome};
use crate::isa;
use crate::ptx::ast;

/// Bytes of one variable.
const MAX_SIZE: u64 = 1 << 36;
/// Bytes of all initial values of a module.
const MAX_INITIAL: usize = 64 << 20;
/// Bytes of all constant variables: the hardware's bank.
const MAX_CONSTANT: u64 = 64 << 10;

/// A name at module level.
#[derive(Clone, Copy, Debug)]
enum Symbol {
    Global(u32, bool),
    /// Size and alignment; dynamic if the size is open.
    Shared(u64, u64, bool),
    External,
    Function(bool),
}

/// The names of a module, and the module that grows.
#[derive(Debug, Default)]
pub(super) struct Symbols<'a> {
    pub out: isa::Module,
    names: HashMap<&'a str, Symbol>,
    /// Where the shared variables of the kernel at hand lie.
    placed: HashMap<&'a str, u64>,
    initial_bytes: usize,
    constant_bytes: u64,
}

/// Size of an element, size of the whole or `None`, alignment.
pub(super) fn layout(variable: &ast::Variable<'_>) -> Outcome<(u64, Option<u64>, u64)> {
    let ty = variable.ty;
    let name = variable.name;
    if matches!(ty, "texref" | "samplerref" | "surfref") {
        return Err(format!("`{name}`: textures and surfaces are not supported"));
    }
    let element = match type_of(ty).map(isa::Ty::bytes) {
        Some(bytes @ 1..=8) => u64::from(bytes),
        _ => return Err(format!("`{name}`: a variable of the type `.{ty}` is not supported")),
    };
    let natural = element * u64::from(variable.vector);
    let align = variable.align.unwrap_or(natural);
    if !align.is_power_of_two() || align > 1 << 16 {
        return Err(format!("`{name}`: the alignment {align} is not a power of two up to 65536"));
    }
    let size = match variable.length {
        None => None,
        Some(length) => match natural.checked_mul(length).filter(|&size| size <= MAX_SIZE) {
            Some(size) => Some(size),
            None => return Err(format!("`{name}` is larger than {MAX_SIZE} bytes")),
        },
    };
    Ok((element, size, align.max(1)))
}

impl<'a> Symbols<'a> {
    pub(super) fn new(out: isa::Module) -> Self {
        Self { out, ..Self::default() }
    }

    /// Enters a function's name; only one function may define it.
    pub(super) fn declare_function(&mut self, name: &'a str, defined: bool) -> Outcome {
        match self.names.insert(name, Symbol::Function(defined)) {
            Some(Symbol::Function(true)) if defined => Err(format!("the function `{name}` is defined twice")),
            Some(Symbol::Function(true)) => {
                self.names.insert(name, Symbol::Function(true));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Enters the variables of a module.
    pub(super) fn declare(&mut self, variables: &[ast::Variable<'a>]) -> Result<(), Error> {
        for variable in variables {
            self.declare_one(variable).map_err(|reason| Error::new(variable.line, reason))?;
        }
        for variable in variables {
            self.fill(variable).map_err(|reason| Error::new(variable.line, reason))?;
        }
        Ok(())
    }

    fn declare_one(&mut self, variable: &ast::Variable<'a>) -> Outcome {
        let (name, old) = (variable.name, self.names.get(variable.name).copied());
        let symbol = match variable.space {
            ast::Space::Global | ast::Space::Const if variable.external => match old {
                Some(Symbol::Global(..)) => return Ok(()),
                _ => Symbol::External,
            },
            ast::Space::Shared => {
                let (_, size, align) = layout(variable)?;
                let dynamic = variable.external && size.unwrap_or(0) == 0;
                if !dynamic && (size.is_none() || variable.external) {
                    return Err(format!("the shared variable `{name}` has no size, or is defined elsewhere"));
                }
                Symbol::Shared(size.unwrap_or(0), align, dynamic)
            }
            ast::Space::Global | ast::Space::Const => match old {
                Some(Symbol::External) | None => self.global(variable, name.to_string())?,
                Some(_) => return Err(format!("`{name}` is declared twice")),
            },
            ast::Space::Local | ast::Space::Param => {
                return Err(format!("`{name}`: local variables and parameters belong into a function"));
            }
        };
        if old.is_some_and(|old| {
            !matches!((old, symbol), (Symbol::External, _) | (Symbol::Shared(.., true), _))
        }) {
            return Err(format!("`{name}` is declared twice"));
        }
        self.names.insert(name, symbol);
        Ok(())
    }

    /// Adds a global or constant variable to the module, without its initial value.
    fn global(&mut self, variable: &ast::Variable<'a>, name: String) -> Outcome<Symbol> {
        let constant = variable.space == ast::Space::Const;
        let (element, size, align) = layout(variable)?;
        let size = match (size, &variable.initial) {
            (Some(size), _) => size,
            (None, Some(values)) => values.len() as u64 * element,
            (None, None) => return Err(format!("`{name}` has no size")),
        };
        if constant {
            self.constant_bytes = self.constant_bytes.saturating_add(size);
            if self.constant_bytes > MAX_CONSTANT {
                return Err(format!("more than {MAX_CONSTANT} bytes of constant memory"));
            }
        }
        let (init, relocations) = (Vec::new(), Vec::new());
        self.out.globals.push(isa::Global { name, constant, size, align: align as u32, init, relocations });
        Ok(Symbol::Global(self.out.globals.len() as u32 - 1, constant))
    }

    fn fill(&mut self, variable: &ast::Variable<'a>) -> Outcome {
        let Some(values) = &variable.initial else { return Ok(()) };
        match self.names.get(variable.name) {
            Some(&Symbol::Global(index, _)) if !variable.external => self.initialise(index, variable, values),
            _ => Err(format!("`{}` cannot have an initial value", variable.name)),
        }
    }

    /// Declares a global or constant variable inside of a function.
    pub(super) fn local_global(&mut self, variable: &ast::Variable<'a>, kernel: &str) -> Outcome<Variable> {
        let name = format!("{kernel}${}", variable.name);
        let Symbol::Global(index, constant) = self.global(variable, name)? else {
            return Err(format!("`{}` cannot be declared here", variable.name));
        };
        if let Some(values) = &variable.initial {
            self.initialise(index, variable, values)?;
        }
        Ok(Variable::Global(index, constant))
    }

    fn initialise(
        &mut self,
        index: u32,
        variable: &ast::Variable<'a>,
        values: &[ast::Initial<'a>],
    ) -> Outcome {
        let name = variable.name;
        let (element, ..) = layout(variable)?;
        let Some(ty) = type_of(variable.ty) else { return Err(format!("`{name}`: unknown type")) };
        let size = self.out.globals[index as usize].size;
        let (mut init, mut relocations) = (Vec::new(), Vec::new());
        let mut position = 0u64;
        for value in values {
            let bits = match *value {
                ast::Initial::PadTo(to) => {
                    position = to.saturating_mul(element);
                    continue;
                }
                ast::Initial::Number(number) => bits_of(number, ty)?,
                ast::Initial::Address { name: of, offset, .. } => {
                    if element != 8 {
                        return Err(format!("`{name}`: the address of `{of}` needs 64 bits"));
                    }
                    match self.names.get(of) {
                        Some(&Symbol::Global(target, _)) => relocations.push((position, target, offset)),
                        Some(_) => {
                            return Err(format!("`{name}`: the address of `{of}` is not supported here"));
                        }
                        None => return Err(format!("`{name}`: `{of}` is not declared")),
                    }
                    0
                }
            };
            let end = position.saturating_add(element);
            if end > size {
                return Err(format!("`{name}` has more initial values than elements"));
            }
            if end > (MAX_INITIAL - self.initial_bytes) as u64 {
                return Err(format!("more than {MAX_INITIAL} bytes of initial values"));
            }
            init.resize(position as usize, 0);
            init.extend_from_slice(&bits.to_le_bytes()[..element as usize]);
            position = end;
        }
        self.initial_bytes += init.len();
        let global = &mut self.out.globals[index as usize];
        (global.init, global.relocations) = (init, relocations);
        Ok(())
    }

    /// Finds a variable by its name.
    pub(super) fn find(&self, name: &str) -> Outcome<Option<Variable>> {
        Ok(match self.names.get(name) {
            None => None,
            Some(&Symbol::Global(index, constant)) => Some(Variable::Global(index, constant)),
            Some(Symbol::Shared(..)) => self.placed.get(name).map(|&offset| Variable::Shared(offset)),
            Some(Symbol::External) => {
                return Err(format!("`{name}` is declared `.extern` and defined nowhere in this module"));
            }
            Some(Symbol::Function(_)) => {
                return Err(format!("the address of the function `{name}` is not supported"));
            }
        })
    }

    /// Lays out the shared variables of a kernel: those of the module that it names, then its own.
    ///
    /// Returns the bytes of the static part, the alignment of the dynamic part (0 if there is none), and the offsets of the
    /// kernel's own variables, in the order of `body.variables`.
    pub(super) fn place_shared(&mut self, body: &ast::Body<'a>) -> Outcome<(u64, u64, Vec<u64>)> {
        self.placed.clear();
        let mut end = 0u64;
        let (mut dynamic, mut dynamic_names) = (0u64, Vec::new());
        let named = body.operands.iter().chain(&body.elements).filter_map(|operand| match operand {
            ast::Operand::Name(name) | ast::Operand::Sum(name, _) => Some(*name),
            ast::Operand::Address(address) => address.base,
            _ => None,
        });
        for name in named.filter(|name| !name.starts_with('%')) {
            let Some((&name, &Symbol::Shared(size, align, is_dynamic))) = self.names.get_key_value(name)
            else {
                continue;
            };
            if is_dynamic {
                dynamic = dynamic.max(align);
                dynamic_names.push(name);
            } else if !self.placed.contains_key(name) {
                let start = end.next_multiple_of(align);
                self.placed.insert(name, start);
                end = start.saturating_add(size).min(1 << 40);
            }
        }
        let mut own = Vec::with_capacity(body.variables.len());
        for variable in &body.variables {
            if variable.space != ast::Space::Shared {
                own.push(0);
                continue;
            }
            let (_, size, align) = layout(variable)?;
            let Some(size) = size else {
                return Err(format!("the shared variable `{}` has no size", variable.name));
            };
            let start = end.next_multiple_of(align);
            own.push(start);
            end = start.saturating_add(size).min(1 << 40);
        }
        let base = if dynamic == 0 { end } else { end.next_multiple_of(dynamic) };
        self.placed.extend(dynamic_names.into_iter().map(|name| (name, base)));
        Ok((end, dynamic, own))
    }
}
