//! What a PTX text says, as values.

use super::types::Type;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Module {
    /// `sm_90a`.
    pub(super) target: String,
    /// Source files that `.loc` numbers.
    pub(super) files: BTreeMap<u32, String>,
    pub(super) variables: Vec<Variable>,
    pub(super) functions: Vec<Function>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Linkage {
    /// `.entry`: a kernel.
    Entry,
    /// `.func`: a device function.
    Function,
}

#[derive(Debug)]
pub(super) struct Function {
    pub(super) linkage: Linkage,
    pub(super) name: String,
    pub(super) returns: Vec<Variable>,
    pub(super) parameters: Vec<Variable>,
    /// `.maxntid 256, 1, 1` and the like.
    pub(super) attributes: BTreeMap<String, Vec<u32>>,
    /// Nothing for a declaration.
    pub(super) body: Option<Vec<Statement>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Global,
    Constant,
    Shared,
    Local,
    Parameter,
}

#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) space: Space,
    pub(super) name: String,
    pub(super) element: Type,
    /// Nothing for `name[]`, whose size the launch gives.
    pub(super) count: Option<usize>,
    pub(super) align: usize,
    pub(super) initial: Vec<Operand>,
    pub(super) line: usize,
}

impl Variable {
    pub(super) fn bytes(&self) -> usize {
        self.element.bytes() * self.count.unwrap_or(0)
    }
}

#[derive(Debug)]
pub(super) enum Statement {
    Block(Vec<Statement>),
    Label(String),
    /// `.reg .b32 %r<10>, x;`: the type and the names.
    Registers(Type, Vec<String>),
    Variable(Variable),
    /// `name: .branchtargets a, b;`: where a `brx.idx` may go.
    Targets(String, Vec<String>),
    /// File number and line of the source.
    Location(u32, u32),
    Instruction(Instruction),
}

#[derive(Clone, Debug)]
pub(super) struct Instruction {
    pub(super) opcode: String,
    pub(super) modifiers: Vec<String>,
    pub(super) predicate: Option<Predicate>,
    pub(super) operands: Vec<Operand>,
    pub(super) line: usize,
}

impl Instruction {
    /// `ld.global.u32`, as in the text.
    pub(super) fn mnemonic(&self) -> String {
        let mut name = self.opcode.clone();
        for modifier in &self.modifiers {
            name.push('.');
            name.push_str(modifier);
        }
        name
    }
}

#[derive(Clone, Debug)]
pub(super) struct Predicate {
    pub(super) negated: bool,
    pub(super) register: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand {
    /// A register, special register, variable, label or `_`.
    Name(String),
    /// `name+12`: an address within a variable.
    Offset(String, i64),
    Integer(i128),
    /// `0f3F800000`: the bits of a float.
    Float32(u32),
    /// `0d3FF0000000000000`: the bits of a double.
    Float64(u64),
    /// `{a, b}`, and a call's `(a, b)`.
    Vector(Vec<Operand>),
    /// `[base+offset]`; a tensor map's address also has coordinates: `[map, {x, y}]`.
    Address {
        base: Box<Operand>,
        offset: i64,
        coordinates: Vec<Operand>,
    },
    /// `p|q`: two destinations.
    Pair(String, String),
    /// `!p`.
    Not(String),
}
