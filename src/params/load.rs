//! Filling a tree of parameters from a checkpoint, tensor by tensor straight into place.

use super::names::{canonical, qkv_bias_parts};
use super::safetensors::Checkpoint;
use super::{Part, Role, Slot, Spec, Tree};
use crate::device::{Device, W};
use crate::error::{Error, Result};
use crate::input::printable;
use crate::memory::Arena;
use crate::tensor::{Number, NumberType, Packing, WeightMut};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Faults listed in full before the rest is only counted.
const FAULTS_LISTED: usize = 8;
/// What to do about tensors that are missing, misshapen or surplus.
const REMEDY: &str = "config.json and the weights must be of the same model";

/// A checkpoint whose tensors are found by the crate's names.
pub struct NamedCheckpoint<'a> {
    checkpoint: &'a Checkpoint,
    /// Name in the file by the crate's name.
    stored: BTreeMap<String, &'a str>,
}

impl<'a> NamedCheckpoint<'a> {
    /// Brings the names of `checkpoint` to the crate's own.
    ///
    /// # Errors
    /// Fails if two tensors are the same by the crate's names.
    pub fn new(checkpoint: &'a Checkpoint) -> Result<Self> {
        Self::renamed(checkpoint, canonical)
    }

    /// The same for a checkpoint of a part alone, whose names begin with `prefix` where they stand with others', if they
    /// do not already.
    ///
    /// # Errors
    /// As [`NamedCheckpoint::new`].
    pub fn under(prefix: &str, checkpoint: &'a Checkpoint) -> Result<Self> {
        Self::renamed(checkpoint, |name| {
            Some(if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") })
        })
    }

    fn renamed(checkpoint: &'a Checkpoint, own_name: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut stored = BTreeMap::new();
        for name in checkpoint.names() {
            let Some(own) = own_name(name) else { continue };
            if let Some(other) = stored.insert(own, name) {
                let what =
                    format_args!("tensors \"{}\" and \"{}\" are the same", printable(other), printable(name));
                return Err(Error::input(checkpoint.path(), what));
            }
        }
        Ok(Self { checkpoint, stored })
    }

    /// The checkpoint's tensors by the crate's names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.stored.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.stored.contains_key(name)
    }

    /// Shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let info = self.checkpoint.get(self.stored.get(name)?).expect("stored names are the checkpoint's");
        Some(&info.shape)
    }

    /// Which tensors of `specs` are missing or misshapen, a sentence each.
    pub fn faults(&self, specs: &impl Tree<Spec>) -> Vec<String> {
        let mut faults = Vec::new();
        specs.map(&mut |spec| faults.extend(self.faults_of(&spec.parts)));
        faults
    }

    /// Which of `parts` are missing or misshapen, a sentence each.
    pub fn faults_of(&self, parts: &[Part]) -> Vec<String> {
        parts.iter().filter_map(|part| self.fault(part)).collect()
    }

    /// Which tensors are neither `named` nor `expected`, a sentence each.
    pub fn surplus(&self, named: &BTreeSet<String>, expected: impl Fn(&str) -> bool) -> Vec<String> {
        let surplus = self.stored.iter().filter(|(name, _)| !named.contains(*name) && !expected(name));
        surplus
            .map(|(name, stored)| {
                let shape = self.shape(name).expect("a name of the checkpoint");
                format!("tensor \"{}\" {shape:?} belongs to no part of this model", printable(stored))
            })
            .collect()
    }

    /// What keeps `part` from being read, if anything does.
    fn fault(&self, part: &Part) -> Option<String> {
        let misshapen = |name: &str, expected: &[usize]| match self.shape(name) {
            None => Some(format!("tensor \"{name}\" {expected:?} is missing")),
            Some(found) if found != expected => {
                let stored = printable(self.stored[name]);
                Some(format!("tensor \"{stored}\" has shape {found:?}, expected {expected:?}"))
            }
            Some(_) => None,
        };
        match self.split_bias(part) {
            Some((q_bias, v_bias)) => {
                let third = [part.len() / 3];
                misshapen(&q_bias, &third).or_else(|| misshapen(&v_bias, &third))
            }
            None => misshapen(&part.name, &part.shape),
        }
    }

    /// The tensors that LAVIS has in place of an image encoder's qkv bias.
    fn split_bias(&self, part: &Part) -> Option<(String, String)> {
        let parts = qkv_bias_parts(&part.name)?;
        (!self.contains(&part.name) && self.contains(&parts.0)).then_some(parts)
    }
}

