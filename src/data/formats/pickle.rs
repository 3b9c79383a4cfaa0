//! The few pickle opcodes that `torch.save` writes for tensors and dictionaries of tensors, and nothing else.
//!
//! Nothing is executed: a global is a name that is looked up in a short list, and REDUCE of any other name is an
//! error that quotes it. Values live in an arena and are referred to by number; every opcode adds at most one, so the
//! memory is bounded by the length of the pickle. Opcodes: Lib/pickletools.py of CPython.

use std::collections::HashMap;

use crate::data::array::Element;

/// The longest pickle read; tensors' numbers are not in it.
pub const MAX_PICKLE: usize = 16 << 20;
/// How deep dictionaries are searched for tensors.
const MAX_DEPTH: usize = 4;
/// The most dictionary entries that are looked at: entries may be shared, so a short pickle can unfold to many.
const MAX_ENTRIES: usize = 100_000;
/// The longest text that can be a name; longer ones are carried along unread.
const MAX_NAME: usize = 512;
/// The most arguments or dimensions.
const MAX_ARITY: usize = 16;

/// A tensor as a pickle describes it: a view of a storage in another member of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The number type.
    pub element: Element,
    /// The name of the storage.
    pub storage: String,
    /// Elements in the storage.
    pub elements: usize,
    /// The first element of the view.
    pub offset: usize,
    /// The sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements from one index to the next, per dimension.
    pub strides: Vec<usize>,
}

/// Why a pickle was refused: what was expected, what was found.
pub type Refusal = (String, String);

/// Reads a pickle and returns its tensors by name: `a.b` for key b of dictionary a, `tensor` for a bare tensor.
///
/// # Errors
/// Any opcode, global or structure beyond what tensors need.
pub fn tensors(pickle: &[u8]) -> Result<Vec<(String, TensorInfo)>, Refusal> {
    if pickle.len() > MAX_PICKLE {
        return Err((format!("a pickle of at most {MAX_PICKLE} bytes"), format!("{} bytes", pickle.len())));
    }
    let mut machine = Machine { bytes: pickle, ..Machine::default() };
    let root = machine.run()?;
    let mut found = Vec::new();
    machine.collect(root, "", &mut (0, MAX_ENTRIES), &mut found)?;
    Ok(found)
}

type Id = usize;

enum Value {
    Opaque, // None, floats, bools: carried along, never used
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    List,
    Dict(Vec<(Id, Id)>),
    Global(&'static str),
    Storage { element: Element, name: String, elements: usize },
    StorageType(Element),
    Tensor(TensorInfo),
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

const REBUILD: &str = "torch._utils._rebuild_tensor_v2";
const PARAMETER: &str = "torch._utils._rebuild_parameter";
const ORDERED_DICT: &str = "collections.OrderedDict";

impl Machine<'_> {
    /// Runs to STOP and returns the value on top.
    fn run(&mut self) -> Result<Id, Refusal> {
        loop {
            let [opcode] = self.take()?;
            match opcode {
                b'.' => return self.pop(),
                0x80 => self.take::<1>().map(|_| ())?,          // PROTO
                0x95 => self.take::<8>().map(|_| ())?,          // FRAME
                b'(' => self.marks.push(self.stack.len()),      // MARK
                b'N' | 0x88 | 0x89 => self.push(Value::Opaque), // NONE, NEWTRUE, NEWFALSE
                b'G' => {
                    self.take::<8>()?; // BINFLOAT
                    self.push(Value::Opaque);
                }
                b'J' | b'K' | b'M' | 0x8a => self.int(opcode)?,
                b'X' | 0x8c => self.text(opcode)?,
                b'}' => self.push(Value::Dict(Vec::new())), // EMPTY_DICT
                b']' => self.push(Value::List),             // EMPTY_LIST
                b')' => self.push(Value::Tuple(Vec::new())), // EMPTY_TUPLE
                b't' | 0x85..=0x87 => self.tuple(opcode)?,
                b'q' | b'r' | 0x94 | b'h' | b'j' => self.memo(opcode)?,
                b'c' | 0x93 => self.global(opcode)?,
                b'Q' => self.persistent_id()?,
                b'R' => self.reduce()?,
                b's' | b'u' => self.set_items(opcode)?,
                b'a' | b'e' => self.append(opcode)?,
                b'b' => self.build()?,
                _ => {
                    return refuse(
                        "an opcode that tensors need",
                        format!("opcode {opcode:#04x} at byte {}", self.at - 1),
                    );
                }
            }
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let chunk = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let chunk = chunk.ok_or_else(|| end(self.bytes.len()))?;
        self.at += N;
        Ok(*chunk)
    }

    fn take_text(&mut self, length: usize) -> Result<String, Refusal> {
        let text = self.at.checked_add(length).and_then(|end| self.bytes.get(self.at..end));
        let text = text.ok_or_else(|| end(self.bytes.len()))?;
        self.at += length;
        String::from_utf8(text.to_vec())
            .map_err(|_| ("UTF-8 text".into(), format!("other bytes before {}", self.at)))
    }

    fn take_line(&mut self) -> Result<String, Refusal> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|b| *b == b'\n').ok_or_else(|| end(self.bytes.len()))?;
        let line = self.take_text(length)?;
        self.at += 1;
        Ok(line)
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id, Refusal> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return refuse("a value on the stack", format!("none at byte {}", self.at));
        }
        self.stack.pop().ok_or_else(|| end(self.bytes.len()))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Refusal> {
        let mark =
            self.marks.pop().ok_or_else(|| ("a mark".to_owned(), format!("none at byte {}", self.at)))?;
        Ok(self.stack.split_off(mark))
    }

