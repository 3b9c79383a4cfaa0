//! Names of a function: registers, variables and labels, by scope.

use std::collections::HashMap;

use super::Outcome;
use crate::isa::Ty;

/// What a name stands for, registers aside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Variable {
    /// Offset in shared memory.
    Shared(u64),
    /// Offset in local memory.
    Local(u64),
    /// Offset and size in the parameters of the kernel.
    Param(u32, u32),
    /// An index into the module's globals; whether it lies in constant memory.
    Global(u32, bool),
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Symbol {
    /// A virtual register.
    Register(u32),
    /// A variable.
    Variable(Variable),
}

/// `.reg .b32 %r<100>`: its registers exist from their first use on.
#[derive(Clone, Debug)]
struct Family {
    ty: Ty,
    count: u32,
    /// Virtual register of each number, or `u32::MAX`.
    registers: Vec<u32>,
}

/// A map with scopes: what is entered in a scope is gone after it.
#[derive(Clone, Debug)]
struct Scoped<'a, T> {
    map: HashMap<&'a str, (u32, T)>,
    hidden: Vec<Hidden<'a, T>>,
}

/// What an entry of an open scope has hidden: the depth of the scope, the name, and what it was before.
type Hidden<'a, T> = (u32, &'a str, Option<(u32, T)>);

impl<'a, T: Clone> Scoped<'a, T> {
    fn new() -> Self {
        Self { map: HashMap::new(), hidden: Vec::new() }
    }

    fn insert(&mut self, depth: u32, name: &'a str, value: T) -> Outcome {
        let before = self.map.insert(name, (depth, value));
        if before.as_ref().is_some_and(|(other, _)| *other == depth) {
            return Err(format!("`{name}` is declared twice"));
        }
        self.hidden.push((depth, name, before));
        Ok(())
    }

    fn close(&mut self, depth: u32) {
        while let Some((_, name, before)) = self.hidden.pop_if(|(d, _, _)| *d == depth) {
            match before {
                Some(value) => drop(self.map.insert(name, value)),
                None => drop(self.map.remove(name)),
            }
        }
    }
}

/// Registers that a function may declare by number: a bound on memory.
const MAX_REGISTERS: u32 = 1 << 20;

/// The names that are visible at a place.
#[derive(Clone, Debug)]
pub(super) struct Names<'a> {
    symbols: Scoped<'a, Symbol>,
    families: Scoped<'a, u32>,
    list: Vec<Family>,
    /// Sum of the counts of `list`.
    numbered: u32,
    depth: u32,
}

impl<'a> Names<'a> {
    pub(super) fn new() -> Self {
        Self { symbols: Scoped::new(), families: Scoped::new(), list: Vec::new(), numbered: 0, depth: 0 }
    }

    pub(super) fn open(&mut self) {
        self.depth += 1;
    }

    pub(super) fn close(&mut self) {
        self.symbols.close(self.depth);
        self.families.close(self.depth);
        self.depth -= 1;
    }

    pub(super) fn declare(&mut self, name: &'a str, symbol: Symbol) -> Outcome {
        self.symbols.insert(self.depth, name, symbol)
    }

    pub(super) fn declare_family(&mut self, name: &'a str, ty: Ty, count: u32) -> Outcome {
        self.numbered = self.numbered.saturating_add(count);
        if self.numbered > MAX_REGISTERS {
            return Err(format!("with {count} registers `{name}` there are more than {MAX_REGISTERS}"));
        }
        self.families.insert(self.depth, name, self.list.len() as u32)?;
        self.list.push(Family { ty, count, registers: Vec::new() });
        Ok(())
    }

    /// Finds a name; `make` makes a virtual register at the first use of a numbered one.
    pub(super) fn find(&mut self, name: &str, make: impl FnOnce(Ty) -> u32) -> Option<Symbol> {
        let single = self.symbols.map.get(name).copied();
        let Some((depth, family, number)) = self.family(name) else {
            return single.map(|(_, symbol)| symbol);
        };
        if let Some((other, symbol)) = single
            && other >= depth
        {
            return Some(symbol);
        }
        let family = &mut self.list[family as usize];
        let number = number as usize;
        if family.registers.len() <= number {
            family.registers.resize(number + 1, u32::MAX);
        }
        if family.registers[number] == u32::MAX {
            family.registers[number] = make(family.ty);
        }
        Some(Symbol::Register(family.registers[number]))
    }

    /// Splits `%r12` into a family and a number: the digits may belong to the family's name.
    fn family(&self, name: &str) -> Option<(u32, u32, u32)> {
        let digits = name.bytes().rev().take(10).take_while(u8::is_ascii_digit).count();
        (name.len() - digits..name.len()).find_map(|split| {
            let (prefix, number) = name.split_at(split);
            if number.len() > 1 && number.starts_with('0') {
                return None;
            }
            let &(depth, family) = self.families.map.get(prefix)?;
            let number: u32 = number.parse().ok()?;
            (number < self.list[family as usize].count).then_some((depth, family, number))
        })
    }
}

/// Labels with their scopes: a branch sees those of its own scope and of the ones around it, before and after it.
#[derive(Clone, Debug)]
pub(super) struct Labels<'a, T> {
    parents: Vec<u32>,
    scope: u32,
    places: HashMap<(u32, &'a str), T>,
}

impl<'a, T: Copy> Labels<'a, T> {
    pub(super) fn new() -> Self {
        Self { parents: vec![0], scope: 0, places: HashMap::new() }
    }

    pub(super) fn open(&mut self) {
        self.parents.push(self.scope);
        self.scope = self.parents.len() as u32 - 1;
    }

    pub(super) fn close(&mut self) {
        self.scope = self.parents[self.scope as usize];
    }

    /// Returns the scope of this place.
    pub(super) fn scope(&self) -> u32 {
        self.scope
    }

    pub(super) fn insert(&mut self, name: &'a str, place: T) -> Outcome {
        match self.places.insert((self.scope, name), place) {
            None => Ok(()),
            Some(_) => Err(format!("the label `{name}` is declared twice")),
        }
    }

    pub(super) fn find(&self, mut scope: u32, name: &'a str) -> Outcome<T> {
        loop {
            if let Some(place) = self.places.get(&(scope, name)) {
                return Ok(*place);
            }
            if scope == 0 {
                return Err(format!("the label `{name}` is not declared"));
            }
            scope = self.parents[scope as usize];
        }
    }
}