/// Where parameters come from.
pub trait TensorSource {
    /// Refuses, naming them all, tensors that cannot be read.
    ///
    /// # Errors
    /// Fails if one of `parts` is missing or misshapen.
    fn check(&self, parts: &[&Part]) -> Result<()>;

    /// Streams `part` to `sink(first element, values)`; returns how many values are not finite.
    ///
    /// # Errors
    /// Fails if the tensor cannot be read.
    fn read(&self, part: &Part, sink: &mut dyn FnMut(usize, &[f32])) -> Result<usize>;

    /// Reads `part` straight into `to`, as numbers of type `dtype`, on all cores; returns how many are not finite.
    /// None, and nothing is read, where it can only be streamed.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn read_into(&self, part: &Part, dtype: NumberType, to: &mut [u8]) -> Result<Option<usize>> {
        let _ = (part, dtype, to);
        Ok(None)
    }
}

impl TensorSource for NamedCheckpoint<'_> {
    fn check(&self, parts: &[&Part]) -> Result<()> {
        reject(self.checkpoint.path(), parts.iter().filter_map(|part| self.fault(part)).collect(), REMEDY)
    }

    fn read(&self, part: &Part, sink: &mut dyn FnMut(usize, &[f32])) -> Result<usize> {
        let Some((q_bias, v_bias)) = self.split_bias(part) else {
            return self.checkpoint.read_f32(self.stored[&part.name], sink);
        };
        let third = part.len() / 3;
        sink(third, &vec![0.0; third]);
        let of_q = self.checkpoint.read_f32(self.stored[&q_bias], &mut *sink)?;
        let of_v =
            self.checkpoint.read_f32(self.stored[&v_bias], |at, values| sink(2 * third + at, values))?;
        Ok(of_q + of_v)
    }

    fn read_into(&self, part: &Part, dtype: NumberType, to: &mut [u8]) -> Result<Option<usize>> {
        match self.split_bias(part) {
            Some(_) => Ok(None),
            None => self.checkpoint.read_into(self.stored[&part.name], dtype, to),
        }
    }
}

/// Parameters in the memory of a device.
pub struct Weights<D: Device, P> {
    arena: Arena<D>,
    slots: P,
    /// Tensors with values that are infinite or not a number, and how many.
    pub not_finite: Vec<(String, usize)>,
}

impl<D: Device, P: Tree<Slot>> Weights<D, P> {
    /// Reads every tensor that `specs` names; `progress` is called with the bytes taken so far and
    /// in all.
    ///
    /// # Errors
    /// Fails as [`TensorSource::check`] before anything is read, and if a tensor cannot be read or
    /// there is no room.
    pub fn load<S>(
        device: &D,
        specs: &S,
        source: &dyn TensorSource,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self>
    where
        S: Tree<Spec, With<Slot> = P>,
    {
        Self::load_as(device, specs, source, D::Elem::TYPE, progress)
    }

    /// The same with matrices of the roles [`Role::Weight`] and [`Role::Embedding`] as numbers of type `dtype`, if the
    /// device multiplies by them (`Device::frozen_type`), the weights by rows then; what is of 32 bits in the
    /// checkpoint is rounded to the nearest. Everything else is as [`Self::load`] has it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_as<S>(
        device: &D,
        specs: &S,
        source: &dyn TensorSource,
        dtype: NumberType,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self>
    where
        S: Tree<Spec, With<Slot> = P>,
    {
        let mut parts = Vec::new();
        specs.map(&mut |spec| parts.extend(&spec.parts));
        source.check(&parts)?;
        let mut arena = Arena::planned(device, "the weights", |cursor| {
            specs.map(&mut |spec| {
                let (dtype, packing) = spec.storage(device, dtype);
                cursor.take_weight(spec.shape, dtype, packing);
            });
        })?;
        let mut cursor = arena.cursor();
        let total = cursor.capacity();
        let mut result = Ok(());
        let mut not_finite = Vec::new();
        let slots = specs.map(&mut |spec| {
            let offset = cursor.used();
            let (dtype, packing) = spec.storage(device, dtype);
            let mut to = cursor.take_weight(spec.shape, dtype, packing);
            if result.is_ok() {
                result = fill(device, source, spec, &mut to, &mut not_finite);
                progress(cursor.used(), total);
            }
            Slot { spec: spec.clone(), offset, dtype, packing }
        });
        result?;
        Ok(Self { arena, slots, not_finite })
    }

    /// The parameters, for reading.
    pub fn view(&self) -> P::With<W<'_, D>> {
        self.slots.map(&mut |slot| slot.view(&self.arena))
    }

