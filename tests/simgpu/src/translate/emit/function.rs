//! One `.entry` or `.func` to one C++ function.

use super::{
    context::{Context, Symbol, cpp_name},
    instruction,
};
use crate::translate::{
    Untranslated,
    ast::{Function, Instruction, Linkage, Module, Operand, Statement},
    types::Type,
};
use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write,
};

pub(super) fn signature(function: &Function) -> String {
    let name = cpp_name(&function.name);
    if function.linkage == Linkage::Entry {
        return format!("static void {name}(void **arguments)");
    }
    let places = function.returns.iter().chain(&function.parameters);
    let places: Vec<_> = places.map(|place| format!("unsigned char *{}", cpp_name(&place.name))).collect();
    format!("static __attribute__((noinline)) void {name}({})", places.join(", "))
}

/// # Errors
/// Every statement without a translation.
pub(super) fn translate(
    unit: &str,
    module: &Module,
    symbols: &HashMap<String, Symbol>,
    function: &Function,
    body: &[Statement],
) -> Result<String, Vec<Untranslated>> {
    let accumulators = accumulators(body).map_err(|error| vec![error])?;
    let array = accumulators.len();
    let mut used = BTreeSet::new();
    names(body, &mut used);
    let context = Context::new(&module.functions, function, symbols, accumulators);
    let mut writer = Writer { unit, module, context, text: String::new(), location: None, errors: vec![] };
    writer.context.declare_module_shared(&module.variables, &used);
    writer.block(body);
    let Writer { context, text, errors, .. } = writer;
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut head = String::new();
    for tag in &context.tags {
        head += &format!("static char {tag};\n");
    }
    head += &format!("{} {{\n", signature(function));
    if function.linkage == Linkage::Entry {
        for (index, parameter) in function.parameters.iter().enumerate() {
            let name = cpp_name(&parameter.name);
            head += &format!("  auto *const {name} = static_cast<unsigned char *>(arguments[{index}]);\n");
        }
    }
    if array > 0 {
        head += &format!("  Accumulators<{array}> accumulators;\n");
    }
    // Local memory starts as NaNs.
    let frame = context.frame.max(1);
    head += &format!("  alignas(16) unsigned char frame[{frame}]; __builtin_memset(frame, 0xff, {frame});\n");
    head += "  bool carry = false;\n";
    Ok(format!(
        "{head}{}{text}\n}}\n{}",
        context.declarations,
        registration(module, function, context.shared)
    ))
}

/// Makes a kernel known to the driver.
fn registration(module: &Module, function: &Function, shared: usize) -> String {
    if function.linkage == Linkage::Function {
        return String::new();
    }
    let (name, cpp, target) = (&function.name, cpp_name(&function.name), &module.target);
    let count = function.parameters.len();
    let sizes: Vec<_> = function.parameters.iter().map(|parameter| parameter.bytes().to_string()).collect();
    // The array has no place for nothing.
    let sizes = if count == 0 { "0".to_owned() } else { sizes.join(", ") };
    let bound = function.attributes.get("maxntid").or(function.attributes.get("reqntid"));
    let threads = bound.map_or(1024, |sides| sides.iter().product());
    format!(
        "static const uint32_t sizes_{name}[] = {{{sizes}}};\n\
         static sim::Kernel kernel_{name}{{\"{name}\", {cpp}, {count}, sizes_{name}, \
         {{{threads}, {shared}, \"{target}\"}}, nullptr}};\n\
         static const bool registered_{name} = (sim::register_kernel(&kernel_{name}), true);\n"
    )
}

struct Writer<'a> {
    unit: &'a str,
    module: &'a Module,
    context: Context<'a>,
    text: String,
    /// File and line of the CUDA source that the text has been told of.
    location: Option<(u32, u32)>,
    errors: Vec<Untranslated>,
}

