//! The names of one function and the C++ for its operands.

use super::Result;
use crate::translate::{
    ast::{Function, Instruction, Operand, Space, Statement, Variable},
    types::Type,
};
use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write,
};

/// What a name that is no register stands for.
#[derive(Clone, Debug)]
pub(super) enum Symbol {
    /// A C++ expression of its address: shared memory counts from the block's own base.
    Address(Space, String),
    /// A `.func`.
    Function(usize),
}

/// Names a pair of braces of the PTX brings in.
#[derive(Default)]
struct Scope {
    /// Sets apart the C++ names of inner braces.
    suffix: String,
    registers: HashMap<String, (String, Type)>,
    labels: HashMap<String, String>,
    variables: HashMap<String, (Space, String)>,
}

pub(super) struct Context<'a> {
    pub(super) functions: &'a [Function],
    pub(super) function: &'a Function,
    module: &'a HashMap<String, Symbol>,
    scopes: Vec<Scope>,
    scopes_so_far: usize,
    /// Registers that wgmma accumulates in, by their place in the array that holds them.
    accumulators: HashMap<String, usize>,
    /// `.branchtargets` by label.
    pub(super) targets: HashMap<String, Vec<String>>,
    /// Declarations at the head of the C++ function.
    pub(super) declarations: String,
    /// Bytes of `.local` variables so far.
    pub(super) frame: usize,
    /// Shared variables of the function: C++ names of their tags.
    pub(super) tags: Vec<String>,
    /// Bytes of shared variables that the function names.
    pub(super) shared: usize,
}

impl<'a> Context<'a> {
    pub(super) fn new(
        functions: &'a [Function],
        function: &'a Function,
        module: &'a HashMap<String, Symbol>,
        accumulators: HashMap<String, usize>,
    ) -> Self {
        Self {
            functions,
            function,
            module,
            scopes: vec![],
            scopes_so_far: 0,
            accumulators,
            targets: HashMap::new(),
            declarations: String::new(),
            frame: 0,
            tags: vec![],
            shared: 0,
        }
    }

    /// Opens a pair of braces. Labels and branch targets are known before the first statement, since branches go ahead.
    pub(super) fn open(&mut self, statements: &[Statement]) {
        let suffix = if self.scopes.is_empty() { String::new() } else { format!("_{}", self.scopes_so_far) };
        let mut scope = Scope { suffix: suffix.clone(), ..Scope::default() };
        for statement in statements {
            match statement {
                Statement::Label(name) => {
                    scope.labels.insert(name.clone(), format!("L{name}{suffix}"));
                }
                Statement::Targets(name, labels) => {
                    self.targets.insert(name.clone(), labels.clone());
                }
                _ => {}
            }
        }
        self.scopes.push(scope);
        self.scopes_so_far += 1;
    }

    pub(super) fn close(&mut self) {
        self.scopes.pop();
    }

    fn inner(&mut self) -> &mut Scope {
        self.scopes.last_mut().expect("a function has braces")
    }

    pub(super) fn declare_registers(&mut self, register: Type, names: &[String]) {
        let outermost = self.scopes.len() == 1;
        let scope = self.scopes.last_mut().expect("a function has braces");
        let mut plain = vec![];
        for name in names {
            let variable = match self.accumulators.get(name).filter(|_| outermost) {
                Some(place) => format!("accumulators.at({place}, PC)"),
                None => {
                    plain.push(cpp_register(name, &scope.suffix));
                    cpp_register(name, &scope.suffix)
                }
            };
            scope.registers.insert(name.clone(), (variable, register));
        }
        for names in plain.chunks(16) {
            let list = names.join(" = 0, ");
            writeln!(self.declarations, "  {} {list} = 0;", register.register()).expect("a string takes all");
        }
    }

    /// A variable inside the function.
    pub(super) fn declare_variable(&mut self, variable: &Variable) -> Result<()> {
        let name = format!("{}{}", cpp_name(&variable.name), self.inner().suffix);
        let bytes = variable.bytes();
        let place = match variable.space {
            Space::Local => {
                let offset = self.frame.next_multiple_of(variable.align);
                self.frame = offset + bytes;
                format!("address(frame + {offset})")
            }
            Space::Shared => {
                let tag = format!("tag_{}_{name}", self.function.name);
                self.tags.push(tag.clone());
                let pointer = format!("sim::static_smem(&{tag}, {bytes}, {})", variable.align);
                self.declare_shared(&name, &pointer, variable);
                name
            }
            Space::Parameter => {
                writeln!(self.declarations, "  alignas(16) unsigned char {name}[{bytes}];")
                    .expect("a string takes all");
                format!("address({name})")
            }
            Space::Global | Space::Constant => return Err("a global variable inside a function".into()),
        };
        self.inner().variables.insert(variable.name.clone(), (variable.space, place));
        Ok(())
    }

    fn declare_shared(&mut self, name: &str, pointer: &str, variable: &Variable) {
        self.shared = self.shared.next_multiple_of(variable.align) + variable.bytes();
        let line = format!("  const uint32_t {name} = sim::smem_offset({pointer});");
        writeln!(self.declarations, "{line}").expect("a string takes all");
    }

