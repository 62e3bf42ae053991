//! The memory that passes work in.

use super::{Address, Arena, Cursor, Recorded};
use crate::device::Device;
use crate::error::Result;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

/// A pass that comes again. Its value says all that the pass's operations follow from, beside the model that owns the
/// workspace: sizes, choices, and where other memory begins that the pass reads or writes. By it, what was recorded
/// of the pass is found again.
pub(crate) trait Pass<D: Device>: Clone + Hash + Eq + Send + 'static {
    /// What of the model the shapes of tensors follow from.
    type Model;
    /// What the pass works in.
    type Acts<'a>;

    /// How many of what are worked on, which is told where there is no room for so many.
    fn items(&self) -> (usize, &'static str);

    /// Takes the tensors that the pass works in.
    fn carve<'a>(&self, model: &Self::Model, cursor: &mut Cursor<'a, D>) -> Self::Acts<'a>;
}

/// One arena, kept from call to call and exchanged for a larger one when needed, because fresh
/// memory is slow at first touch.
pub(crate) struct Workspace<D: Device>(Mutex<Option<Kept<D>>>);

/// An arena, with what was recorded of passes that work in it, which is dropped first.
struct Kept<D: Device> {
    recorded: Recorded<D>,
    arena: Arena<D>,
}

impl<D: Device> Default for Workspace<D> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<D: Device> Workspace<D> {
    /// Does a pass: `write` puts in what the host knows, `work` is what a device may record and replay, and `read`
    /// takes the results out. Only `write` and `read` exchange anything with the host.
    ///
    /// # Safety
    /// The operations of `work` follow from `pass` alone, and the memory that they touch is that of the pass, that
    /// of the owner of this workspace, or memory whose [`Address`] is part of `pass`.
    pub(crate) unsafe fn run<P: Pass<D>, R>(
        &self,
        device: &D,
        model: &P::Model,
        pass: P,
        write: impl FnOnce(&mut P::Acts<'_>) -> Result<()>,
        work: impl FnOnce(&P, &mut P::Acts<'_>) -> Result<()>,
        read: impl FnOnce(&mut P::Acts<'_>) -> Result<R>,
    ) -> Result<R> {
        let mut lease = self.lease(device, pass.items(), |cursor| {
            pass.carve(model, cursor);
        })?;
        let Kept { recorded, arena } = lease.kept();
        let mut acts = pass.carve(model, &mut arena.cursor());
        write(&mut acts)?;
        // SAFETY: as the caller promises; the pass's own memory is the arena, which is dropped after the recorded.
        unsafe { recorded.run(device, pass.clone(), || work(&pass, &mut acts)) }?;
        read(&mut acts)
    }

    /// Takes the memory for a pass before it comes.
    pub(crate) fn reserve<P: Pass<D>>(&self, device: &D, model: &P::Model, pass: &P) -> Result<()> {
        let carve = |cursor: &mut Cursor<'_, D>| {
            pass.carve(model, cursor);
        };
        self.lease(device, pass.items(), carve).map(drop)
    }

    /// Memory for what `carve` takes to work on `items` of something; a second lease at the same time gets
    /// memory of its own.
    pub(crate) fn lease<'w>(
        &'w self,
        device: &D,
        (items, what): (usize, &str),
        carve: impl FnOnce(&mut Cursor<'_, D>),
    ) -> Result<Lease<'w, D>> {
        self.lease_bytes(device, (items, what), Arena::<D>::bytes(carve))
    }

    /// Memory of so many `bytes`.
    pub(crate) fn lease_bytes<'w>(
        &'w self,
        device: &D,
        (items, what): (usize, &str),
        bytes: usize,
    ) -> Result<Lease<'w, D>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let kept = match kept {
            Some(kept) if kept.arena.capacity() >= bytes => kept,
            // The smaller arena is freed first, so that both are never held.
            smaller => {
                drop(smaller);
                let arena = Arena::sized(device, "activations", bytes);
                let arena = arena.map_err(|e| e.for_batch(items, what, bytes, device.free_memory()))?;
                Kept { recorded: Recorded::default(), arena }
            }
        };
        Ok(Lease { kept: Some(kept), home: self })
    }

    /// How many different passes of a kind came, as long as the arena was large enough for all.
    #[cfg(test)]
    pub(crate) fn passes<P: Pass<D>>(&self) -> usize {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().map_or(0, |kept| kept.recorded.plans::<P>())
    }

    /// Bytes that are kept.
    pub(crate) fn bytes(&self) -> usize {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().map_or(0, |kept| kept.arena.capacity())
    }
}

/// An arena on loan from a [`Workspace`].
pub(crate) struct Lease<'w, D: Device> {
    kept: Option<Kept<D>>,
    home: &'w Workspace<D>,
}

impl<D: Device> Lease<'_, D> {
    /// Starts carving from the front.
    pub(crate) fn cursor(&mut self) -> Cursor<'_, D> {
        self.kept().arena.cursor()
    }

    /// Where its memory begins.
    pub(crate) fn address(&mut self) -> Address {
        Address::at(self.kept().arena.address(0))
    }

    fn kept(&mut self) -> &mut Kept<D> {
        self.kept.as_mut().expect("held until dropped")
    }
}

impl<D: Device> Drop for Lease<'_, D> {
    fn drop(&mut self) {
        *self.home.0.lock().unwrap_or_else(PoisonError::into_inner) = self.kept.take();
    }
}
