//! The modifiers of an instruction, taken off the list one by one.

use super::Result;
use crate::translate::{ast::Instruction, types::Type};

pub(super) struct Modifiers<'a>(Vec<&'a str>);

impl<'a> Modifiers<'a> {
    pub(super) fn of(instruction: &'a Instruction) -> Self {
        Self(instruction.modifiers.iter().map(String::as_str).collect())
    }

    /// Takes `word` off; whether it was there.
    pub(super) fn take(&mut self, word: &str) -> bool {
        let found = self.0.iter().position(|modifier| *modifier == word);
        found.map(|at| self.0.remove(at)).is_some()
    }

    /// Takes the first of `words` that is there.
    pub(super) fn choose<'w>(&mut self, words: &[&'w str]) -> Option<&'w str> {
        words.iter().copied().find(|word| self.take(word))
    }

    /// As [`Modifiers::choose`], where one must be there.
    pub(super) fn require<'w>(&mut self, words: &[&'w str]) -> Result<&'w str> {
        self.choose(words).ok_or_else(|| format!("none of .{}", words.join(" .")))
    }

    /// Takes all of `words` off: they change nothing here.
    pub(super) fn ignore(&mut self, words: &[&str]) {
        self.0.retain(|modifier| !words.contains(modifier));
    }

    /// Takes off the first modifier that `found` maps to a value.
    pub(super) fn find<T>(&mut self, found: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (at, value) =
            self.0.iter().enumerate().find_map(|(at, modifier)| Some((at, found(modifier)?)))?;
        self.0.remove(at);
        Some(value)
    }

    /// Takes the types off, in their order.
    pub(super) fn types(&mut self) -> Vec<Type> {
        let types = self.0.iter().filter_map(|modifier| Type::parse(modifier)).collect();
        self.0.retain(|modifier| Type::parse(modifier).is_none());
        types
    }

    /// The only type there is.
    pub(super) fn one_type(&mut self) -> Result<Type> {
        match self.types()[..] {
            [one] => Ok(one),
            ref types => Err(format!("one type is expected, not {}", types.len())),
        }
    }

    /// `rn` where nothing else is said; the name of the C++ constant.
    pub(super) fn rounding(&mut self) -> &'static str {
        match self.choose(&["rn", "rz", "rm", "rp"]) {
            Some("rz") => "RZ",
            Some("rm") => "RM",
            Some("rp") => "RP",
            _ => "RN",
        }
    }

    /// Hints about caches, which have no caches to go to.
    pub(super) fn ignore_cache_hints(&mut self) -> CacheHint {
        let policy = self.0.contains(&"L2::cache_hint");
        self.0.retain(|modifier| !(modifier.starts_with("L1::") || modifier.starts_with("L2::")));
        if policy { CacheHint::Policy } else { CacheHint::None }
    }

    pub(super) fn finish(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(format!("modifier .{}", self.0.join("."))) }
    }
}

/// Whether a cache policy follows as the last operand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheHint {
    None,
    Policy,
}