    /// Declares those of the module's shared variables that the function names.
    pub(super) fn declare_module_shared(&mut self, variables: &[Variable], used: &BTreeSet<&str>) {
        for variable in variables.iter().filter(|variable| used.contains(variable.name.as_str())) {
            if let Some(Symbol::Address(Space::Shared, pointer)) = self.module.get(&variable.name) {
                self.declare_shared(&cpp_name(&variable.name), pointer, variable);
            }
        }
    }

    pub(super) fn register(&self, name: &str) -> Option<&(String, Type)> {
        self.scopes.iter().rev().find_map(|scope| scope.registers.get(name))
    }

    /// Where in the array of accumulators a register lies.
    pub(super) fn accumulator(&self, name: &str) -> Option<usize> {
        self.accumulators.get(name).copied()
    }

    pub(super) fn has_accumulators(&self) -> bool {
        !self.accumulators.is_empty()
    }

    pub(super) fn label(&self, name: &str) -> Result<&str> {
        let label = self.scopes.iter().rev().find_map(|scope| scope.labels.get(name));
        label.map(String::as_str).ok_or_else(|| format!("label {name} is not in sight"))
    }

    pub(super) fn callee(&self, name: &str) -> Option<&'a Function> {
        match self.module.get(name)? {
            Symbol::Function(index) => Some(&self.functions[*index]),
            Symbol::Address(..) => None,
        }
    }

    /// Space and address of a variable.
    pub(super) fn variable(&self, name: &str) -> Option<(Space, String)> {
        if let Some(found) = self.scopes.iter().rev().find_map(|scope| scope.variables.get(name)) {
            return Some(found.clone());
        }
        let parameters = self.function.parameters.iter().chain(&self.function.returns);
        if let Some(parameter) = parameters.into_iter().find(|parameter| parameter.name == name) {
            return Some((Space::Parameter, format!("address({})", cpp_name(&parameter.name))));
        }
        match self.module.get(name)? {
            Symbol::Address(Space::Shared, _) => Some((Space::Shared, cpp_name(name))),
            Symbol::Address(space, expression) => Some((*space, expression.clone())),
            Symbol::Function(_) => None,
        }
    }

    /// C++ expression for the operand's value, of the C++ type of `kind`.
    pub(super) fn read(&self, operand: &Operand, kind: Type) -> Result<String> {
        match operand {
            Operand::Name(name) => self.read_name(name, kind),
            Operand::Not(name) if kind == Type::Predicate => Ok(format!("!{}", self.read_name(name, kind)?)),
            Operand::Offset(name, offset) => {
                let (_, address) = self.variable(name).ok_or_else(|| format!("{name} is no variable"))?;
                Ok(format!("{}({address} + {offset})", kind.value()))
            }
            Operand::Integer(value) if kind == Type::Predicate => Ok((*value != 0).to_string()),
            Operand::Integer(value) => integer(*value, kind),
            Operand::Float32(value) => match kind {
                Type::F32 => Ok(format!("f32({value:#x}u)")),
                Type::F64 => Ok(format!("double(f32({value:#x}u))")),
                _ if kind.width() == 32 => Ok(format!("{}({value:#x}u)", kind.value())),
                _ => Err("a float where there can be none".into()),
            },
            Operand::Float64(value) => match kind {
                Type::F32 => Ok(format!("float(f64({value:#x}ull))")),
                Type::F64 => Ok(format!("f64({value:#x}ull)")),
                _ if kind.width() == 64 => Ok(format!("{}({value:#x}ull)", kind.value())),
                _ => Err("a double where there can be none".into()),
            },
            _ => Err("an operand of another form is expected".into()),
        }
    }

    fn read_name(&self, name: &str, kind: Type) -> Result<String> {
        if let Some((variable, declared)) = self.register(name) {
            return match kind {
                Type::Predicate if *declared == Type::Predicate => Ok(variable.clone()),
                _ if kind == Type::Predicate || *declared == Type::Predicate => {
                    Err(format!("{name} mixes predicate and number"))
                }
                _ if declared.width() < kind.width() => Err(format!("{name} is narrower than its use")),
                Type::F32 if declared.width() == 32 => Ok(format!("f32({variable})")),
                Type::F64 => Ok(format!("f64({variable})")),
                Type::F32 => Err(format!("{name} is wider than its use")),
                _ if declared.register() == kind.value() => Ok(variable.clone()),
                _ => Ok(format!("{}({variable})", kind.value())),
            };
        }
        if let Some(expression) = special_register(name) {
            return Ok(format!("{}({expression})", kind.value()));
        }
        match self.variable(name) {
            Some((_, address)) if kind.is_integer() => Ok(format!("{}({address})", kind.value())),
            _ => Err(format!("unknown name {name}")),
        }
    }

    /// C++ statement that gives the operand the value of `expression`, whose C++ type is that of `kind`.
    pub(super) fn write(&self, operand: &Operand, kind: Type, expression: &str) -> Result<String> {
        let Operand::Name(name) = operand else { return Err("a register is expected".into()) };
        self.write_name(name, kind, expression)
    }

    pub(super) fn write_name(&self, name: &str, kind: Type, expression: &str) -> Result<String> {
        if name == "_" {
            return Ok(format!("(void)({expression});"));
        }
        let (variable, declared) = self.register(name).ok_or_else(|| format!("unknown register {name}"))?;
        if (kind == Type::Predicate) != (*declared == Type::Predicate) || declared.width() < kind.width() {
            return Err(format!("{name} cannot take a {}", kind.value()));
        }
        Ok(match kind {
            Type::F32 | Type::F64 => format!("{variable} = bits({expression});"),
            _ if declared.width() == kind.width() => format!("{variable} = {expression};"),
            // A wider register is filled with the sign.
            _ => format!("{variable} = {}({expression});", kind.value()),
        })
    }

    /// The address in brackets, as a C++ `uint64_t`.
    pub(super) fn address(&self, operand: &Operand) -> Result<String> {
        let Operand::Address { base, offset, coordinates } = operand else {
            return Err("an address is expected".into());
        };
        if !coordinates.is_empty() {
            return Err("coordinates where there can be none".into());
        }
        self.base(base, *offset)
    }

    pub(super) fn base(&self, base: &Operand, offset: i64) -> Result<String> {
        let base = match base {
            Operand::Name(name) => match self.register(name) {
                Some((variable, Type::Bits(32) | Type::Unsigned(32) | Type::Signed(32))) => variable.clone(),
                _ => self.read_name(name, Type::Unsigned(64))?,
            },
            other => self.read(other, Type::Unsigned(64))?,
        };
        // 32-bit addresses wrap as 32-bit numbers.
        Ok(if offset == 0 { base } else { format!("({base} + {offset})") })
    }
}

