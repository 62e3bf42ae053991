//! Moves, loads, stores and atomics.

use super::{
    Result,
    arithmetic::extreme,
    context::{Context, elements, exactly},
    half::half_format,
    modifiers::{CacheHint, Modifiers},
};
use crate::translate::{
    ast::{Instruction, Operand, Space},
    types::Type,
};

const U64: Type = Type::Unsigned(64);

pub(super) fn emit(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    match i.opcode.as_str() {
        "mov" => mov(c, i, m),
        "ld" | "ldu" | "st" => load_or_store(c, i, m),
        "atom" | "red" => atomic(c, i, m),
        "cvta" => convert_address(c, i, m),
        // What is here has no caches.
        "createpolicy" => {
            m.ignore_cache_hints();
            m.ignore(&["fractional", "range", "cvt", "L2"]);
            let kind = m.one_type()?;
            c.write(i.operands.first().ok_or("operands are missing")?, kind, "0")
        }
        _ => {
            m.ignore_cache_hints();
            m.ignore(&["L1", "L2", "tensormap", "global", "local", "const", "param"]);
            Ok(";".into())
        }
    }
}

fn mov(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    let [d, a] = exactly(i)?;
    let kind = bits(m.one_type()?);
    let part = |count: usize| -> Result<Type> {
        let width = kind.width() / u32::try_from(count).map_err(|e| e.to_string())?;
        Type::parse(&format!("b{width}")).ok_or_else(|| "parts of this size".into())
    };
    match (d, a) {
        (_, Operand::Vector(parts)) => {
            let kind_of_part = part(parts.len())?;
            let mut terms = vec![];
            for (index, operand) in parts.iter().enumerate() {
                let shift = index as u32 * kind_of_part.width();
                terms.push(format!("uint64_t({}) << {shift}", c.read(operand, kind_of_part)?));
            }
            c.write(d, kind, &format!("{}({})", kind.value(), terms.join(" | ")))
        }
        (Operand::Vector(parts), _) => {
            let kind_of_part = part(parts.len())?;
            let mut text = format!("{{ const {} whole = {};", kind.value(), c.read(a, kind)?);
            for (index, operand) in parts.iter().enumerate() {
                let shift = index as u32 * kind_of_part.width();
                let value = format!("{}(whole >> {shift})", kind_of_part.value());
                text = format!("{text} {}", c.write(operand, kind_of_part, &value)?);
            }
            Ok(text + " }")
        }
        _ => c.write(d, kind, &c.read(a, kind)?),
    }
}

/// Bits alone: copies keep a NaN's payload.
fn bits(kind: Type) -> Type {
    if kind == Type::Predicate || kind.is_integer() { kind } else { Type::Bits(kind.width()) }
}

/// The state space an instruction names; none is the generic space.
fn space(m: &mut Modifiers<'_>) -> Option<Space> {
    m.find(|modifier| match modifier.split("::").next() {
        Some("global") => Some(Space::Global),
        Some("const") => Some(Space::Constant),
        Some("shared") => Some(Space::Shared),
        Some("local") => Some(Space::Local),
        Some("param") => Some(Space::Parameter),
        _ => None,
    })
}

/// A shared address: as it stands, or from a generic one where no space is named.
pub(super) fn shared_address(c: &Context<'_>, m: &mut Modifiers<'_>, place: &Operand) -> Result<String> {
    let address = c.address(place)?;
    match space(m) {
        Some(Space::Shared) => Ok(address),
        None => Ok(format!("sim::smem_offset(pointer({address}))")),
        Some(_) => Err("a shared address is expected".into()),
    }
}

