//! The memory that passes work in.

use crate::arena::{Arena, Cursor};
use crate::device::Device;
use crate::error::Result;
use std::sync::{Mutex, PoisonError};

/// One arena, kept from call to call and exchanged for a larger one when needed, because fresh
/// memory is slow at first touch.
pub(crate) struct Workspace<D: Device>(Mutex<Option<Arena<D>>>);

impl<D: Device> Default for Workspace<D> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<D: Device> Workspace<D> {
    /// Memory for what `carve` takes; a second lease at the same time gets memory of its own.
    pub(crate) fn lease<'w>(
        &'w self,
        device: &D,
        carve: impl FnOnce(&mut Cursor<'_, D>),
    ) -> Result<Lease<'w, D>> {
        let bytes = Arena::<D>::bytes(carve);
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let arena = match kept {
            Some(arena) if arena.capacity() >= bytes => arena,
            // The smaller arena is freed first, so that both are never held.
            smaller => {
                drop(smaller);
                Arena::sized(device, "activations", bytes)?
            }
        };
        Ok(Lease { arena: Some(arena), home: self })
    }
}

/// An arena on loan from a [`Workspace`].
pub(crate) struct Lease<'w, D: Device> {
    arena: Option<Arena<D>>,
    home: &'w Workspace<D>,
}

impl<D: Device> Lease<'_, D> {
    /// Starts carving from the front.
    pub(crate) fn cursor(&mut self) -> Cursor<'_, D> {
        self.arena.as_mut().expect("held until dropped").cursor()
    }
}

impl<D: Device> Drop for Lease<'_, D> {
    fn drop(&mut self) {
        *self.home.0.lock().unwrap_or_else(PoisonError::into_inner) = self.arena.take();
    }
}
