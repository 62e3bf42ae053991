//! Logic, shifts and fields of bits.

use super::{
    Result,
    context::{Context, exactly},
    modifiers::Modifiers,
};
use crate::translate::{
    ast::{Instruction, Operand},
    types::Type,
};

const U32: Type = Type::Unsigned(32);

pub(super) fn emit(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    match i.opcode.as_str() {
        "dp4a" | "dp2a" => return dot_product(c, i, m),
        "shf" => return funnel_shift(c, i, m),
        _ => {}
    }
    let kind = m.one_type()?;
    if kind != Type::Predicate && !kind.is_integer() {
        return Err("bits of this type".into());
    }
    // Only these look at the sign.
    let kind = match i.opcode.as_str() {
        "shr" | "bfe" | "bfind" => kind,
        _ if kind == Type::Predicate => kind,
        _ => kind.unsigned(),
    };
    let kind = if let Type::Bits(_) = kind { kind.unsigned() } else { kind };
    let value = kind.value();
    let a = c.read(i.operands.get(1).ok_or("operands are missing")?, kind)?;
    let read = |index: usize, kind: Type| c.read(&i.operands[index], kind);
    let logic = |symbol: &str| -> Result<String> { Ok(format!("{value}({a} {symbol} {})", read(2, kind)?)) };
    let (result, expression) = match (i.opcode.as_str(), i.operands.len()) {
        ("and", 3) => (kind, logic("&")?),
        ("or", 3) => (kind, logic("|")?),
        ("xor", 3) => (kind, logic("^")?),
        ("not", 2) if kind == Type::Predicate => (kind, format!("!{a}")),
        ("not", 2) => (kind, format!("{value}(~{a})")),
        ("cnot", 2) => (kind, format!("{value}({a} == 0)")),
        ("shl" | "shr", 3) => (kind, format!("{}<{value}>({a}, {})", i.opcode, read(2, U32)?)),
        ("bfe", 4) => (kind, format!("bfe<{value}>({a}, {}, {})", read(2, U32)?, read(3, U32)?)),
        ("bfi", 5) => {
            let (b, position, length) = (read(2, kind)?, read(3, U32)?, read(4, U32)?);
            (kind, format!("bfi<{value}>({a}, {b}, {position}, {length})"))
        }
        ("bfind", 2) if m.take("shiftamt") => (U32, format!("bfind_shiftamt<{value}>({a})")),
        ("bfind" | "popc" | "clz", 2) => (U32, format!("{}<{value}>({a})", i.opcode)),
        ("brev", 2) => (kind, format!("brev<{value}>({a})")),
        ("lop3", 5) => {
            let Operand::Integer(table) = i.operands[4] else {
                return Err("a table that is no number".into());
            };
            (kind, format!("lop3<{table}>({a}, {}, {})", read(2, kind)?, read(3, kind)?))
        }
        ("prmt", 4) => {
            let (b, selector) = (read(2, kind)?, read(3, kind)?);
            match m.choose(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]) {
                Some(mode) => (kind, format!("prmt_mode(prmt_{mode}, {a}, {b}, {selector})")),
                None => (kind, format!("prmt({a}, {b}, {selector})")),
            }
        }
        _ => return Err("no such instruction on bits".into()),
    };
    c.write(&i.operands[0], result, &expression)
}

fn funnel_shift(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    let [d, low, high, count] = exactly(i)?;
    let direction = m.require(&["l", "r"])?;
    let count = c.read(count, U32)?;
    let count = match m.require(&["clamp", "wrap"])? {
        "wrap" => format!("{count} & 31"),
        _ => format!("clamp32({count})"),
    };
    let kind = m.one_type()?;
    let (low, high) = (c.read(low, U32)?, c.read(high, U32)?);
    c.write(d, kind, &format!("shf_{direction}({low}, {high}, {count})"))
}

fn dot_product(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    let [d, a, b, addend] = exactly(i)?;
    let types = m.types();
    let width = |bits: u32, kind: Type| match kind {
        Type::Signed(32) => Ok(format!("int{bits}_t")),
        Type::Unsigned(32) => Ok(format!("uint{bits}_t")),
        _ => Err("a dot product of this type".to_owned()),
    };
    let [first, second] = types[..] else { return Err("two types are expected".into()) };
    let (a, mut b, addend) = (c.read(a, U32)?, c.read(b, U32)?, c.read(addend, U32)?);
    let mut elements = 8;
    if i.opcode == "dp2a" {
        elements = 16;
        if m.require(&["lo", "hi"])? == "hi" {
            b = format!("{b} >> 16");
        }
    }
    let (first, second) = (width(elements, first)?, width(8, second)?);
    c.write(d, U32, &format!("{}<{first}, {second}>({a}, {b}, {addend})", i.opcode))
}
