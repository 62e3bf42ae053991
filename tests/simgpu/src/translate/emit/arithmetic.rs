//! Arithmetic on integers and floats.

use super::{
    Result,
    context::{Context, exactly},
    half,
    modifiers::Modifiers,
};
use crate::translate::{ast::Instruction, types::Type};

pub(super) fn emit(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    match m.one_type()? {
        kind if kind.is_integer() => integer(c, i, m, kind),
        kind if kind.is_native_float() => float(c, i, m, kind),
        kind if kind.is_half() => half::emit(c, i, m, kind),
        _ => Err("arithmetic on this type".into()),
    }
}

fn sources(c: &Context<'_>, i: &Instruction, kind: Type) -> Result<Vec<String>> {
    i.operands.iter().skip(1).map(|operand| c.read(operand, kind)).collect()
}

fn integer(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>, kind: Type) -> Result<String> {
    let opcode = i.opcode.as_str();
    if m.take("cc") || ["addc", "subc", "madc"].contains(&opcode) {
        return with_carry(c, i, m, kind);
    }
    let saturating = kind == Type::Signed(32) && m.take("sat");
    let (unsigned, value) = (kind.unsigned(), kind.value());
    let part = m.choose(&["lo", "hi", "wide"]).unwrap_or("");
    let wide = match (part, kind) {
        ("wide", Type::Signed(width @ (16 | 32))) => Some(Type::Signed(width * 2)),
        ("wide", Type::Unsigned(width @ (16 | 32))) => Some(Type::Unsigned(width * 2)),
        ("wide", _) => return Err("a wide product of this type".into()),
        _ => None,
    };
    // Sources by value, and as numbers whose overflow wraps.
    let s = match wide {
        Some(_) => sources(c, i, kind).or_else(|_| sources(c, i, Type::Bits(kind.width()))),
        None => sources(c, i, kind),
    };
    let u = |index: usize| c.read(&i.operands[index + 1], unsigned);
    let product = |s: &[String]| match part {
        "hi" => Ok(format!("mul_hi({}, {})", s[0], s[1])),
        "lo" => Ok(format!("{}(wide<{}>({}) * {})", unsigned.value(), unsigned.value(), u(0)?, u(1)?)),
        _ => Err("a product without .lo, .hi or .wide".to_owned()),
    };
    if let (Some(wide), "mul" | "mad") = (wide, opcode) {
        let (a, b) = (c.read(&i.operands[1], kind)?, c.read(&i.operands[2], kind)?);
        let w = wide.value();
        let mut expression = format!("{w}({a}) * {w}({b})");
        if opcode == "mad" {
            let [_, _, _, addend] = exactly(i)?;
            let sum = wide.unsigned();
            expression = format!("{}({expression}) + {}", sum.value(), c.read(addend, sum)?);
        } else {
            exactly::<3>(i)?;
        }
        return c.write(&i.operands[0], wide, &expression);
    }
    let s = s?;
    let expression = match (opcode, s.len()) {
        ("add", 2) if saturating => format!("saturate(int64_t({}) + {})", s[0], s[1]),
        ("sub", 2) if saturating => format!("saturate(int64_t({}) - {})", s[0], s[1]),
        ("mad", 3) if saturating && part == "hi" => {
            format!("saturate(int64_t(mul_hi({}, {})) + {})", s[0], s[1], s[2])
        }
        _ if saturating => return Err("saturation of this instruction".into()),
        ("add", 2) => format!("{}({} + {})", unsigned.value(), u(0)?, u(1)?),
        ("sub", 2) => format!("{}({} - {})", unsigned.value(), u(0)?, u(1)?),
        ("mul", 2) => product(&s)?,
        ("mad", 3) => format!("{}({} + {})", unsigned.value(), product(&s)?, u(2)?),
        ("mul24", 2) => format!("mul24_{part}({}, {})", s[0], s[1]),
        ("div" | "rem", 2) => format!("{opcode}({}, {})", s[0], s[1]),
        ("sad", 3) => format!("sad({}, {}, {})", s[0], s[1], s[2]),
        ("neg", 1) => format!("{}(-{})", unsigned.value(), u(0)?),
        ("abs", 1) => format!("{}({} < 0 ? -{} : {})", unsigned.value(), s[0], u(0)?, u(0)?),
        ("min" | "max", 2) => {
            let best = format!("{}({}, {})", extreme(opcode), s[0], s[1]);
            let relu = kind == Type::Signed(32) && m.take("relu");
            if relu { format!("greatest({best}, 0)") } else { best }
        }
        _ => return Err("no such integer arithmetic".into()),
    };
    c.write(&i.operands[0], kind, &format!("{value}({expression})"))
}

/// C++ name of min and max of integers.
pub(super) fn extreme(name: &str) -> &'static str {
    if name == "min" { "least" } else { "greatest" }
}