impl Writer<'_> {
    fn block(&mut self, statements: &[Statement]) {
        self.context.open(statements);
        for statement in statements {
            match statement {
                Statement::Block(inner) => self.block(inner),
                Statement::Label(name) => {
                    let label = self.context.label(name).expect("labels are known on entry");
                    let label = format!("{label}: ;");
                    self.line(&label);
                }
                Statement::Registers(register, names) => self.context.declare_registers(*register, names),
                Statement::Variable(variable) => {
                    if let Err(reason) = self.context.declare_variable(variable) {
                        self.errors.push(Untranslated::new(variable.line, &variable.name, &reason));
                    }
                }
                Statement::Targets(..) => {}
                Statement::Location(file, line) => self.locate(*file, *line),
                Statement::Instruction(instruction) => self.instruction(instruction),
            }
        }
        self.context.close();
    }

    /// Statements from one line of the source share a line of C++, since `#line` counts on.
    fn locate(&mut self, file: u32, line: u32) {
        if let Some(path) = self.module.files.get(&file).filter(|_| self.location != Some((file, line))) {
            self.location = Some((file, line));
            write!(self.text, "\n#line {line} \"{path}\"\n").expect("a string takes all");
        }
    }

    fn line(&mut self, text: &str) {
        self.text.push(' ');
        self.text.push_str(text);
    }

    fn instruction(&mut self, wanted: &Instruction) {
        let translated = instruction(&self.context, wanted).and_then(|text| {
            let Some(predicate) = &wanted.predicate else { return Ok(text) };
            let register = self.context.read(&Operand::Name(predicate.register.clone()), Type::Predicate)?;
            let not = if predicate.negated { "!" } else { "" };
            Ok(format!("if ({not}{register}) {{ {text} }}"))
        });
        if self.module.files.is_empty() {
            // Without lines of the source, those of the PTX.
            write!(self.text, "\n#line {} \"{}.ptx\"\n", wanted.line, self.unit).expect("a string takes all");
        }
        match translated {
            Ok(text) => self.line(&text),
            Err(reason) => self.errors.push(Untranslated::new(wanted.line, &wanted.mnemonic(), &reason)),
        }
    }
}

/// Places of the registers that wgmma accumulates in. It writes them late, so they live in one array whose parts are
/// handed to the emulator: each instruction's registers must lie there one after another.
fn accumulators(statements: &[Statement]) -> Result<HashMap<String, usize>, Untranslated> {
    let mut places = HashMap::new();
    each_instruction(statements, &mut |instruction| {
        let [Operand::Vector(registers), _, ..] = instruction.operands.as_slice() else { return Ok(()) };
        if instruction.opcode != "wgmma" {
            return Ok(());
        }
        let name = |register: &Operand| match register {
            Operand::Name(name) => name.clone(),
            other => format!("{other:?}"),
        };
        let free = places.len();
        let known = registers.first().and_then(|register| places.get(&name(register)).copied());
        for (index, register) in registers.iter().enumerate() {
            let place = places.get(&name(register)).copied();
            let as_before = known.is_some() && place == known.map(|start| start + index);
            let all_new = known.is_none() && place.is_none();
            if !(as_before || all_new) {
                let reason = "accumulators that another wgmma has in another order";
                return Err(Untranslated::new(instruction.line, &instruction.mnemonic(), reason));
            }
            places.insert(name(register), known.unwrap_or(free) + index);
        }
        Ok(())
    })?;
    Ok(places)
}

fn each_instruction<E>(
    statements: &[Statement],
    visit: &mut impl FnMut(&Instruction) -> Result<(), E>,
) -> Result<(), E> {
    for statement in statements {
        match statement {
            Statement::Block(inner) => each_instruction(inner, visit)?,
            Statement::Instruction(instruction) => visit(instruction)?,
            _ => {}
        }
    }
    Ok(())
}

/// Names that the statements' operands mention.
fn names<'a>(statements: &'a [Statement], used: &mut BTreeSet<&'a str>) {
    fn operand<'a>(operand_: &'a Operand, used: &mut BTreeSet<&'a str>) {
        match operand_ {
            Operand::Name(name) | Operand::Offset(name, _) => {
                used.insert(name);
            }
            Operand::Vector(items) => items.iter().for_each(|item| operand(item, used)),
            Operand::Address { base, .. } => operand(base, used),
            _ => {}
        }
    }
    for statement in statements {
        match statement {
            Statement::Block(inner) => names(inner, used),
            Statement::Instruction(instruction) => {
                instruction.operands.iter().for_each(|item| operand(item, used));
            }
            _ => {}
        }
    }
}
