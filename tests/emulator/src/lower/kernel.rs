//! Modules and kernels: parameters, directives, statements; the dispatch of instructions.

use super::builder::{Branch, Builder, Parts};
use super::modifiers::{Modifiers, type_of};
use super::names::{Symbol, Variable};
use super::variables::{Symbols, layout};
use super::{Error, Outcome, allocate};
use crate::isa::{self, Inst, List, Loc, NONE, Op, Param, Ty};
use crate::ptx::ast::{self, Body, Function, Instruction, Module, Space, Statement};

/// Bytes of parameters: since PTX 8.1 on sm_70 and later, and before.
const MAX_PARAMS: (u32, u32) = (32764, 4352);
/// Bytes of static shared memory, as ptxas has it.
const MAX_SHARED: u64 = 48 << 10;
/// Bytes of local memory of a thread.
const MAX_LOCAL: u64 = 512 << 10;

/// Lowers a module.
pub(super) fn lower(tree: &Module<'_>) -> Result<isa::Module, Error> {
    let target = tree.target.first().copied().unwrap_or("");
    if target.is_empty() {
        return Err(Error::new(1, "the text has no `.target`"));
    }
    if tree.target.contains(&"debug") {
        return Err(Error::new(
            1,
            "debug code (`-G`, `.target ..., debug`) is not supported: compile with -lineinfo",
        ));
    }
    if tree.address_size != 64 {
        return Err(Error::new(1, "only `.address_size 64` is supported"));
    }
    let mut files: Vec<String> = Vec::new();
    let mut numbers: Vec<(u32, u32)> = Vec::new(); // of `.file`, and its index
    for &(number, name) in &tree.files {
        numbers.push((number, files.len() as u32));
        files.push(name.to_string());
    }
    numbers.sort_unstable();
    let out =
        isa::Module { version: tree.version, target: target.to_string(), files, ..isa::Module::default() };
    let mut symbols = Symbols::new(out);
    for function in &tree.functions {
        let entered = symbols.declare_function(function.name, function.body.is_some());
        entered.map_err(|reason| Error::new(function.line, reason))?;
    }
    symbols.declare(&tree.variables)?;
    for function in tree.functions.iter().filter(|function| function.entry) {
        if let Some(body) = &function.body {
            let kernel = kernel(function, body, &numbers, &mut symbols)?;
            symbols.out.kernels.push(kernel);
        }
    }
    Ok(symbols.out)
}

fn kernel<'a>(
    function: &Function<'a>,
    body: &Body<'a>,
    files: &[(u32, u32)],
    symbols: &mut Symbols<'a>,
) -> Result<isa::Kernel, Error> {
    let at_head = |reason: String| Error::new(function.line, reason);
    let mut kernel = isa::Kernel { name: function.name.to_string(), ..isa::Kernel::default() };
    directives(function, &mut kernel).map_err(at_head)?;
    let (shared, dynamic, own) = symbols.place_shared(body).map_err(at_head)?;
    if shared > MAX_SHARED {
        let name = function.name;
        return Err(at_head(format!(
            "`{name}` has {shared} bytes of static shared memory, more than {MAX_SHARED}"
        )));
    }
    (kernel.shared_bytes, kernel.dynamic_shared_align) = (shared as u32, dynamic as u32);
    let limit = if symbols.out.version >= (8, 1) { MAX_PARAMS.0 } else { MAX_PARAMS.1 };
    let mut builder = Builder::new(symbols, body);
    builder.parameters(function, limit, &mut kernel)?;
    let local = builder.statements(function.name, files, &own)?;
    kernel.local_bytes = local as u32;
    builder.resolve()?;
    allocate::finish(builder, &mut kernel);
    Ok(kernel)
}

fn directives(function: &Function<'_>, kernel: &mut isa::Kernel) -> Outcome {
    for &(directive, values, count) in &function.directives {
        let mut small = [0u32; 3];
        for (small, value) in small.iter_mut().zip(values) {
            *small = u32::try_from(value).map_err(|_| format!("`.{directive} {value}` is too large"))?;
        }
        let block = small.iter().try_fold(1u32, |product, &n| product.checked_mul(n));
        match directive {
            "maxntid" | "reqntid" if block.is_none_or(|n| n == 0 || n > 1024) => {
                return Err(format!("`.{directive}` is not a block of 1 to 1024 threads"));
            }
            "maxntid" if kernel.exact_threads => {}
            "maxntid" => kernel.max_threads = small,
            "reqntid" => (kernel.max_threads, kernel.exact_threads) = (small, true),
            "minnctapersm" => kernel.min_blocks = small[0],
            "reqnctapercluster" => kernel.cluster = small,
            _ if count <= 1 => {} // hints to a compiler, or of clusters: nothing to do
            _ => return Err(format!("unknown directive `.{directive}`")),
        }
    }
    Ok(())
}