/// The operands, if there are `N`.
pub(super) fn exactly<const N: usize>(instruction: &Instruction) -> Result<&[Operand; N]> {
    let operands = instruction.operands.as_slice();
    operands.try_into().map_err(|_| format!("{N} operands are expected, not {}", operands.len()))
}

pub(super) fn elements(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::Vector(elements) => elements,
        other => std::slice::from_ref(other),
    }
}

fn cpp_register(name: &str, suffix: &str) -> String {
    match name.strip_prefix('%') {
        Some(rest) => format!("R{rest}{suffix}"),
        None => format!("N{name}{suffix}"),
    }
}

/// C++ name of a variable or function.
pub(super) fn cpp_name(name: &str) -> String {
    format!("V{}", name.replace('%', "$"))
}

fn integer(value: i128, kind: Type) -> Result<String> {
    let width = kind.width();
    if !kind.is_integer() && !kind.is_half() || value >= 1 << width || value < -(1 << (width - 1)) {
        return Err(format!("{value} is no {}", kind.value()));
    }
    let pattern = value as u64 & (u64::MAX >> (64 - width));
    let suffix = if width == 64 { "ull" } else { "u" };
    Ok(format!("{}({pattern}{suffix})", kind.value()))
}

/// C++ expression for a special register.
fn special_register(name: &str) -> Option<String> {
    let known = match name {
        "%laneid" => "sim::tls.lane",
        "%warpid" => "thread_index() / 32",
        "%nwarpid" => "(block_threads() + 31) / 32",
        "%lanemask_eq" => "1u << sim::tls.lane",
        "%lanemask_lt" => "(1u << sim::tls.lane) - 1",
        "%lanemask_le" => "(2u << sim::tls.lane) - 1",
        "%lanemask_gt" => "~((2u << sim::tls.lane) - 1)",
        "%lanemask_ge" => "~((1u << sim::tls.lane) - 1)",
        "%clock" | "%clock64" | "%globaltimer" => "nanoseconds()",
        "%globaltimer_lo" => "nanoseconds()",
        "%globaltimer_hi" => "nanoseconds() >> 32",
        // One multiprocessor runs one block after another, each a cluster of its own.
        "%smid" | "%cluster_ctarank" | "%gridid" => "0",
        "%nsmid" | "%cluster_nctarank" => "1",
        "%clusterid.x" => "sim::tls.bid.x",
        "%clusterid.y" => "sim::tls.bid.y",
        "%clusterid.z" => "sim::tls.bid.z",
        "%nclusterid.x" => "sim::tls.gdim.x",
        "%nclusterid.y" => "sim::tls.gdim.y",
        "%nclusterid.z" => "sim::tls.gdim.z",
        "%cluster_ctaid.x" | "%cluster_ctaid.y" | "%cluster_ctaid.z" => "0",
        "%cluster_nctaid.x" | "%cluster_nctaid.y" | "%cluster_nctaid.z" => "1",
        "%is_explicit_cluster" => "false",
        "WARP_SZ" => "32",
        _ => {
            let (register, axis) = name.split_once('.')?;
            if !["x", "y", "z"].contains(&axis) {
                return None;
            }
            let field = match register {
                "%tid" => "tid",
                "%ctaid" => "bid",
                "%ntid" => "bdim",
                "%nctaid" => "gdim",
                _ => return None,
            };
            return Some(format!("sim::tls.{field}.{axis}"));
        }
    };
    Some(known.to_owned())
}
