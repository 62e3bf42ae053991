//! The pickle within a `.pth` file, read as inert data.
//!
//! A pickle is a program that builds values on a stack and may call anything that it can name. Here
//! the names that PyTorch's state dicts need stand for data, no other name is taken, and there is
//! nothing to be called. All values lie in one flat list and refer to each other by their place in it,
//! so taking one from the memo copies nothing, and nesting of any depth needs no recursion. Storages and
//! tensors too refer to their parts, so that no operation takes more memory than a value and the places
//! that were pushed for it.

use std::collections::HashMap;

use super::value::{Global, Id, Pickle, Result, Storage, Tensor, Value};
use crate::params::bounds::DIMENSIONS;

/// Most operations.
const OPERATIONS: usize = 10_000_000;
/// Most values on the stack, in the memo, and in all.
const VALUES: usize = 1 << 19;

/// Reads `bytes`; a complaint tells at which byte it arose.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle<'_>> {
    let values = vec![Value::Opaque];
    let mut machine =
        Machine { bytes, at: 0, values, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    let root = machine.run().map_err(|what| format!("byte {}: {what}", machine.at))?;
    Ok(Pickle { values: machine.values, root })
}

/// The value that stands for all opaque ones.
const OPAQUE: Id = 0;

/// The state of reading.
struct Machine<'p> {
    bytes: &'p [u8],
    /// Bytes read.
    at: usize,
    values: Vec<Value<'p>>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'p> Machine<'p> {
    fn run(&mut self) -> Result<Id> {
        for _ in 0..OPERATIONS {
            let [operation] = self.take_array()?;
            match operation {
                b'.' => return self.stop(),
                // PROTO, FRAME
                0x80 => match self.take_array()? {
                    [2..=5] => {}
                    [other] => return Err(format!("is of pickle protocol {other}; 2 to 5 are read")),
                },
                0x95 => drop(self.take(8)?),
                b'(' => self.mark()?,
                // NONE, NEWTRUE, NEWFALSE
                b'N' | 0x88 | 0x89 => self.push_id(OPAQUE)?,
                b'G' => self.opaque(8)?,
                b'J' => self.integer::<4>(|x| i32::from_le_bytes(x).into())?,
                b'K' => self.integer::<1>(|[x]| x.into())?,
                b'M' => self.integer::<2>(|x| u16::from_le_bytes(x).into())?,
                0x8a => self.long()?,
                // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
                b'X' => self.text::<4>()?,
                0x8c => self.text::<1>()?,
                0x8d => self.text::<8>()?,
                // SHORT_BINSTRING, BINSTRING, SHORT_BINBYTES, BINBYTES, BINBYTES8
                b'U' | b'C' => self.bytes::<1>()?,
                b'T' | b'B' => self.bytes::<4>()?,
                0x8e => self.bytes::<8>()?,
                b')' => self.push(Value::Tuple(Vec::new()))?,
                b']' => self.push(Value::List(Vec::new()))?,
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Value::Tuple(items))?;
                }
                // TUPLE1, TUPLE2, TUPLE3
                0x85..=0x87 => {
                    let items = self.pop_many(usize::from(operation - 0x84))?;
                    self.push(Value::Tuple(items))?;
                }
                b'a' => {
                    let items = self.pop_many(1)?;
                    self.append(items)?;
                }
                b'e' => {
                    let items = self.pop_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let items = self.pop_many(2)?;
                    self.set_items(&items)?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set_items(&items)?;
                }
                b'q' => self.put::<1>()?,
                b'r' => self.put::<4>()?,
                0x94 => self.put_at(u32::try_from(self.memo.len()).expect("within the limit"))?,
                b'h' => self.fetch::<1>()?,
                b'j' => self.fetch::<4>()?,
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Value::Global(Global::of(module, name)?))?;
                }
                // STACK_GLOBAL
                0x93 => {
                    let names = self.pop_many(2)?;
                    let (module, name) = (self.as_text(names[0])?, self.as_text(names[1])?);
                    self.push(Value::Global(Global::of(module, name)?))?;
                }
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                other => {
                    return Err(format!("has operation {other:#04x}, which no state dict needs"));
                }
            }
        }
        Err(format!("has more than {OPERATIONS} operations"))
    }

    fn stop(&mut self) -> Result<Id> {
        match (&self.stack[..], self.marks.is_empty(), self.at == self.bytes.len()) {
            (&[root], true, true) => Ok(root),
            _ => Err("ends with values to spare, or before its entry does".into()),
        }
    }

    fn take(&mut self, count: usize) -> Result<&'p [u8]> {
        let taken = self.bytes[self.at..].get(..count).ok_or("is cut short")?;
        self.at += count;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many as asked for"))
    }

    /// A length of N bytes, little-endian.
    fn length<const N: usize>(&mut self) -> Result<usize> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.take_array::<N>()?);
        usize::try_from(u64::from_le_bytes(wide)).map_err(|_| "is cut short".into())
    }

    fn line(&mut self) -> Result<&'p str> {
        let end = self.bytes[self.at..].iter().position(|&byte| byte == b'\n').ok_or("is cut short")?;
        let line = self.take(end)?;
        self.at += 1;
        std::str::from_utf8(line).map_err(|_| "has a name that is not UTF-8".into())
    }

    fn push(&mut self, value: Value<'p>) -> Result<()> {
        if self.values.len() == VALUES {
            return Err(format!("has more than {VALUES} values"));
        }
        let id = Id::try_from(self.values.len()).expect("within the limit");
        self.values.push(value);
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<()> {
        if self.stack.len() == VALUES {
            return Err(format!("has more than {VALUES} values on its stack"));
        }
        self.stack.push(id);
        Ok(())
    }

    fn mark(&mut self) -> Result<()> {
        if self.marks.len() == VALUES {
            return Err(format!("has more than {VALUES} marks"));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// The `count` values on top, the lowest first; not those below the last mark.
    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(height) if height >= floor => Ok(self.stack.drain(height..).collect()),
            _ => Err("takes values that are not on its stack".into()),
        }
    }

    fn pop(&mut self) -> Result<Id> {
        Ok(self.pop_many(1)?[0])
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let height = self.marks.pop().ok_or("takes a mark that is not there")?;
        Ok(self.stack.drain(height..).collect())
    }

    /// The value on top, which stays.
    fn top(&mut self) -> Result<Id> {
        let top = self.pop()?;
        self.stack.push(top);
        Ok(top)
    }

    fn get(&self, id: Id) -> &Value<'p> {
        &self.values[id as usize]
    }

    fn opaque(&mut self, count: usize) -> Result<()> {
        self.take(count)?;
        self.push_id(OPAQUE)
    }

    fn bytes<const N: usize>(&mut self) -> Result<()> {
        let count = self.length::<N>()?;
        self.opaque(count)
    }

    fn integer<const N: usize>(&mut self, of: impl Fn([u8; N]) -> i64) -> Result<()> {
        let value = of(self.take_array()?);
        self.push(Value::Integer(value))
    }

    /// An integer of up to 255 bytes; those beyond 64 bits are kept as opaque.
    fn long(&mut self) -> Result<()> {
        let count = self.length::<1>()?;
        let digits = self.take(count)?;
        if count > 8 {
            return self.push_id(OPAQUE);
        }
        let sign = digits.last().is_some_and(|&byte| byte & 0x80 != 0);
        let mut wide = [if sign { 0xff } else { 0 }; 8];
        wide[..count].copy_from_slice(digits);
        self.push(Value::Integer(i64::from_le_bytes(wide)))
    }

    fn text<const N: usize>(&mut self) -> Result<()> {
        let count = self.length::<N>()?;
        let text = std::str::from_utf8(self.take(count)?).map_err(|_| "has a text that is not UTF-8")?;
        self.push(Value::Text(text))
    }

    fn put<const N: usize>(&mut self) -> Result<()> {
        let place = self.length::<N>()?;
        self.put_at(u32::try_from(place).expect("at most 4 bytes"))
    }

    fn put_at(&mut self, place: u32) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(place, top);
        if self.memo.len() > VALUES {
            return Err(format!("keeps more than {VALUES} values"));
        }
        Ok(())
    }

    fn fetch<const N: usize>(&mut self) -> Result<()> {
        let place = self.length::<N>()?;
        let place = u32::try_from(place).expect("at most 4 bytes");
        let id = *self.memo.get(&place).ok_or("takes a value that it never kept")?;
        self.push_id(id)
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let target = self.top()?;
        match &mut self.values[target as usize] {
            Value::List(list) => list.extend(items),
            _ => return Err("appends to what is no list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let target = self.top()?;
        let (pairs, []) = items.as_chunks::<2>() else { return Err("has a key without a value".into()) };
        match &mut self.values[target as usize] {
            Value::Dict(dict) => dict.extend(pairs),
            _ => return Err("sets items of what is no dict".into()),
        }
        Ok(())
    }

    fn as_text(&self, id: Id) -> Result<&'p str> {
        match *self.get(id) {
            Value::Text(text) => Ok(text),
            _ => Err("has something else where a text is due".into()),
        }
    }

    fn as_size(&self, id: Id) -> Result<u64> {
        match *self.get(id) {
            Value::Integer(number) => {
                u64::try_from(number).map_err(|_| format!("has {number} where a size is due"))
            }
            _ => Err("has something else where a size is due".into()),
        }
    }

    fn as_tuple(&self, id: Id) -> Result<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Ok(items),
            _ => Err("has something else where a tuple is due".into()),
        }
    }

    /// Checks that the value is a shape or strides.
    fn check_sizes(&self, id: Id) -> Result<()> {
        let sizes = self.as_tuple(id)?;
        if sizes.len() > DIMENSIONS {
            return Err(format!("has a tensor of {} dimensions; at most {DIMENSIONS} are read", sizes.len()));
        }
        sizes.iter().try_for_each(|&size| self.as_size(size).map(drop))
    }

    /// ("storage", type, key, device, elements)
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let &[kind, dtype, key, _, elements] = self.as_tuple(id)? else {
            return Err("has a storage that is not told by five values".into());
        };
        let &Value::Global(Global::Storage(dtype)) = self.get(dtype) else {
            return Err("has a storage of no type".into());
        };
        if self.as_text(kind)? != "storage" {
            return Err("refers to what is no storage".into());
        }
        self.as_text(key)?;
        self.as_size(elements)?;
        self.push(Value::Storage(Storage { dtype, key, elements }))
    }

    /// What a call would give, of the calls that a state dict needs.
    fn reduce(&mut self) -> Result<()> {
        let call = self.pop_many(2)?;
        let arguments = self.as_tuple(call[1])?;
        let &Value::Global(global) = self.get(call[0]) else {
            return Err("calls what is no name".into());
        };
        match (global, arguments) {
            (Global::OrderedDict, []) => self.push(Value::Dict(Vec::new())),
            // Storage, offset, shape, strides, whether it has a gradient, hooks, and perhaps metadata.
            (
                Global::RebuildTensor,
                &[storage, offset, shape, strides, _, _] | &[storage, offset, shape, strides, _, _, _],
            ) => {
                if !matches!(self.get(storage), Value::Storage(_)) {
                    return Err("has a tensor without a storage".into());
                }
                self.check_sizes(shape)?;
                self.check_sizes(strides)?;
                self.as_size(offset)?;
                self.push(Value::Tensor(Tensor { storage, offset, shape, strides }))
            }
            (Global::RebuildParameter, &[tensor, _, _]) if matches!(self.get(tensor), Value::Tensor(_)) => {
                self.push_id(tensor)
            }
            (Global::Size, &[sizes]) if matches!(self.get(sizes), Value::Tuple(_)) => self.push_id(sizes),
            _ => Err("builds something from what it is not built from".into()),
        }
    }

    /// Drops the attributes that an `OrderedDict` is given: a state dict's `_metadata`.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        let target = self.top()?;
        match self.get(target) {
            Value::Dict(_) => Ok(()),
            _ => Err("gives attributes to what is no dict".into()),
        }
    }
}