/// The condition code's carry goes in (addc, subc, madc) or out (.cc) or both.
fn with_carry(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>, kind: Type) -> Result<String> {
    let kind = kind.unsigned();
    let value = kind.value();
    let out = i.modifiers.iter().any(|modifier| modifier == "cc");
    let carry_in = if i.opcode.ends_with('c') { "carry" } else { "false" };
    let carry_out = if out { "carry" } else { "unused" };
    let sum = match i.opcode.as_str() {
        "add" | "addc" | "sub" | "subc" => {
            let [_, a, b] = exactly(i)?;
            let function = if i.opcode.starts_with("add") { "add_carry" } else { "sub_borrow" };
            format!(
                "{function}<{value}>({}, {}, {carry_in}, {carry_out})",
                c.read(a, kind)?,
                c.read(b, kind)?
            )
        }
        "mad" | "madc" => {
            let [_, a, b, addend] = exactly(i)?;
            let (a, b, addend) = (c.read(a, kind)?, c.read(b, kind)?, c.read(addend, kind)?);
            let product = match m.require(&["lo", "hi"])? {
                "hi" => format!("mul_hi({a}, {b})"),
                _ => format!("{a} * {b}"),
            };
            format!("add_carry<{value}>({product}, {addend}, {carry_in}, {carry_out})")
        }
        _ => return Err("no carry here".into()),
    };
    let unused = if out { "" } else { "bool unused; " };
    Ok(format!("{{ {unused}{} }}", c.write(&i.operands[0], kind, &sum)?))
}

fn float(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>, kind: Type) -> Result<String> {
    let single = kind == Type::F32;
    let flush = m.take("ftz");
    let saturating = m.take("sat");
    let approximate = m.choose(&["approx", "full"]);
    let explicit = ["rz", "rm", "rp"].iter().any(|mode| i.modifiers.iter().any(|modifier| modifier == mode));
    let rounding = m.rounding();
    if explicit && !single {
        return Err("double precision rounds to nearest only".into());
    }
    let mut s = sources(c, i, kind)?;
    if flush && single {
        s.iter_mut().for_each(|source| *source = format!("ftz({source})"));
    }
    // Rounded otherwise than C++ does.
    let directed =
        |function: &str, arguments: &[&str]| format!("{function}<{rounding}>({})", arguments.join(", "));
    let one = if single { "1.0f" } else { "1.0" };
    let expression = match (i.opcode.as_str(), s.as_slice()) {
        ("add", [a, b]) if explicit => directed("add", &[a, b]),
        ("sub", [a, b]) if explicit => directed("add", &[a, &format!("-{b}")]),
        ("mul", [a, b]) if explicit => directed("mul", &[a, b]),
        ("fma" | "mad", [a, b, addend]) if explicit => directed("fma", &[a, b, addend]),
        ("div", [a, b]) if explicit => directed("div", &[a, b]),
        ("rcp", [a]) if explicit => directed("div", &[one, a]),
        ("sqrt", [a]) if explicit => directed("sqrt", &[a]),
        ("add", [a, b]) => format!("{a} + {b}"),
        ("sub", [a, b]) => format!("{a} - {b}"),
        ("mul", [a, b]) => format!("{a} * {b}"),
        ("fma" | "mad", [a, b, addend]) => format!("fma({a}, {b}, {addend})"),
        ("div", [a, b]) if approximate == Some("approx") => format!("div_approx({a}, {b})"),
        ("div", [a, b]) => format!("{a} / {b}"),
        ("rcp", [a]) if approximate.is_some() && !single => format!("rcp_approx({a})"),
        ("rcp", [a]) => format!("{one} / {a}"),
        ("sqrt", [a]) => format!("sqrt({a})"),
        ("rsqrt", [a]) if single => format!("rsqrt({a})"),
        ("rsqrt", [a]) if flush => format!("rsqrt_approx({a})"),
        ("rsqrt", [a]) => format!("1.0 / sqrt({a})"),
        ("ex2" | "lg2" | "sin" | "cos" | "tanh", [a]) if single && approximate == Some("approx") => {
            format!("{}({a})", i.opcode)
        }
        ("neg", [a]) => format!("-{a}"),
        ("abs", [a]) => format!("fabs({a})"),
        // The sign of the first, the magnitude of the second.
        ("copysign", [a, b]) => format!("copysign({b}, {a})"),
        ("min" | "max", [a, b]) => extremum(&i.opcode, m, a, b),
        _ => return Err("no such floating-point arithmetic".into()),
    };
    let mut result = expression;
    if flush && single {
        result = format!("ftz({result})");
    }
    if saturating {
        result = format!("sat({result})");
    }
    c.write(&i.operands[0], kind, &result)
}

fn extremum(opcode: &str, m: &mut Modifiers<'_>, a: &str, b: &str) -> String {
    let function = if m.take("NaN") { format!("{opcode}_nan") } else { opcode.to_owned() };
    if m.take("xorsign") && m.take("abs") {
        return format!("xorsign({function}(fabs({a}), fabs({b})), {a}, {b})");
    }
    format!("{function}({a}, {b})")
}