/// Memory order of the emulator; none for an access that synchronises nothing. Volatile ones count among these, so that
/// a fence that should stand beside them is missed.
fn order(m: &mut Modifiers<'_>) -> Option<&'static str> {
    m.ignore(&["cta", "cluster", "gpu", "sys"]);
    match m.choose(&["relaxed", "acquire", "release", "acq_rel", "volatile", "weak"]) {
        Some("relaxed") => Some("relaxed"),
        Some("acquire") => Some("acquire"),
        Some("release") => Some("release"),
        Some("acq_rel") => Some("acquire_release"),
        _ => None,
    }
}

fn load_or_store(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    let loads = i.opcode != "st";
    let order = order(m);
    let space = space(m);
    let hint = m.ignore_cache_hints();
    m.ignore(&["nc", "ca", "cg", "cs", "cv", "lu", "wb", "wt", "v2", "v4", "v8"]);
    let kind = bits(m.one_type()?);
    let operands = match hint {
        CacheHint::Policy => i.operands.split_last().map_or(&i.operands[..], |(_, others)| others),
        CacheHint::None => &i.operands,
    };
    let [first, second] = operands else { return Err("two operands are expected".into()) };
    let (place, values) = if loads { (second, first) } else { (first, second) };
    let values = elements(values);
    let bytes = kind.bytes() * values.len();
    let direction = if loads { "read" } else { "write" };
    let a = c.address(place)?;
    let checked =
        |function: &str| format!("sim::{function}_access({a}, {bytes}, sim::Access::{direction}, PC)");
    let pointer = match (space, order) {
        (Some(Space::Parameter | Space::Constant), _) => format!("pointer({a})"),
        (Some(Space::Local), _) if c.frame > 0 => {
            format!("local_access({a}, {bytes}, frame, sizeof frame, PC)")
        }
        (Some(Space::Shared), Some(_)) => format!("sim::shared_atomic_access({a}, {bytes}, PC)"),
        (Some(Space::Global) | None, Some(order)) => {
            format!("sim::AtomicAccess({a}, {bytes}, sim::Order::{order}, PC)")
        }
        (Some(Space::Shared), None) => checked("shared"),
        (Some(Space::Global), None) => checked("global"),
        (None, None) | (Some(Space::Local), _) => checked("generic"),
    };
    // A reference, which keeps the access of an atomic alive.
    let mut text = format!("{{ const auto &p = {pointer};");
    for (index, value) in values.iter().enumerate() {
        let statement = if loads {
            c.write(value, kind, &format!("load<{}>(p, {index})", kind.value()))?
        } else {
            format!("store<{}>(p, {index}, {});", kind.value(), c.read(value, kind)?)
        };
        text = format!("{text} {statement}");
    }
    Ok(text + " }")
}

fn atomic(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    let order = order(m).unwrap_or("relaxed");
    let space = space(m);
    let hint = m.ignore_cache_hints();
    m.take("noftz");
    let operation = m.require(&["add", "min", "max", "exch", "cas", "and", "or", "xor", "inc", "dec"])?;
    let kind = m.one_type()?;
    let mut operands = i.operands.as_slice();
    if hint == CacheHint::Policy {
        operands = operands.split_last().map_or(operands, |(_, others)| others);
    }
    let destination = if i.opcode == "atom" {
        let (destination, others) = operands.split_first().ok_or("operands are missing")?;
        operands = others;
        Some(destination)
    } else {
        None
    };
    let (place, sources) = operands.split_first().ok_or("operands are missing")?;
    let (a, bytes) = (c.address(place)?, kind.bytes());
    let pointer = match space {
        Some(Space::Shared) => format!("sim::shared_atomic_access({a}, {bytes}, PC)"),
        Some(Space::Global) | None => format!("sim::AtomicAccess({a}, {bytes}, sim::Order::{order}, PC)"),
        _ => return Err("atomics in this space".into()),
    };
    let sources: Vec<_> = sources.iter().map(|source| c.read(source, kind)).collect::<Result<_>>()?;
    let value = kind.value();
    // Sums in global memory flush subnormals.
    let flush = if space == Some(Space::Shared) { "" } else { "ftz" };
    let half = half_format(kind);
    let change = match (operation, kind, sources.as_slice()) {
        ("add", Type::F32, [b]) => format!("bits({flush}({flush}(f32(x)) + {flush}({b})))"),
        ("add", Type::F64, [b]) => format!("bits(f64(x) + {b})"),
        ("add", Type::F16 | Type::Bf16, [b]) => format!("half_add<{half}>(x, {b})"),
        ("add", Type::F16x2 | Type::Bf16x2, [b]) => format!("both(half_add<{half}>, x, {b})"),
        _ if !kind.is_integer() => return Err("such an atomic of this type".into()),
        ("add", _, [b]) => format!("{value}(x + {b})"),
        ("min" | "max", _, [b]) => format!("{}(x, {b})", extreme(operation)),
        ("exch", _, [b]) => b.clone(),
        ("cas", _, [expected, b]) => format!("x == {expected} ? {b} : x"),
        ("and", _, [b]) => format!("{value}(x & {b})"),
        ("or", _, [b]) => format!("{value}(x | {b})"),
        ("xor", _, [b]) => format!("{value}(x ^ {b})"),
        ("inc", _, [b]) => format!("x >= {b} ? {value}(0) : {value}(x + 1)"),
        ("dec", _, [b]) => format!("x == 0 || x > {b} ? {b} : {value}(x - 1)"),
        _ => return Err("such an atomic".into()),
    };
    let stored = if kind.is_integer() { kind } else { bits(kind) };
    let update = format!("update<{0}>({pointer}, [&]({0} x) -> {0} {{ return {change}; }})", stored.value());
    match destination {
        Some(destination) => c.write(destination, stored, &update),
        None => Ok(format!("{update};")),
    }
}

/// Between the generic space, where addresses are the host's, and another, where only shared memory has its own.
fn convert_address(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    let [d, a] = exactly(i)?;
    let from_generic = m.take("to");
    let space = space(m).ok_or("a space is missing")?;
    let kind = m.one_type()?;
    let a = c.read(a, U64)?;
    let converted = match (space, from_generic) {
        (Space::Shared, true) => format!("sim::smem_offset(pointer({a}))"),
        (Space::Shared, false) => format!("address(sim::tls.smem + {a})"),
        _ => a,
    };
    c.write(d, kind, &converted)
}
