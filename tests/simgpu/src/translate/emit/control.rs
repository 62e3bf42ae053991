//! Branches, calls, barriers and fences.

use super::{
    Result,
    context::{Context, cpp_name, elements, exactly},
    modifiers::Modifiers,
};
use crate::translate::{
    ast::{Instruction, Linkage, Operand},
    types::Type,
};

const U32: Type = Type::Unsigned(32);

pub(super) fn emit(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    match i.opcode.as_str() {
        "bra" => {
            m.take("uni");
            let [Operand::Name(label)] = exactly(i)? else { return Err("a label is expected".into()) };
            Ok(format!("goto {};", c.label(label)?))
        }
        "brx" => branch_by_index(c, i, m),
        "call" => call(c, i, m),
        "ret" => {
            m.take("uni");
            exactly::<0>(i)?;
            Ok("return;".into())
        }
        "exit" if c.function.linkage == Linkage::Entry => exactly::<0>(i).map(|_| "return;".into()),
        "exit" => Err("the end of the thread inside a function".into()),
        "trap" => exactly::<0>(i).map(|_| "sim::trap(\"trap\", PC);".into()),
        "brkpt" => exactly::<0>(i).map(|_| "sim::trap(\"breakpoint\", PC);".into()),
        "bar" | "barrier" => barrier(c, i, m),
        "membar" | "fence" => fence(m),
        // Time, registers and dependent launches are not emulated.
        "nanosleep" => Ok(ignored(m, &["u32"])),
        "setmaxnreg" => Ok(ignored(m, &["inc", "dec", "sync", "aligned", "u32"])),
        _ => Ok(ignored(m, &["launch_dependents", "wait"])),
    }
}

fn ignored(m: &mut Modifiers<'_>, words: &[&str]) -> String {
    m.ignore(words);
    ";".into()
}

fn branch_by_index(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    m.take("idx");
    m.take("uni");
    let [index, Operand::Name(list)] = exactly(i)? else { return Err("a list of labels is expected".into()) };
    let labels = c.targets.get(list).ok_or_else(|| format!("unknown list {list}"))?;
    let mut text = format!("switch ({}) {{", c.read(index, U32)?);
    for (index, label) in labels.iter().enumerate() {
        text = format!("{text} case {index}: goto {};", c.label(label)?);
    }
    Ok(text + " default: sim::trap(\"branch index out of range\", PC); }")
}

/// Arguments and results are `.param` variables of the caller: the callee gets their places.
fn call(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    m.take("uni");
    let (results, rest) = match i.operands.as_slice() {
        [results @ Operand::Vector(_), rest @ ..] => (elements(results), rest),
        rest => (&[][..], rest),
    };
    let (name, arguments) = match rest {
        [Operand::Name(name)] => (name, &[][..]),
        [Operand::Name(name), arguments @ Operand::Vector(_)] => (name, elements(arguments)),
        _ => return Err("a call through a pointer".into()),
    };
    let callee = c.callee(name).ok_or_else(|| format!("{name} has no body"))?;
    if results.len() != callee.returns.len() || arguments.len() != callee.parameters.len() {
        return Err(format!("{name} takes other arguments"));
    }
    let mut places = vec![];
    for place in results.iter().chain(arguments) {
        let Operand::Name(place) = place else { return Err("an argument that is no variable".into()) };
        let (_, address) = c.variable(place).ok_or_else(|| format!("unknown argument {place}"))?;
        places.push(format!("pointer({address})"));
    }
    Ok(format!("{}({});", cpp_name(name), places.join(", ")))
}

fn barrier(c: &Context<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Result<String> {
    if m.take("warp") {
        m.take("sync");
        let [mask] = exactly(i)?;
        return Ok(format!("sim::sync_warp({}, PC);", c.read(mask, U32)?));
    }
    m.ignore(&["cta", "aligned"]);
    let count = |operand: Option<&Operand>| -> Result<String> {
        match operand {
            Some(operand) => Ok(format!("int({})", c.read(operand, U32)?)),
            None => Ok("-1".to_owned()),
        }
    };
    let number = |operand| c.read(operand, U32);
    match (m.require(&["sync", "arrive", "red"])?, i.operands.as_slice()) {
        ("sync", [id, rest @ ..]) if rest.len() < 2 => {
            Ok(format!("sim::block_barrier({}, {}, PC);", number(id)?, count(rest.first())?))
        }
        ("arrive", [id, threads]) => {
            Ok(format!("sim::block_barrier_arrive({}, {}, PC);", number(id)?, count(Some(threads))?))
        }
        ("red", [d, id, middle @ .., p]) if middle.len() < 2 => {
            let operation = m.require(&["popc", "and", "or"])?;
            let (reduction, kind) = match operation {
                "popc" => ("popc", U32),
                "and" => ("all", Type::Predicate),
                _ => ("any", Type::Predicate),
            };
            m.one_type()?;
            let (id, threads, p) = (number(id)?, count(middle.first())?, c.read(p, Type::Predicate)?);
            let reduced =
                format!("sim::block_barrier_red({id}, {threads}, sim::Reduction::{reduction}, {p}, PC)");
            c.write(d, kind, &format!("{}({reduced})", kind.value()))
        }
        _ => Err("such a barrier".into()),
    }
}

fn fence(m: &mut Modifiers<'_>) -> Result<String> {
    let kind = if m.take("mbarrier_init") {
        m.ignore(&["release", "cluster"]);
        "mbarrier_init"
    } else if m.take("proxy") {
        m.require(&["async"])?;
        m.ignore(&["global", "shared::cta", "shared::cluster"]);
        "proxy_async"
    } else {
        m.ignore(&["sc", "acq_rel", "acquire", "release"]);
        match m.require(&["cta", "cluster", "gpu", "gl", "sys"])? {
            "gl" => "gpu",
            scope => scope,
        }
    };
    Ok(format!("sim::fence(sim::Fence::{kind});"))
}
