//! Tensor-core instructions and the moves of their fragments.

use super::{
    Result,
    context::{Context, elements, exactly},
    memory::shared_address,
    modifiers::Modifiers,
};
use crate::translate::{
    ast::{Instruction, Operand},
    types::Type,
};

const B32: Type = Type::Bits(32);

pub(super) fn emit(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    m.ignore(&["sync", "aligned"]);
    match i.opcode.as_str() {
        "ldmatrix" => {
            let [d, place] = exactly(i)?;
            let (count, transpose) = matrices(m)?;
            let address = shared_address(c, m, place)?;
            let load = format!("sim::ldmatrix(fragment, {count}, {transpose}, {address}, PC);");
            Ok(format!("{{ uint32_t fragment[{count}]; {load} {} }}", write_all(c, d, "fragment", count)?))
        }
        "stmatrix" => {
            let [place, a] = exactly(i)?;
            let (count, transpose) = matrices(m)?;
            let address = shared_address(c, m, place)?;
            let fragment = read_all(c, a, count)?;
            Ok(format!(
                "{{ const uint32_t fragment[] = {fragment}; sim::stmatrix(fragment, {count}, {transpose}, {address}, PC); }}"
            ))
        }
        "movmatrix" => {
            let [d, a] = exactly(i)?;
            m.require(&["m8n8"])?;
            m.require(&["trans"])?;
            m.require(&["b16"])?;
            c.write(d, B32, &format!("sim::movmatrix({}, PC)", c.read(a, B32)?))
        }
        "mma" => mma(c, i, m),
        _ => wgmma(c, i, m),
    }
}

/// The number of 8x8 matrices, and whether they are transposed on the way.
fn matrices(m: &mut Modifiers<'_>) -> Result<(usize, bool)> {
    m.require(&["m8n8"])?;
    m.require(&["b16"])?;
    let count = match m.require(&["x1", "x2", "x4"])? {
        "x1" => 1,
        "x2" => 2,
        _ => 4,
    };
    Ok((count, m.take("trans")))
}

/// `{a, b}`: the operand's registers as an initialiser.
fn read_all(c: &Context<'_>, operand: &Operand, count: usize) -> Result<String> {
    let registers = elements(operand);
    if registers.len() != count {
        return Err(format!("{count} registers are expected"));
    }
    let values: Vec<_> = registers.iter().map(|register| c.read(register, B32)).collect::<Result<_>>()?;
    Ok(format!("{{{}}}", values.join(", ")))
}

fn write_all(c: &Context<'_>, operand: &Operand, array: &str, count: usize) -> Result<String> {
    let registers = elements(operand);
    if registers.len() != count {
        return Err(format!("{count} registers are expected"));
    }
    let statements = registers.iter().enumerate();
    let statements: Vec<_> = statements
        .map(|(index, register)| c.write(register, B32, &format!("{array}[{index}]")))
        .collect::<Result<_>>()?;
    Ok(statements.join(" "))
}

fn mma(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    let [d, a, b, addend] = exactly(i)?;
    let (k, a_count) = match m.require(&["m16n8k16", "m16n8k8"])? {
        "m16n8k16" => (16, 4),
        _ => (8, 2),
    };
    m.require(&["row"])?;
    m.require(&["col"])?;
    let half = match m.types()[..] {
        [Type::F32, Type::Bf16, Type::Bf16, Type::F32] => "bf16",
        [Type::F32, Type::F16, Type::F16, Type::F32] => "f16",
        _ => return Err("matrices of these types".into()),
    };
    let (a, b, addend) = (read_all(c, a, a_count)?, read_all(c, b, a_count / 2)?, read_all(c, addend, 4)?);
    let arrays = format!("uint32_t sum[4] = {addend}; const uint32_t a[] = {a}, b[] = {b};");
    let call = format!("sim::mma(reinterpret_cast<float *>(sum), a, b, {k}, sim::Half::{half}, PC);");
    Ok(format!("{{ {arrays} {call} {} }}", write_all(c, d, "sum", 4)?))
}

