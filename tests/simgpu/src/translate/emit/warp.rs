//! Exchanges between the lanes of a warp.

use super::{
    Result,
    arithmetic::extreme,
    context::{Context, exactly},
    modifiers::Modifiers,
};
use crate::translate::{
    ast::{Instruction, Operand},
    types::Type,
};

const U32: Type = Type::Unsigned(32);

pub(super) fn emit(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    m.take("sync");
    match i.opcode.as_str() {
        "shfl" => {
            let [d, a, b, clamp, mask] = exactly(i)?;
            let mode = m.require(&["up", "down", "bfly", "idx"])?;
            let kind = m.one_type()?;
            let (a, b, clamp, mask) =
                (c.read(a, kind)?, c.read(b, U32)?, c.read(clamp, U32)?, c.read(mask, U32)?);
            value_and_predicate(
                c,
                d,
                kind,
                &format!("shfl(Shuffle::{mode}, {a}, {b}, {clamp}, {mask}, predicate, PC)"),
            )
        }
        "vote" => {
            let [d, p, mask] = exactly(i)?;
            let mode = m.require(&["all", "any", "uni", "ballot"])?;
            let kind = m.one_type()?;
            let (p, mask) = (c.read(p, Type::Predicate)?, c.read(mask, U32)?);
            let function = if mode == "ballot" { mode.to_owned() } else { format!("vote_{mode}") };
            c.write(d, kind, &format!("{function}(vote({p}, {mask}, PC))"))
        }
        "match" => {
            let [d, a, mask] = exactly(i)?;
            let mode = m.require(&["any", "all"])?;
            let kind = m.one_type()?;
            let (a, mask) = (c.read(a, kind)?, c.read(mask, U32)?);
            match mode {
                "any" => c.write(d, U32, &format!("match_any({a}, {mask}, PC)")),
                _ => value_and_predicate(c, d, U32, &format!("match_all({a}, {mask}, predicate, PC)")),
            }
        }
        "redux" => {
            let [d, a, mask] = exactly(i)?;
            let operation = m.require(&["add", "min", "max", "and", "or", "xor"])?;
            let kind = m.one_type()?;
            let value = kind.value();
            let step = match operation {
                "min" | "max" => format!("{}(x, y)", extreme(operation)),
                "add" => "x + y".to_owned(),
                "and" => "x & y".to_owned(),
                "or" => "x | y".to_owned(),
                _ => "x ^ y".to_owned(),
            };
            let (a, mask) = (c.read(a, kind)?, c.read(mask, U32)?);
            let combine = format!("[]({value} x, {value} y) {{ return {value}({step}); }}");
            c.write(d, kind, &format!("redux({a}, {mask}, {combine}, PC)"))
        }
        "activemask" => {
            let [d] = exactly(i)?;
            let kind = m.one_type()?;
            c.write(d, kind, "active_lanes()")
        }
        _ => {
            let [d, mask] = exactly(i)?;
            value_and_predicate(c, d, U32, &format!("elect({}, predicate, PC)", c.read(mask, U32)?))
        }
    }
}

/// Writes an expression that also sets `predicate` to `d` or `d|p`.
fn value_and_predicate(c: &Context<'_>, d: &Operand, kind: Type, expression: &str) -> Result<String> {
    let (value, then) = match d {
        Operand::Pair(value, p) => (value, c.write_name(p, Type::Predicate, "predicate")?),
        Operand::Name(value) => (value, String::new()),
        _ => return Err("a register is expected".into()),
    };
    Ok(format!("{{ bool predicate; {} {then} }}", c.write_name(value, kind, expression)?))
}