    /// Bytes of device memory taken.
    pub fn bytes(&self) -> usize {
        self.arena.capacity()
    }
}

fn fill<D: Device>(
    device: &D,
    source: &dyn TensorSource,
    spec: &Spec,
    to: &mut WeightMut<'_, D>,
    not_finite: &mut Vec<(String, usize)>,
) -> Result<()> {
    let mut first = 0;
    for part in &spec.parts {
        let dtype = to.dtype();
        let straight = match device.host_bytes(first..first + part.len(), to.reborrow()) {
            Some(bytes) => source.read_into(part, dtype, bytes)?,
            None => None,
        };
        let count = match straight {
            Some(count) => count,
            None => stream(device, source, part, first, to)?,
        };
        if count > 0 {
            not_finite.push((part.name.clone(), count));
        }
        first += part.len();
    }
    Ok(())
}

/// Has `part` streamed to the numbers of a parameter from the `first` on; returns how many values are not finite.
fn stream<D: Device>(
    device: &D,
    source: &dyn TensorSource,
    part: &Part,
    first: usize,
    to: &mut WeightMut<'_, D>,
) -> Result<usize> {
    let mut written = Ok(());
    let count = source.read(part, &mut |at, values| {
        if written.is_ok() {
            written = device.write_weight(values, first + at, to.reborrow());
        }
    })?;
    written.map(|()| count)
}

impl Spec {
    /// How a device stores it where weights are wanted as `dtype`.
    fn storage<D: Device>(&self, device: &D, dtype: NumberType) -> (NumberType, Packing) {
        let (frozen, own) = (device.frozen_type(dtype), D::Elem::TYPE);
        let rows = Packing::Rows { pitch: self.shape.cols };
        match self.role {
            Role::Weight if frozen == own => (own, device.frozen_packing(self.shape.cols)),
            Role::Weight | Role::Embedding => (frozen, rows),
            Role::Rows => (own, rows),
        }
    }
}

/// The tensors of `checkpoint` that neither a tree of `named` parts nor `expected` accounts for.
///
/// # Errors
/// Fails, naming them with their shapes, if there are any.
pub fn reject_surplus(
    checkpoint: &NamedCheckpoint<'_>,
    named: &BTreeSet<String>,
    expected: impl Fn(&str) -> bool,
) -> Result<()> {
    reject(checkpoint.checkpoint.path(), checkpoint.surplus(named, expected), REMEDY)
}

/// Fails with all `faults` of what is at `path`, if there are any.
pub(super) fn reject(path: &Path, faults: Vec<String>, remedy: &str) -> Result<()> {
    if faults.is_empty() {
        return Ok(());
    }
    let mut message = faults[..faults.len().min(FAULTS_LISTED)].join("; ");
    if faults.len() > FAULTS_LISTED {
        message += &format!("; and {} more", faults.len() - FAULTS_LISTED);
    }
    Err(Error::input(path, format_args!("{message} ({remedy})")))
}