impl<'a> Builder<'_, 'a> {
    fn parameters(
        &mut self,
        function: &Function<'a>,
        limit: u32,
        kernel: &mut isa::Kernel,
    ) -> Result<(), Error> {
        let mut end = 0u64;
        for param in &function.params {
            let fail = |reason: String| Error::new(param.line, reason);
            let (_, size, align) = layout(param).map_err(fail)?;
            let Some(size) = size else {
                return Err(fail(format!("the parameter `{}` has no size", param.name)));
            };
            let offset = end.next_multiple_of(align);
            end = offset + size;
            if end > u64::from(limit) {
                return Err(fail(format!("the parameters have more than {limit} bytes")));
            }
            let symbol = Symbol::Variable(Variable::Param(offset as u32, size as u32));
            self.names.declare(param.name, symbol).map_err(fail)?;
            let (offset, size, align) = (offset as u32, size as u32, align as u32);
            kernel.params.push(Param { name: param.name.to_string(), offset, size, align });
        }
        self.names.open();
        Ok(())
    }

    /// Lowers all statements; returns the bytes of local memory.
    fn statements(&mut self, kernel: &str, files: &[(u32, u32)], shared: &[u64]) -> Result<u64, Error> {
        let body = self.body;
        let mut local = 0u64;
        for statement in &body.statements {
            match *statement {
                Statement::Open => {
                    self.names.open();
                    self.labels.open();
                    self.targets.open();
                }
                Statement::Close => {
                    self.names.close();
                    self.labels.close();
                    self.targets.close();
                }
                Statement::Registers { ty, vector, name, count, line } => {
                    self.declare_registers(ty, vector, name, count)
                        .map_err(|reason| Error::new(line, reason))?;
                }
                Statement::Variable(index) => {
                    let variable = &body.variables[index as usize];
                    self.declare_variable(variable, kernel, shared[index as usize], &mut local)
                        .map_err(|reason| Error::new(variable.line, reason))?;
                }
                Statement::Label { name, line } => {
                    let place = self.code.len() as u32;
                    self.labels.insert(name, place).map_err(|reason| Error::new(line, reason))?;
                }
                Statement::Targets { name, labels, line } => {
                    self.targets.insert(name, labels).map_err(|reason| Error::new(line, reason))?;
                }
                Statement::Loc { file, line } => self.locate(file, line, files),
                Statement::Instruction(instruction) => self.checked(&instruction)?,
            }
        }
        self.frame = Inst { guard: NONE, guard_not: false, ..self.frame };
        self.emit(Op::Exit);
        Ok(local)
    }

    /// Places in compiler-made code have line 0: they have no source.
    fn locate(&mut self, file: u32, line: u32, files: &[(u32, u32)]) {
        let index = files.binary_search_by_key(&file, |&(number, _)| number).ok().filter(|_| line != 0);
        self.frame.loc = match index {
            None => NONE,
            Some(index) => {
                let loc = Loc { file: files[index].1, line };
                if self.locs.last() != Some(&loc) {
                    self.locs.push(loc);
                }
                self.locs.len() as u32 - 1
            }
        };
    }

    fn declare_registers(&mut self, ty: &str, vector: u32, name: &'a str, count: Option<u32>) -> Outcome {
        let known = type_of(ty).filter(|&ty| ty != Ty::B128);
        let Some(ty) = known else { return Err(format!("registers of the type `.{ty}` are not supported")) };
        if vector != 1 {
            return Err("vector registers are not supported".into());
        }
        match count {
            Some(count) => self.names.declare_family(name, ty, count),
            None => {
                let slot = self.register(ty, false);
                self.names.declare(name, Symbol::Register(slot))
            }
        }
    }

    fn declare_variable(
        &mut self,
        variable: &ast::Variable<'a>,
        kernel: &str,
        shared: u64,
        local: &mut u64,
    ) -> Outcome {
        let name = variable.name;
        let place = match variable.space {
            Space::Param => return Err(super::unsupported::CALLS.into()),
            Space::Global | Space::Const => self.symbols.local_global(variable, kernel)?,
            Space::Shared | Space::Local if variable.initial.is_some() => {
                return Err(format!("`{name}` cannot have an initial value"));
            }
            Space::Shared => Variable::Shared(shared),
            Space::Local => {
                let (_, size, align) = layout(variable)?;
                let Some(size) = size else { return Err(format!("the local variable `{name}` has no size")) };
                let offset = local.next_multiple_of(align);
                *local = offset + size;
                if *local > MAX_LOCAL {
                    return Err(format!("`{name}`: more than {MAX_LOCAL} bytes of local memory"));
                }
                Variable::Local(offset)
            }
        };
        self.names.declare(name, Symbol::Variable(place))
    }

    /// Lowers an instruction; an error names it.
    fn checked(&mut self, instruction: &Instruction<'a>) -> Result<(), Error> {
        self.instruction(instruction).map_err(|reason| {
            let mut text = instruction.opcode.to_string();
            for modifier in instruction.modifiers.of(&self.body.modifiers) {
                text.push('.');
                text.push_str(modifier);
            }
            Error { line: instruction.line, instruction: text, reason }
        })
    }

    fn instruction(&mut self, instruction: &Instruction<'a>) -> Outcome {
        let body = self.body;
        self.frame.line = instruction.line;
        (self.frame.guard, self.frame.guard_not) = match instruction.guard {
            None => (NONE, false),
            Some((name, not)) => (self.source(&ast::Operand::Name(name), Ty::Pred)?, not),
        };
        let modifiers = Modifiers::new(instruction.modifiers.of(&body.modifiers))?;
        let operands = instruction.operands.of(&body.operands);
        let mut parts = Parts { opcode: instruction.opcode, modifiers, operands };
        self.dispatch(&mut parts)
    }

    fn dispatch(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        match parts.opcode {
            "mov" => self.mov(parts),
            "cvt" => self.cvt(parts),
            "selp" | "slct" | "setp" | "set" | "testp" => self.compare(parts),
            "ld" | "ldu" => self.load(parts),
            "st" => self.store(parts),
            "prefetch" | "prefetchu" | "applypriority" | "discard" => self.hint(parts),
            "createpolicy" => self.create_policy(parts),
            "atom" | "red" => self.atomic(parts),
            "cvta" | "isspacep" => self.address_space(parts),
            "cp" => self.copy_async(parts),
            "mbarrier" => self.mbarrier(parts),
            "ldmatrix" | "stmatrix" => self.matrix_move(parts),
            "mma" => self.mma(parts),
            "bra" | "brx" | "ret" | "exit" | "trap" | "brkpt" => self.control(parts),
            "bar" | "barrier" => self.barrier(parts),
            "fence" | "membar" => self.fence(parts),
            "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => self.warp_wide(parts),
            "nanosleep" | "setmaxnreg" | "griddepcontrol" | "pmevent" => self.pause(parts),
            _ => self.arithmetic(parts),
        }
    }

    /// Fills in the targets of branches.
    fn resolve(&mut self) -> Result<(), Error> {
        for Branch { inst, scope, label, line } in std::mem::take(&mut self.branches) {
            let fail = |instruction: &str, reason| Error { line, instruction: instruction.into(), reason };
            match self.code[inst as usize].op {
                Op::Bra { uni, .. } => {
                    let target = self.labels.find(scope, label).map_err(|reason| fail("bra", reason))?;
                    self.code[inst as usize].op = Op::Bra { target, uni };
                }
                Op::Brx { index, .. } => {
                    let names = self.targets.find(scope, label).map_err(|reason| fail("brx", reason))?;
                    let body = self.body;
                    let start = self.lists.len() as u32;
                    for name in names.of(&body.targets) {
                        let target = self.labels.find(scope, name).map_err(|reason| fail("brx", reason))?;
                        self.lists.push(target);
                    }
                    let targets = List { start, len: self.lists.len() as u32 - start };
                    self.code[inst as usize].op = Op::Brx { index, targets };
                }
                _ => {}
            }
        }
        Ok(())
    }
}
