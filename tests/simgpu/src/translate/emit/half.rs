//! Arithmetic in half precision: f16, bf16, and pairs of them in 32 bits.

use super::{Result, context::Context, modifiers::Modifiers};
use crate::translate::{ast::Instruction, types::Type};

pub(super) fn emit(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>, kind: Type) -> Result<String> {
    let format = half_format(kind);
    let flush = m.take("ftz");
    m.ignore(&["rn", "approx"]);
    let mut after = vec![];
    for (modifier, function) in [("sat", "half_sat"), ("relu", "half_relu")] {
        if m.take(modifier) {
            after.push(function);
        }
    }
    let (function, arity) = match i.opcode.as_str() {
        "fma" => ("half_fma", 3),
        "add" => ("half_add", 2),
        "sub" => ("half_sub", 2),
        "mul" => ("half_mul", 2),
        "min" if m.take("NaN") => ("half_min_nan", 2),
        "max" if m.take("NaN") => ("half_max_nan", 2),
        "min" => ("half_min", 2),
        "max" => ("half_max", 2),
        "neg" => ("half_neg", 1),
        "abs" => ("half_abs", 1),
        "ex2" => ("half_ex2", 1),
        "tanh" => ("half_tanh", 1),
        _ => return Err("no such half-precision arithmetic".into()),
    };
    if i.operands.len() != arity + 1 {
        return Err(format!("{arity} sources are expected"));
    }
    let pairs = matches!(kind, Type::F16x2 | Type::Bf16x2);
    let apply = |function: &str, arguments: &str| match pairs {
        true => format!("both({function}<{format}>, {arguments})"),
        false => format!("{function}<{format}>({arguments})"),
    };
    let mut sources = vec![];
    for operand in &i.operands[1..] {
        let source = c.read(operand, kind)?;
        sources.push(if flush { apply("half_ftz", &source) } else { source });
    }
    let mut result = apply(function, &sources.join(", "));
    if flush {
        result = apply("half_ftz", &result);
    }
    for function in after {
        result = apply(function, &result);
    }
    c.write(&i.operands[0], kind, &result)
}

/// C++ type that describes the format.
pub(super) fn half_format(kind: Type) -> &'static str {
    if matches!(kind, Type::F16 | Type::F16x2) { "F16" } else { "Bf16" }
}
