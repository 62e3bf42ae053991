//! The memory that passes work in.

use crate::arena::{Arena, Cursor};
use crate::device::Device;
use crate::error::Result;
use crate::replays::Replays;
use std::sync::{Mutex, PoisonError};

/// One arena, kept from call to call and exchanged for a larger one when needed, because fresh
/// memory is slow at first touch.
pub(crate) struct Workspace<D: Device>(Mutex<Option<Kept<D>>>);

/// An arena, with what was recorded of passes that work in it, which are dropped first.
struct Kept<D: Device> {
    replays: Replays<D>,
    arena: Arena<D>,
}

impl<D: Device> Default for Workspace<D> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<D: Device> Workspace<D> {
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
                Kept { replays: Replays::default(), arena }
            }
        };
        Ok(Lease { kept: Some(kept), home: self })
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
        self.kept.as_mut().expect("held until dropped").arena.cursor()
    }

    /// The same, with what was recorded of `work` of these `sizes` in this memory.
    pub(crate) fn replayed(
        &mut self,
        work: &'static str,
        sizes: Vec<usize>,
    ) -> (Cursor<'_, D>, &mut D::Replay) {
        let kept = self.kept.as_mut().expect("held until dropped");
        (kept.arena.cursor(), kept.replays.of(work, sizes))
    }

    /// Where its memory begins.
    pub(crate) fn address(&self) -> usize {
        self.kept.as_ref().expect("held until dropped").arena.address(0).addr()
    }
}

impl<D: Device> Drop for Lease<'_, D> {
    fn drop(&mut self) {
        *self.home.0.lock().unwrap_or_else(PoisonError::into_inner) = self.kept.take();
    }
}
