//! What was recorded of work that comes again.

use crate::device::Device;
use crate::error::Result;
use crate::tensor::{Element, View};
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::hash::Hash;

/// Most that is kept of one kind of work. When there would be more, all of it is forgotten: what comes again is
/// soon recorded again.
const MOST: usize = 256;

/// Where a tensor begins, for plans of work that reads or writes memory which is not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address(usize);

impl Address {
    /// Of the first element.
    pub(crate) fn of<D, E: Element>(view: View<'_, D, E>) -> Self {
        Self(view.pointer().addr())
    }

    pub(super) fn at(byte: *const u8) -> Self {
        Self(byte.addr())
    }
}

/// Recorded work by its plan: a value that says all that the operations follow from. Plans of one type are of one
/// kind of work.
pub(crate) struct Recorded<D: Device> {
    /// A map from plans to what was recorded, by the type of the plan.
    kinds: HashMap<TypeId, Box<dyn Any + Send>>,
    device: std::marker::PhantomData<fn(D)>,
}

impl<D: Device> Default for Recorded<D> {
    fn default() -> Self {
        Self { kinds: HashMap::new(), device: std::marker::PhantomData }
    }
}

impl<D: Device> Recorded<D> {
    /// Does `work`, which a device may record and from then on start at once.
    ///
    /// # Safety
    /// Work of equal plans does the same operations on the same memory. All memory that it touches belongs to the
    /// owner of this value, or its address is part of the plan, so that it is there whenever such a plan is made.
    pub(crate) unsafe fn run<P: Hash + Eq + Send + 'static>(
        &mut self,
        device: &D,
        plan: P,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { device.replay(self.of(plan), work) }
    }

    fn of<P: Hash + Eq + Send + 'static>(&mut self, plan: P) -> &mut D::Replay {
        let kind =
            self.kinds.entry(TypeId::of::<P>()).or_insert_with(|| Box::new(HashMap::<P, D::Replay>::new()));
        let kind: &mut HashMap<P, D::Replay> = kind.downcast_mut().expect("a map by the plan's type");
        if kind.len() == MOST && !kind.contains_key(&plan) {
            kind.clear();
        }
        kind.entry(plan).or_default()
    }

    /// How many plans of a type are kept.
    #[cfg(test)]
    pub(super) fn plans<P: Hash + Eq + Send + 'static>(&self) -> usize {
        let kind = self.kinds.get(&TypeId::of::<P>());
        kind.map_or(0, |kind| kind.downcast_ref::<HashMap<P, D::Replay>>().expect("as above").len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Cpu;

    #[derive(PartialEq, Eq, Hash)]
    struct Sized(usize);

    #[derive(PartialEq, Eq, Hash)]
    struct Other;

    #[test]
    fn no_more_is_kept_than_is_allowed() {
        let mut recorded = Recorded::<Cpu>::default();
        let kept = |recorded: &Recorded<Cpu>| recorded.plans::<Sized>();
        for round in 0..2 {
            for size in 0..MOST {
                recorded.of(Sized(size));
            }
            assert_eq!(kept(&recorded), MOST, "round {round}");
        }
        recorded.of(Other);
        assert_eq!(kept(&recorded), MOST);
        recorded.of(Sized(MOST));
        assert_eq!(kept(&recorded), 1);
    }
}