fn wgmma(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    match m.require(&["fence", "commit_group", "wait_group", "mma_async"])? {
        "fence" => exactly::<0>(i).map(|_| format!("sim::wg_fence(PC);{}", on(c, "fence()"))),
        "commit_group" => exactly::<0>(i).map(|_| format!("sim::wg_commit();{}", on(c, "commit()"))),
        "wait_group" => {
            let [pending] = exactly(i)?;
            let pending = c.read(pending, Type::Signed(32))?;
            Ok(format!("sim::wg_wait({pending});{}", on(c, &format!("wait({pending})"))))
        }
        _ => multiply(c, i, m),
    }
}

/// Tells the function's accumulators, if it has any.
fn on(c: &Context<'_>, event: &str) -> String {
    if c.has_accumulators() { format!(" accumulators.{event};") } else { String::new() }
}

/// `d, a, b, scale-d, scale-a, scale-b, trans-a, trans-b`, where a is a descriptor or registers, which cannot be
/// transposed and have no trans-a.
fn multiply(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    let half = match m.types()[..] {
        [Type::F32, Type::Bf16, Type::Bf16] => "false",
        [Type::F32, Type::F16, Type::F16] => "true",
        _ => return Err("matrices of these types".into()),
    };
    let n = m.find(|shape| shape.strip_prefix("m64n")?.strip_suffix("k16")?.parse::<usize>().ok());
    let n = n.filter(|n| n % 8 == 0 && (8..=256).contains(n)).ok_or("a shape that does not exist")?;
    let [d, a, b, scale_d, immediates @ ..] = i.operands.as_slice() else {
        return Err("operands are missing".into());
    };
    let flags: Vec<_> =
        immediates.iter().map(|flag| if let Operand::Integer(flag) = flag { *flag } else { 9 }).collect();
    let (descriptor, registers, [scale_a, scale_b, transpose_a, transpose_b]) = match (a, flags.as_slice()) {
        (Operand::Vector(_), &[scale_a, scale_b, transpose_b]) => {
            ("0".to_owned(), Some(read_all(c, a, 4)?), [scale_a, scale_b, 0, transpose_b])
        }
        (Operand::Name(_), &[scale_a, scale_b, transpose_a, transpose_b]) => {
            (c.read(a, Type::Bits(64))?, None, [scale_a, scale_b, transpose_a, transpose_b])
        }
        _ => return Err("immediates in a number that does not exist".into()),
    };
    if [scale_a, scale_b].iter().any(|scale| scale.abs() != 1)
        || [transpose_a, transpose_b].iter().any(|t| *t >> 1 != 0)
    {
        return Err("immediates that do not exist".into());
    }
    let accumulators = elements(d);
    let Some(Operand::Name(first)) = accumulators.first() else {
        return Err("accumulators are missing".into());
    };
    let first = c.accumulator(first).ok_or("unknown accumulators")?;
    if accumulators.len() != n / 2 {
        return Err(format!("{} accumulators of the function itself are expected", n / 2));
    }
    let shape = format!(
        "{{{n}, {half}, {}, {}, {}, {}}}",
        scale_a < 0,
        scale_b < 0,
        transpose_a == 1,
        transpose_b == 1
    );
    let (b, scale_d) = (c.read(b, Type::Bits(64))?, c.read(scale_d, Type::Predicate)?);
    let (declaration, registers) = match registers {
        Some(values) => (format!("const uint32_t a[] = {values}; "), "a"),
        None => (String::new(), "nullptr"),
    };
    let d = format!("accumulators.issue({first}, {}, PC)", n / 2);
    let call =
        format!("sim::wgmma({d}, sim::WgmmaShape{shape}, {descriptor}, {registers}, {b}, {scale_d}, PC);");
    Ok(format!("{{ {declaration}{call} }}"))
}
