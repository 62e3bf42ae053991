//! cvt: from any number to any other.

use super::{
    Result,
    context::{Context, exactly},
    half::half_format,
    modifiers::Modifiers,
};
use crate::translate::{ast::Instruction, types::Type};

pub(super) fn emit(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    let [to, from] = m.types()[..] else { return Err("two types are expected".into()) };
    if let Type::F16x2 | Type::Bf16x2 = to {
        return pack(c, i, m, to, from);
    }
    let [d, a] = exactly(i)?;
    let source = c.read(a, from)?;
    let expression = match (to, from) {
        (to, from) if to.is_integer() && from.is_integer() => match m.take("sat") {
            true => format!("clamp<{}>({source})", to.value()),
            false => format!("{}({source})", to.value()),
        },
        (to, _) if to.is_integer() => {
            // The result is in range anyway: .sat changes nothing.
            m.take("sat");
            let flush = m.take("ftz");
            let mode = integral_mode(m).ok_or("a rounding to integers is missing")?;
            let source = wide(&source, from, flush);
            format!("to_integer<{}>(integral({mode}, {source}))", to.value())
        }
        (_, from) if from.is_integer() => {
            let mode = m.rounding();
            let saturating = m.take("sat");
            let float = if to == Type::F64 { "double" } else { "float" };
            let value = format!("from_integer<{float}>({mode}, {source})");
            let value = if saturating { format!("sat({value})") } else { value };
            match to {
                Type::F16 | Type::Bf16 => {
                    // Twice rounded would be wrong: a double holds any 32-bit integer.
                    if from.width() == 64 {
                        return Err("a 64-bit integer to half precision".into());
                    }
                    format!("round_half<{}, {mode}>(double({source}))", half_format(to))
                }
                _ => value,
            }
        }
        _ => between_floats(m, to, from, &source)?,
    };
    c.write(d, to, &expression)
}

fn integral_mode(m: &mut Modifiers<'_>) -> Option<&'static str> {
    m.choose(&["rni", "rzi", "rmi", "rpi"]).map(|mode| match mode {
        "rni" => "RN",
        "rzi" => "RZ",
        "rmi" => "RM",
        _ => "RP",
    })
}

/// A source as float or double, its subnormals flushed if asked.
fn wide(source: &str, from: Type, flush: bool) -> String {
    match from {
        Type::F16 | Type::Bf16 => format!("widen<{}>({source})", half_format(from)),
        Type::F32 if flush => format!("ftz({source})"),
        _ => source.to_owned(),
    }
}

fn between_floats(m: &mut Modifiers<'_>, to: Type, from: Type, source: &str) -> Result<String> {
    let flush = m.take("ftz");
    let (saturating, relu) = (m.take("sat"), m.take("relu"));
    let source = wide(source, from, flush);
    let value = if to == from {
        match integral_mode(m) {
            Some(mode) => format!("integral({mode}, {source})"),
            None => source,
        }
    } else {
        source
    };
    let value = if saturating { format!("sat({value})") } else { value };
    let explicit = m.choose(&["rn", "rz", "rm", "rp"]);
    let mode = match explicit {
        Some("rz") => "RZ",
        Some("rm") => "RM",
        Some("rp") => "RP",
        _ => "RN",
    };
    let expression = match to {
        Type::F64 => format!("double({value})"),
        Type::F32 if from == Type::F64 => format!("narrow<{mode}>({value}, 0)"),
        Type::F32 => value,
        Type::Bf16 if from == Type::F32 && mode == "RN" => format!("bf16_rn({value})"),
        Type::F16 if from == Type::F32 && mode == "RN" => format!("f16_rn({value})"),
        Type::F16 | Type::Bf16 => format!("round_half<{}, {mode}>({value})", half_format(to)),
        _ => return Err("such a conversion".into()),
    };
    let expression = if flush && to == Type::F32 { format!("ftz({expression})") } else { expression };
    match (relu, to) {
        (false, _) => Ok(expression),
        (true, Type::F16 | Type::Bf16) => Ok(format!("half_relu<{}>({expression})", half_format(to))),
        _ => Err(".relu of this type".into()),
    }
}

/// Two floats to a pair of halves: the first source becomes the upper half.
fn pack(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>, to: Type, from: Type) -> Result<String> {
    let [d, upper, lower] = exactly(i)?;
    if from != Type::F32 {
        return Err("a pair from this type".into());
    }
    let relu = m.take("relu");
    let function = match (m.require(&["rn", "rz"])?, to) {
        ("rn", Type::F16x2) => "f16_rn".to_owned(),
        ("rn", _) => "bf16_rn".to_owned(),
        _ => format!("round_half<{}, RZ>", half_format(to)),
    };
    let half = |operand| -> Result<String> {
        let value = format!("{function}({})", c.read(operand, from)?);
        Ok(if relu { format!("half_relu<{}>({value})", half_format(to)) } else { value })
    };
    c.write(d, to, &format!("pair({}, {})", half(lower)?, half(upper)?))
}