    fn int(&mut self, opcode: u8) -> Result<(), Refusal> {
        let value = match opcode {
            b'J' => i32::from_le_bytes(self.take()?) as i64,
            b'K' => self.take::<1>()?[0] as i64,
            b'M' => u16::from_le_bytes(self.take()?) as i64,
            _ => {
                let [length] = self.take()?; // LONG1: little-endian two's complement
                let mut bytes = [0u8; 8];
                for i in 0..length as usize {
                    let [b] = self.take()?;
                    *bytes
                        .get_mut(i)
                        .ok_or_else(|| ("an integer of 8 bytes".to_owned(), length.to_string()))? = b;
                }
                let unused = 64 - 8 * length as u32;
                if unused == 64 { 0 } else { (i64::from_le_bytes(bytes) << unused) >> unused }
            }
        };
        self.push(Value::Int(value));
        Ok(())
    }

    fn text(&mut self, opcode: u8) -> Result<(), Refusal> {
        let length = if opcode == b'X' {
            u32::from_le_bytes(self.take()?) as usize
        } else {
            self.take::<1>()?[0] as usize
        };
        let text = self.take_text(length)?;
        self.push(if text.len() > MAX_NAME { Value::Opaque } else { Value::Text(text) });
        Ok(())
    }

    fn tuple(&mut self, opcode: u8) -> Result<(), Refusal> {
        let items = if opcode == b't' {
            self.pop_to_mark()?
        } else {
            let mut items = (0x85..=opcode).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
            items.reverse();
            items
        };
        self.push(Value::Tuple(items));
        Ok(())
    }

    fn memo(&mut self, opcode: u8) -> Result<(), Refusal> {
        let key = match opcode {
            b'q' | b'h' => self.take::<1>()?[0] as u32,
            0x94 => self.memo.len() as u32, // MEMOIZE
            _ => u32::from_le_bytes(self.take()?),
        };
        if matches!(opcode, b'h' | b'j') {
            let id = self.memo.get(&key).copied();
            self.stack.push(id.ok_or_else(|| ("a known memo entry".to_owned(), key.to_string()))?);
            return Ok(());
        }
        let top = self.pop()?;
        self.stack.push(top);
        self.memo.insert(key, top);
        Ok(())
    }

