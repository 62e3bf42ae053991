//! Asynchronous copies and the barriers that count them.

use super::{
    Result,
    context::Context,
    memory::shared_address,
    modifiers::{CacheHint, Modifiers},
};
use crate::translate::{
    ast::{Instruction, Operand},
    types::Type,
};

const U32: Type = Type::Unsigned(32);

pub(super) fn emit(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    if i.opcode == "mbarrier" {
        return mbarrier(c, i, m);
    }
    m.require(&["async"])?;
    let hint = m.ignore_cache_hints();
    let mut operands = i.operands.as_slice();
    if hint == CacheHint::Policy {
        operands = operands.split_last().map_or(operands, |(_, others)| others);
    }
    if m.take("bulk") { bulk(c, operands, m) } else { copy(c, operands, m) }
}

fn copy(c: &Context<'_>, operands: &[Operand], m: &mut Modifiers<'_>) -> Result<String> {
    match (m.choose(&["commit_group", "wait_group", "wait_all", "mbarrier"]), operands) {
        (Some("commit_group"), []) => Ok("sim::cp_async_commit();".into()),
        (Some("wait_group"), [pending]) => {
            Ok(format!("sim::cp_async_wait({});", c.read(pending, Type::Signed(32))?))
        }
        // All of this thread's copies, committed or not.
        (Some("wait_all"), []) => Ok("sim::cp_async_commit(); sim::cp_async_wait(0);".into()),
        (Some("mbarrier"), [bar]) => {
            m.require(&["arrive"])?;
            let without_count = m.take("noinc");
            m.one_type()?;
            let bar = shared_address(c, m, bar)?;
            Ok(format!("sim::cp_async_mbar_arrive({bar}, {without_count}, PC);"))
        }
        (None, [to, from, bytes, rest @ ..]) if rest.len() < 2 => {
            m.require(&["ca", "cg"])?;
            m.require(&["global"])?;
            let (to, from) = (shared_address(c, m, to)?, c.address(from)?);
            let bytes = c.read(bytes, U32)?;
            let given = match rest {
                [] => bytes.clone(),
                // A predicate that says to fill with zeros, or the number of bytes to read.
                [Operand::Name(name)]
                    if c.register(name).is_some_and(|(_, kind)| *kind == Type::Predicate) =>
                {
                    format!("({} ? 0u : {bytes})", c.read(&rest[0], Type::Predicate)?)
                }
                [given, ..] => c.read(given, U32)?,
            };
            Ok(format!("sim::cp_async({to}, pointer({from}), {bytes}, {given}, PC);"))
        }
        _ => Err("such an asynchronous copy".into()),
    }
}

fn bulk(c: &Context<'_>, operands: &[Operand], m: &mut Modifiers<'_>) -> Result<String> {
    match (m.choose(&["commit_group", "wait_group", "prefetch"]), operands) {
        (Some("commit_group"), []) => return Ok("sim::bulk_commit();".into()),
        (Some("wait_group"), [pending]) => {
            let only_read = m.take("read");
            return Ok(format!("sim::bulk_wait({}, {only_read});", c.read(pending, Type::Signed(32))?));
        }
        (Some("prefetch"), _) => {
            m.ignore(&["tensor", "1d", "2d", "3d", "4d", "5d", "L2", "global", "tile"]);
            return Ok(";".into());
        }
        (Some(_), _) => return Err("such a bulk copy".into()),
        (None, _) => {}
    }
    let tensor = m.take("tensor");
    let rank = if tensor { m.require(&["1d", "2d", "3d", "4d", "5d"])?[..1].parse().unwrap_or(0) } else { 0 };
    m.take("tile");
    m.require(&["global"])?;
    let loads = !m.take("bulk_group");
    if loads {
        m.require(&["mbarrier::complete_tx::bytes"])?;
    }
    match (tensor, loads, operands) {
        (true, true, [to, map, bar]) => {
            let to = shared_address(c, m, to)?;
            let (map, coordinates) = tensor_address(c, map, rank)?;
            let bar = c.address(bar)?;
            Ok(format!("{{ {coordinates} sim::tma_load({rank}, {to}, {map}, coordinates, {bar}, PC); }}"))
        }
        (true, false, [map, from]) => {
            let from = shared_address(c, m, from)?;
            let (map, coordinates) = tensor_address(c, map, rank)?;
            Ok(format!("{{ {coordinates} sim::tma_store({rank}, {map}, coordinates, {from}, PC); }}"))
        }
        (false, true, [to, from, bytes, bar]) => {
            let (to, from) = (shared_address(c, m, to)?, c.address(from)?);
            let (bytes, bar) = (c.read(bytes, U32)?, c.address(bar)?);
            Ok(format!("sim::bulk_load({to}, pointer({from}), {bytes}, {bar}, PC);"))
        }
        (false, false, [to, from, bytes]) => {
            let (to, from) = (c.address(to)?, shared_address(c, m, from)?);
            Ok(format!("sim::bulk_store(pointer({to}), {from}, {}, PC);", c.read(bytes, U32)?))
        }
        _ => Err("such a bulk copy".into()),
    }
}

