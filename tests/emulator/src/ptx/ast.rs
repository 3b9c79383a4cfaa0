//! The syntax tree: what the text says, before anything is checked against the instruction set.
//!
//! Names borrow from the text. A function body keeps its operands in a few flat lists, so that an instruction costs no
//! allocation of its own.

/// A part of one of the flat lists of a [`Body`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First entry.
    pub start: u32,
    /// Number of entries.
    pub len: u32,
}

impl Span {
    /// Returns the entries of a list.
    pub fn of<T>(self, list: &[T]) -> &[T] {
        let start = self.start as usize;
        list.get(start..start + self.len as usize).unwrap_or(&[])
    }
}

/// A module.
#[derive(Clone, Debug, Default)]
pub struct Module<'a> {
    /// `.version`
    pub version: (u32, u32),
    /// The entries of `.target`: the architecture first.
    pub target: Vec<&'a str>,
    /// `.address_size`, 32 if not given.
    pub address_size: u32,
    /// `.file`: number and name.
    pub files: Vec<(u32, &'a str)>,
    /// Variables at module level.
    pub variables: Vec<Variable<'a>>,
    /// Functions, declared and defined.
    pub functions: Vec<Function<'a>>,
}

/// A state space of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Space {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// A variable or a parameter.
#[derive(Clone, Debug)]
pub struct Variable<'a> {
    /// Where it lies.
    pub space: Space,
    /// `.extern`
    pub external: bool,
    /// `.align`, if given.
    pub align: Option<u64>,
    /// The type, without its dot.
    pub ty: &'a str,
    /// 1, or 2 and 4 for `.v2` and `.v4`.
    pub vector: u32,
    /// The name.
    pub name: &'a str,
    /// The product of the array lengths; `None` for `[]`; 1 for a scalar.
    pub length: Option<u64>,
    /// The initial values in order, if any are given.
    pub initial: Option<Vec<Initial<'a>>>,
    /// Where it is declared.
    pub line: u32,
}

/// One entry of an initialiser.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial<'a> {
    /// A number.
    Number(Number),
    /// The address of a variable plus an offset; `generic` for `generic(name)`.
    Address {
        /// Of what.
        name: &'a str,
        /// Bytes.
        offset: i64,
        /// Whether the generic address was asked for.
        generic: bool,
    },
    /// Zeroes up to this element: the end of a row of a nested initialiser.
    PadTo(u64),
}

/// A constant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// 64 bits, to be read as unsigned if so marked.
    Integer {
        /// Two's complement.
        bits: u64,
        /// A `U` suffix, or too large for a signed number.
        unsigned: bool,
    },
    /// `0f...`: the bits of a single.
    Single(u32),
    /// `0d...` or decimal: a double.
    Double {
        /// The value.
        value: f64,
        /// Written as `0d...`
        exact: bool,
    },
}

/// A function.
#[derive(Clone, Debug)]
pub struct Function<'a> {
    /// `.entry`, else `.func`
    pub entry: bool,
    /// The name.
    pub name: &'a str,
    /// The parameters.
    pub params: Vec<Variable<'a>>,
    /// `.maxntid` and its like: the name without its dot, up to three numbers, their count.
    pub directives: Vec<(&'a str, [u64; 3], u32)>,
    /// The body, unless it is only declared.
    pub body: Option<Body<'a>>,
    /// Where it begins.
    pub line: u32,
}

/// A function body.
#[derive(Clone, Debug, Default)]
pub struct Body<'a> {
    /// In order; `{` and `}` are statements too, and always balanced.
    pub statements: Vec<Statement<'a>>,
    /// Operands of all instructions.
    pub operands: Vec<Operand<'a>>,
    /// Elements of all vector operands.
    pub elements: Vec<Operand<'a>>,
    /// Modifiers of all instructions, without their dots.
    pub modifiers: Vec<&'a str>,
    /// Variables declared inside.
    pub variables: Vec<Variable<'a>>,
    /// Labels named by `.branchtargets`.
    pub targets: Vec<&'a str>,
}

/// A statement of a body.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statement<'a> {
    /// `{`
    Open,
    /// `}`
    Close,
    /// `.reg .ty name;` or `.reg .ty name<count>;`
    Registers {
        /// The type, without its dot.
        ty: &'a str,
        /// 1, or 2 and 4 for `.v2` and `.v4`.
        vector: u32,
        /// The name or its beginning.
        name: &'a str,
        /// How many, where they are numbered.
        count: Option<u32>,
        /// Where.
        line: u32,
    },
    /// An index into [`Body::variables`].
    Variable(u32),
    /// `name:`
    Label {
        /// The name.
        name: &'a str,
        /// Where.
        line: u32,
    },
    /// An instruction.
    Instruction(Instruction<'a>),
    /// `.loc`
    Loc {
        /// The number of the `.file`.
        file: u32,
        /// The line in it.
        line: u32,
    },
    /// `name: .branchtargets ...;`
    Targets {
        /// The label of the list.
        name: &'a str,
        /// In [`Body::targets`].
        labels: Span,
        /// Where.
        line: u32,
    },
}

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Instruction<'a> {
    /// The opcode without its modifiers.
    pub opcode: &'a str,
    /// In [`Body::modifiers`].
    pub modifiers: Span,
    /// The predicate, and whether it is negated.
    pub guard: Option<(&'a str, bool)>,
    /// In [`Body::operands`].
    pub operands: Span,
    /// Where.
    pub line: u32,
}

/// An operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand<'a> {
    /// A register, a variable, a label, a special register, or `_`.
    Name(&'a str),
    /// `%tid.x`
    Component(&'a str, &'a str),
    /// `!%p`
    Not(&'a str),
    /// A constant.
    Number(Number),
    /// `variable+8`
    Sum(&'a str, i64),
    /// `{a, b}`, in [`Body::elements`].
    Vector(Span),
    /// `a|b`
    Pair(&'a str, &'a str),
    /// `[...]`
    Address(Address<'a>),
}

/// An address in brackets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Address<'a> {
    /// A register or a variable; `None` for a number.
    pub base: Option<&'a str>,
    /// Bytes.
    pub offset: i64,
    /// Whether coordinates or more names follow inside the brackets, as those of textures and tensors do.
    pub coordinates: bool,
}