    fn global(&mut self, opcode: u8) -> Result<(), Refusal> {
        let (module, name) = if opcode == b'c' {
            (self.take_line()?, self.take_line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            (self.as_text(module)?.to_owned(), self.as_text(name)?.to_owned())
        };
        let full = format!("{module}.{name}");
        if let Some(known) = [REBUILD, PARAMETER, ORDERED_DICT].into_iter().find(|g| *g == full) {
            self.push(Value::Global(known));
            return Ok(());
        }
        let element = match full.as_str() {
            "torch.FloatStorage" => Element::F32,
            "torch.DoubleStorage" => Element::F64,
            "torch.HalfStorage" => Element::F16,
            "torch.BFloat16Storage" => Element::Bf16,
            "torch.ByteStorage" => Element::U8,
            "torch.CharStorage" => Element::I8,
            "torch.ShortStorage" => Element::I16,
            "torch.IntStorage" => Element::I32,
            "torch.LongStorage" => Element::I64,
            "torch.BoolStorage" => Element::Bool,
            _ => return refuse("only the globals of plain tensors", format!("global `{full}`")),
        };
        self.push(Value::StorageType(element));
        Ok(())
    }

    /// Turns ('storage', type, name, device, elements) into a storage.
    fn persistent_id(&mut self) -> Result<(), Refusal> {
        let id = self.pop()?;
        let items = self.as_tuple(id)?;
        let &[kind, of, name, _device, elements] = items else {
            return refuse("a storage of five parts", format!("{} parts", items.len()));
        };
        let Value::StorageType(element) = self.values[of] else {
            return refuse("a storage type", "another value".to_owned());
        };
        if self.as_text(kind)? != "storage" {
            return refuse("a persistent `storage`", format!("`{}`", self.as_text(kind)?));
        }
        let storage = Value::Storage {
            element,
            name: self.as_text(name)?.to_owned(),
            elements: self.as_size(elements)?,
        };
        self.push(storage);
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), Refusal> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let Value::Global(name) = self.values[callee] else {
            return refuse("a known global to be called", "another value".to_owned());
        };
        let arguments = self.as_tuple(arguments)?;
        if arguments.len() > MAX_ARITY {
            return refuse("at most 16 arguments", format!("{} of them for `{name}`", arguments.len()));
        }
        let arguments = arguments.to_vec();
        match (name, arguments.as_slice()) {
            (ORDERED_DICT, []) => self.push(Value::Dict(Vec::new())),
            (PARAMETER, [tensor, ..]) => self.stack.push(*tensor),
            (REBUILD, [storage, offset, shape, strides, ..]) => {
                let tensor = self.tensor(*storage, *offset, *shape, *strides)?;
                self.push(Value::Tensor(tensor));
            }
            (name, arguments) => {
                return refuse("arguments that fit", format!("{} of them for `{name}`", arguments.len()));
            }
        }
        Ok(())
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Result<TensorInfo, Refusal> {
        let Value::Storage { element, name, elements } = &self.values[storage] else {
            return refuse("a tensor over a storage", "another value".to_owned());
        };
        let (shape, strides) = (self.as_sizes(shape)?, self.as_sizes(strides)?);
        if shape.len() != strides.len() {
            return refuse("one stride per dimension", format!("{} and {}", strides.len(), shape.len()));
        }
        let offset = self.as_size(offset)?;
        Ok(TensorInfo {
            element: *element,
            storage: name.clone(),
            elements: *elements,
            offset,
            shape,
            strides,
        })
    }

    fn set_items(&mut self, opcode: u8) -> Result<(), Refusal> {
        let items = if opcode == b'u' {
            self.pop_to_mark()?
        } else {
            let (value, key) = (self.pop()?, self.pop()?);
            vec![key, value]
        };
        let dict = self.pop()?;
        self.stack.push(dict);
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.values[dict] {
            Value::Dict(entries) if rest.is_empty() => entries.extend(pairs.iter().map(|[k, v]| (*k, *v))),
            _ => {
                return refuse("key and value pairs for a dictionary", format!("others at byte {}", self.at));
            }
        }
        Ok(())
    }

    /// Drops list items: lists occur in checkpoints, tensors in lists have no name to be asked by.
    fn append(&mut self, opcode: u8) -> Result<(), Refusal> {
        if opcode == b'e' {
            self.pop_to_mark().map(|_| ())?
        } else {
            self.pop().map(|_| ())?
        }
        let list = self.pop()?;
        self.stack.push(list);
        match self.values[list] {
            Value::List => Ok(()),
            _ => refuse("a list to append to", format!("another value at byte {}", self.at)),
        }
    }

    /// Drops attributes of a dictionary: a state dict carries `_metadata` this way.
    fn build(&mut self) -> Result<(), Refusal> {
        self.pop()?;
        let object = self.pop()?;
        self.stack.push(object);
        match self.values[object] {
            Value::Dict(_) => Ok(()),
            _ => refuse("attributes of a dictionary only", format!("another object at byte {}", self.at)),
        }
    }

    fn as_tuple(&self, id: Id) -> Result<&[Id], Refusal> {
        match &self.values[id] {
            Value::Tuple(items) => Ok(items),
            _ => refuse("a tuple", format!("another value at byte {}", self.at)),
        }
    }

    fn as_text(&self, id: Id) -> Result<&str, Refusal> {
        match &self.values[id] {
            Value::Text(text) => Ok(text),
            _ => refuse("text", format!("another value at byte {}", self.at)),
        }
    }

    fn as_size(&self, id: Id) -> Result<usize, Refusal> {
        match self.values[id] {
            Value::Int(n) => usize::try_from(n).map_err(|_| ("a size".to_owned(), n.to_string())),
            _ => refuse("a size", format!("another value at byte {}", self.at)),
        }
    }

    fn as_sizes(&self, id: Id) -> Result<Vec<usize>, Refusal> {
        let items = self.as_tuple(id)?;
        if items.len() > MAX_ARITY {
            return refuse("at most 16 dimensions", items.len().to_string());
        }
        items.iter().map(|i| self.as_size(*i)).collect()
    }

    /// Lists the tensors below `id`; `budget` is the depth reached and the entries left to look at.
    fn collect(
        &self,
        id: Id,
        name: &str,
        budget: &mut (usize, usize),
        out: &mut Vec<(String, TensorInfo)>,
    ) -> Result<(), Refusal> {
        match &self.values[id] {
            Value::Tensor(info) => {
                let name = if name.is_empty() { "tensor" } else { name };
                out.push((name.to_owned(), info.clone()));
            }
            Value::Dict(entries) if budget.0 < MAX_DEPTH => {
                if entries.len() > budget.1 {
                    return refuse("at most 100000 dictionary entries", "more".to_owned());
                }
                *budget = (budget.0 + 1, budget.1 - entries.len());
                for (key, value) in entries {
                    let Value::Text(key) = &self.values[*key] else { continue };
                    let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                    self.collect(*value, &name, budget, out)?;
                }
                budget.0 -= 1;
            }
            _ => {}
        }
        Ok(())
    }
}

fn refuse<T>(expected: &str, found: String) -> Result<T, Refusal> {
    Err((expected.to_owned(), found))
}

fn end(length: usize) -> Refusal {
    ("more bytes".to_owned(), format!("the end after {length}"))
}