/// The tensor map's pointer, and a declaration of `coordinates`.
fn tensor_address(c: &Context<'_>, operand: &Operand, rank: usize) -> Result<(String, String)> {
    let Operand::Address { base, offset, coordinates } = operand else {
        return Err("the address of a tensor is expected".into());
    };
    if coordinates.len() != rank {
        return Err(format!("{rank} coordinates are expected"));
    }
    let values: Vec<_> =
        coordinates.iter().map(|value| c.read(value, Type::Signed(32))).collect::<Result<_>>()?;
    let map = format!("reinterpret_cast<const sim::TensorMap *>({})", c.base(base, *offset)?);
    Ok((map, format!("const int32_t coordinates[] = {{{}}};", values.join(", "))))
}

fn mbarrier(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    const OPERATIONS: [&str; 7] =
        ["init", "inval", "expect_tx", "arrive", "arrive_drop", "test_wait", "try_wait"];
    // `arrive.expect_tx` is an arrival.
    let arrival = m.choose(&["arrive", "arrive_drop"]);
    let operation = match arrival {
        Some(arrival) => arrival,
        None => m.require(&OPERATIONS)?,
    };
    let kind = m.find(|modifier| (modifier == "b64").then_some(Type::Bits(64))).ok_or(".b64 is missing")?;
    let (expects, parity) = (arrival.is_some() && m.take("expect_tx"), m.take("parity"));
    m.take("noComplete");
    m.ignore(&["relaxed", "acquire", "release", "cta", "cluster"]);
    let mut bar = |operand| shared_address(c, m, operand);
    match (operation, i.operands.as_slice()) {
        ("init", [place, count]) => {
            Ok(format!("sim::mbar_init({}, {}, PC);", bar(place)?, c.read(count, U32)?))
        }
        ("inval", [place]) => Ok(format!("sim::mbar_inval({}, PC);", bar(place)?)),
        ("expect_tx", [place, bytes]) => {
            Ok(format!("sim::mbar_expect_tx({}, {}, PC);", bar(place)?, c.read(bytes, U32)?))
        }
        ("arrive" | "arrive_drop", [state, place, number @ ..]) if number.len() < 2 => {
            let number = number.first().map(|number| c.read(number, U32)).transpose()?;
            let (count, bytes) = match (expects, number) {
                (true, Some(bytes)) => ("1".to_owned(), bytes),
                (false, Some(count)) => (count, "0".to_owned()),
                (false, None) => ("1".to_owned(), "0".to_owned()),
                (true, None) => return Err("a number of bytes is missing".into()),
            };
            let drops = operation == "arrive_drop";
            c.write(state, kind, &format!("sim::mbar_arrive({}, {count}, {bytes}, {drops}, PC)", bar(place)?))
        }
        ("test_wait" | "try_wait", [done, place, phase, hint @ ..]) if hint.len() < 2 => {
            let function = if operation == "test_wait" { "mbar_test" } else { "mbar_try" };
            let (form, phase) =
                if parity { ("parity", c.read(phase, U32)?) } else { ("state", c.read(phase, kind)?) };
            c.write(done, Type::Predicate, &format!("sim::{function}_{form}({}, {phase}, PC)", bar(place)?))
        }
        _ => Err("such an operation on a barrier".into()),
    }
}
