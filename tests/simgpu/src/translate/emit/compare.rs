//! Comparisons and selections.

use super::{
    Result,
    context::{Context, exactly},
    half::half_format,
    modifiers::Modifiers,
};
use crate::translate::{
    ast::{Instruction, Operand},
    types::Type,
};

pub(super) fn emit(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    match i.opcode.as_str() {
        "setp" => set_predicate(c, i, m),
        "set" => set(c, i, m),
        "selp" => {
            let [d, a, b, p] = exactly(i)?;
            let kind = m.one_type()?;
            let p = c.read(p, Type::Predicate)?;
            c.write(d, kind, &format!("{p} ? {} : {}", c.read(a, kind)?, c.read(b, kind)?))
        }
        "slct" => {
            let [d, a, b, selector] = exactly(i)?;
            let flush = m.take("ftz");
            let [kind, by] = m.types()[..] else { return Err("two types are expected".into()) };
            let selector = flushed(c.read(selector, by)?, flush && by == Type::F32);
            c.write(d, kind, &format!("{selector} >= 0 ? {} : {}", c.read(a, kind)?, c.read(b, kind)?))
        }
        _ => {
            let [d, a] = exactly(i)?;
            let function =
                match m.require(&["finite", "infinite", "number", "notanumber", "normal", "subnormal"])? {
                    "finite" => "isfinite",
                    "infinite" => "isinf",
                    "number" => "!isnan",
                    "notanumber" => "isnan",
                    "normal" => "is_normal",
                    _ => "is_subnormal",
                };
            let kind = m.one_type()?;
            c.write(d, Type::Predicate, &format!("{function}({})", c.read(a, kind)?))
        }
    }
}

fn flushed(value: String, flush: bool) -> String {
    if flush { format!("ftz({value})") } else { value }
}

/// `a < b` by a comparison's name, of sources of type `kind`.
fn comparison(name: &str, kind: Type, a: &str, b: &str) -> Result<String> {
    let float = !kind.is_integer();
    let (symbol, or_unordered) = match name {
        "eq" => ("==", false),
        // An unordered pair is not "not equal": that is neu.
        "ne" if float => return Ok(format!("({a} < {b} || {a} > {b})")),
        "ne" => ("!=", false),
        "lt" => ("<", false),
        "le" => ("<=", false),
        "gt" => (">", false),
        "ge" => (">=", false),
        "lo" if !float => ("<", false),
        "ls" if !float => ("<=", false),
        "hi" if !float => (">", false),
        "hs" if !float => (">=", false),
        "equ" if float => ("==", true),
        "neu" if float => return Ok(format!("({a} != {b})")),
        "ltu" if float => ("<", true),
        "leu" if float => ("<=", true),
        "gtu" if float => (">", true),
        "geu" if float => (">=", true),
        "num" if float => return Ok(format!("!unordered({a}, {b})")),
        "nan" if float => return Ok(format!("unordered({a}, {b})")),
        _ => return Err(format!("comparison .{name} of this type")),
    };
    let compared = format!("({a} {symbol} {b})");
    Ok(if or_unordered { format!("({compared} || unordered({a}, {b}))") } else { compared })
}

/// The comparison that the modifiers and the sources from operand 1 on ask for, without and with the predicate at the
/// end: the second half of a pair of destinations combines the opposite.
fn condition(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>, kind: Type) -> Result<[String; 2]> {
    const COMPARISONS: [&str; 18] = [
        "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu",
        "num", "nan",
    ];
    let flush = m.take("ftz");
    let name = m.require(&COMPARISONS)?;
    let unsigned = ["lo", "ls", "hi", "hs"].contains(&name);
    let kind = if unsigned { kind.unsigned() } else { kind };
    let value = |index: usize| -> Result<String> {
        let value = c.read(i.operands.get(index).ok_or("operands are missing")?, kind)?;
        Ok(match kind {
            Type::F16 | Type::Bf16 => format!("widen<{}>({value})", half_format(kind)),
            _ => flushed(value, flush && kind == Type::F32),
        })
    };
    if matches!(kind, Type::F16x2 | Type::Bf16x2) {
        return Err("a comparison of pairs".into());
    }
    let compared = comparison(name, kind, &value(1)?, &value(2)?)?;
    let combine = m.choose(&["and", "or", "xor"]).map(|name| match name {
        "and" => "&&",
        "or" => "||",
        _ => "!=",
    });
    match (combine, i.operands.get(3)) {
        (None, None) => Ok([compared.clone(), format!("!{compared}")]),
        (Some(symbol), Some(p)) => {
            let p = c.read(p, Type::Predicate)?;
            Ok([format!("({compared} {symbol} {p})"), format!("(!{compared} {symbol} {p})")])
        }
        _ => Err("a combination wants its predicate".into()),
    }
}

fn set_predicate(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    let kind = m.one_type()?;
    let [condition, opposite] = condition(c, i, m, kind)?;
    match &i.operands[0] {
        // Both are computed first: a destination may be a source.
        Operand::Pair(p, q) => {
            let p = c.write_name(p, Type::Predicate, "first")?;
            let q = c.write_name(q, Type::Predicate, "second")?;
            Ok(format!("{{ const bool first = {condition}, second = {opposite}; {p} {q} }}"))
        }
        d => c.write(d, Type::Predicate, &condition),
    }
}

/// A comparison's result as a number: all ones, or 1.0 for a float.
fn set(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    let [result, kind] = m.types()[..] else { return Err("two types are expected".into()) };
    let [condition, _] = condition(c, i, m, kind)?;
    let expression = match result {
        Type::F32 => format!("{condition} ? 1.0f : 0.0f"),
        Type::Unsigned(32) | Type::Signed(32) | Type::Bits(32) => format!("{condition} ? ~0u : 0u"),
        Type::F16 => format!("{condition} ? 0x3c00 : 0"),
        Type::Bf16 => format!("{condition} ? 0x3f80 : 0"),
        _ => return Err("a set of this type".into()),
    };
    c.write(&i.operands[0], result, &expression)
}
