//! A [`Module`] to C++, instruction by instruction. Each family of instructions has its file; a handler takes the
//! modifiers that it knows off the list, and what is left over is an error.

mod arithmetic;
mod asynchronous;
mod bits;
mod compare;
mod context;
mod control;
mod convert;
mod function;
mod half;
mod memory;
mod modifiers;
mod tensor;
mod warp;

use super::{
    Untranslated,
    ast::{Instruction, Linkage, Module, Operand, Space, Variable},
    types::Type,
};
use context::{Context, Symbol, cpp_name};
use modifiers::Modifiers;
use std::{collections::HashMap, fmt::Write};

/// A string says what is not known.
type Result<T> = std::result::Result<T, String>;

/// C++ that every unit starts with.
const PRELUDE: [&str; 8] = [
    include_str!("../prelude/head.h"),
    include_str!("../prelude/integer.h"),
    include_str!("../prelude/float.h"),
    include_str!("../prelude/half.h"),
    include_str!("../prelude/convert.h"),
    include_str!("../prelude/memory.h"),
    include_str!("../prelude/warp.h"),
    include_str!("../prelude/wgmma.h"),
];

/// # Errors
/// Every statement without a translation.
pub(super) fn module(unit: &str, module: &Module) -> std::result::Result<String, Vec<Untranslated>> {
    let mut text = format!("// {unit}: translated from PTX.\n{}", PRELUDE.concat());
    let (mut errors, mut symbols) = (vec![], HashMap::new());
    for variable in &module.variables {
        match module_variable(variable, &mut text) {
            Ok(symbol) => {
                symbols.insert(variable.name.clone(), symbol);
            }
            Err(reason) => errors.push(Untranslated::new(variable.line, &variable.name, &reason)),
        }
    }
    for (index, function) in module.functions.iter().enumerate() {
        if function.linkage == Linkage::Function && function.body.is_some() {
            symbols.insert(function.name.clone(), Symbol::Function(index));
            writeln!(text, "{};", function::signature(function)).expect("a string takes all");
        }
    }
    for function in &module.functions {
        let Some(body) = &function.body else { continue };
        match function::translate(unit, module, &symbols, function, body) {
            Ok(function) => text.push_str(&function),
            Err(more) => errors.extend(more),
        }
    }
    text.push_str("} // namespace\n} // namespace ptx\n");
    if errors.is_empty() { Ok(text) } else { Err(errors) }
}

/// Declares a variable of the module.
fn module_variable(variable: &Variable, text: &mut String) -> Result<Symbol> {
    let name = cpp_name(&variable.name);
    let place = match (variable.space, variable.count) {
        (Space::Shared, None) => "sim::dyn_smem()".to_owned(),
        (Space::Shared, Some(_)) => {
            writeln!(text, "static char tag_{name};").expect("a string takes all");
            format!("sim::static_smem(&tag_{name}, {}, {})", variable.bytes(), variable.align)
        }
        (Space::Global | Space::Constant, Some(_)) => {
            let bytes: Vec<_> = initial_bytes(variable)?.iter().map(u8::to_string).collect();
            let (align, size, bytes) = (variable.align, variable.bytes(), bytes.join(","));
            writeln!(text, "alignas({align}) static unsigned char {name}[{size}] = {{{bytes}}};")
                .expect("a string takes all");
            format!("address({name})")
        }
        _ => return Err("a variable of this space and size".into()),
    };
    Ok(Symbol::Address(variable.space, place))
}

fn initial_bytes(variable: &Variable) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    for value in &variable.initial {
        let pattern = match *value {
            Operand::Integer(value) => value as u64,
            Operand::Float32(pattern) if variable.element == Type::F64 => {
                f64::from(f32::from_bits(pattern)).to_bits()
            }
            Operand::Float32(pattern) => pattern.into(),
            Operand::Float64(pattern) if variable.element == Type::F32 => {
                (f64::from_bits(pattern) as f32).to_bits().into()
            }
            Operand::Float64(pattern) => pattern,
            _ => return Err("an initial value that is no number".into()),
        };
        bytes.extend(&pattern.to_le_bytes()[..variable.element.bytes()]);
    }
    Ok(bytes)
}

/// One instruction without its predicate: C++ statements.
fn instruction(context: &Context<'_>, instruction: &Instruction) -> Result<String> {
    let mut modifiers = Modifiers::of(instruction);
    let handler = match instruction.opcode.as_str() {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "neg" | "abs" | "min" | "max" | "rcp"
        | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "sad" | "mul24" | "addc" | "subc"
        | "madc" | "copysign" => arithmetic::emit,
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "bfe" | "bfi" | "bfind" | "brev"
        | "popc" | "clz" | "lop3" | "prmt" | "dp4a" | "dp2a" => bits::emit,
        "setp" | "set" | "selp" | "slct" | "testp" => compare::emit,
        "cvt" => convert::emit,
        "mov" | "ld" | "ldu" | "st" | "atom" | "red" | "cvta" | "isspacep" | "prefetch" | "prefetchu"
        | "discard" | "applypriority" | "createpolicy" => memory::emit,
        "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "nanosleep" | "bar" | "barrier"
        | "membar" | "fence" | "setmaxnreg" | "griddepcontrol" => control::emit,
        "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => warp::emit,
        "ldmatrix" | "stmatrix" | "movmatrix" | "mma" | "wgmma" => tensor::emit,
        "cp" | "mbarrier" => asynchronous::emit,
        _ => return Err("unknown instruction".into()),
    };
    let text = handler(context, instruction, &mut modifiers)?;
    modifiers.finish()?;
    Ok(text)
}
