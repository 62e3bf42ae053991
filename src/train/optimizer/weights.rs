//! Parameters in training: one flat vector each of the numbers themselves, their gradients and their
//! moments, and where the graph computes in narrower numbers, of what it reads.

use super::scalars::Scalars;
use crate::device::{Device, S, SM, W};
use crate::error::Result;
use crate::memory::{Arena, Recorded};
use crate::ops::Backend;
use crate::params::safetensors::{Dtype, NewTensor};
use crate::params::{Part, Spec, TensorSource, Tree};
use crate::tensor::{HostTensor, Number, Shape, View, ViewMut};
use std::any::TypeId;

/// Parameters start at multiples of this many elements: whole lines of an arena in any number type.
const ALIGNMENT: usize = 32;

/// Where a parameter stands in the vectors.
#[derive(Clone, Debug)]
pub struct ParamSlot {
    /// What it is.
    pub spec: Spec,
    /// Its first element.
    first: usize,
}

/// The vectors; parameters that are decayed stand before those that are not.
pub struct TrainedWeights<D: Device, P> {
    places: P,
    /// Elements of each vector.
    pub(super) len: usize,
    /// Elements that are decayed, the first ones.
    pub(super) decayed: usize,
    /// [1, len] `Stat`
    pub(super) parameters: Arena<D>,
    /// [1, len] `Stat`
    pub(super) gradients: Arena<D>,
    /// [1, len] `Stat`, twice
    pub(super) moments: [Arena<D>; 2],
    /// [1, len] `Elem`; absent where `Elem` is `Stat`.
    pub(super) weights: Option<Arena<D>>,
    /// What the optimiser reads besides.
    pub(super) scalars: Arena<D>,
    /// Of the optimiser's step; all memory that it touches is here.
    pub(super) recorded: Recorded<D>,
}

/// What the optimiser keeps of a tensor, by the names of PyTorch's AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The running mean of gradients.
    First,
    /// The running mean of their squares.
    Second,
}

impl Moment {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::First, Self::Second];

    /// What the moment of the tensor `name` is called in a file.
    pub fn name_of(self, name: &str) -> String {
        match self {
            Self::First => format!("exp_avg.{name}"),
            Self::Second => format!("exp_avg_sq.{name}"),
        }
    }
}

/// Parameters as a step sees them.
pub struct Training<'a, D: Backend, P: Tree<ParamSlot>> {
    /// What the graph reads.
    pub weights: P::With<W<'a, D>>,
    /// The numbers themselves.
    pub parameters: P::With<S<'a, D>>,
    /// To be added to.
    pub gradients: P::With<SM<'a, D>>,
}

/// LAVIS's rule: matrices and tables are decayed; biases, norms and the temperature are not.
fn is_decayed(spec: &Spec) -> bool {
    spec.parts[0].shape.len() >= 2
}

/// Elements of each vector, and how many of them are decayed.
fn elements(specs: &impl Tree<Spec>) -> (usize, usize) {
    let mut sizes = [0, 0];
    specs.map(&mut |spec| {
        sizes[usize::from(!is_decayed(spec))] += spec.shape.len().next_multiple_of(ALIGNMENT);
    });
    (sizes[0] + sizes[1], sizes[0])
}

/// Bytes that vectors of parameters take.
pub(in crate::train) struct VectorBytes {
    pub(in crate::train) parameters: usize,
    pub(in crate::train) gradients: usize,
    pub(in crate::train) moments: usize,
    pub(in crate::train) weights: usize,
    pub(in crate::train) scalars: usize,
}

impl VectorBytes {
    /// Those of [`TrainedWeights::load`].
    pub(in crate::train) fn planned<D: Backend>(specs: &impl Tree<Spec>) -> Self {
        let (len, _) = elements(specs);
        let vector = len * size_of::<D::Stat>();
        Self {
            parameters: vector,
            gradients: vector,
            moments: 2 * vector,
            weights: if is_narrower::<D>() { len * size_of::<D::Elem>() } else { 0 },
            scalars: Arena::<D>::bytes(|c| {
                Scalars::carve(c);
            }),
        }
    }
}

/// Whether the graph computes in narrower numbers than the parameters are.
fn is_narrower<D: Device>() -> bool {
    TypeId::of::<D::Elem>() != TypeId::of::<D::Stat>()
}

impl<D: Backend, P: Tree<ParamSlot>> TrainedWeights<D, P> {
    /// Reads every tensor that `specs` names; gradients and moments are zero.
    ///
    /// # Errors
    /// Fails as [`TensorSource::check`] before anything is read, and if a tensor cannot be read or there
    /// is no room.
    pub fn load<S>(device: &D, specs: &S, source: &dyn TensorSource) -> Result<Self>
    where
        S: Tree<Spec, With<ParamSlot> = P>,
    {
        let mut parts = Vec::new();
        specs.map(&mut |spec| parts.extend(&spec.parts));
        source.check(&parts)?;
        let (len, decayed) = elements(specs);
        let mut next = [0, decayed];
        let places = specs.map(&mut |spec| {
            let next = &mut next[usize::from(!is_decayed(spec))];
            let first = *next;
            *next += spec.shape.len().next_multiple_of(ALIGNMENT);
            ParamSlot { spec: spec.clone(), first }
        });
        let vector = |purpose| Arena::sized(device, purpose, len * size_of::<D::Stat>());
        let parameters = vector("the parameters")?;
        let gradients = vector("the gradients")?;
        let moments = [vector("the moments")?, vector("the moments")?];
        let weights = || Arena::sized(device, "the weights", len * size_of::<D::Elem>());
        let weights = is_narrower::<D>().then(weights).transpose()?;
        let scalars = Arena::planned(device, "the optimiser's scalars", |c| {
            Scalars::carve(c);
        })?;
        let recorded = Recorded::default();
        let mut trained =
            Self { places, len, decayed, parameters, gradients, moments, weights, scalars, recorded };
        trained.fill(device, source)?;
        Ok(trained)
    }

    fn fill(&mut self, device: &D, source: &dyn TensorSource) -> Result<()> {
        let Self { places, parameters, weights, .. } = self;
        each_block(places, &mut |part, sink| source.read(part, sink).map(drop), &mut |place, at, values| {
            place.write::<D, D::Stat>(device, parameters, at, values)?;
            weights.as_mut().map_or(Ok(()), |weights| place.write::<D, D::Elem>(device, weights, at, values))
        })
    }

    /// Reads the moments of every tensor, which `source` knows by [`Moment::name_of`].
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_moments(&mut self, device: &D, source: &dyn TensorSource) -> Result<()> {
        let Self { places, moments, .. } = self;
        for (moment, vector) in Moment::BOTH.into_iter().zip(moments) {
            let named = |part: &Part| Part { name: moment.name_of(&part.name), shape: part.shape.clone() };
            let mut parts = Vec::new();
            places.map(&mut |place| parts.extend(place.spec.parts.iter().map(named)));
            source.check(&parts.iter().collect::<Vec<&Part>>())?;
            each_block(
                places,
                &mut |part, sink| source.read(&named(part), sink).map(drop),
                &mut |place, at, values| place.write::<D, D::Stat>(device, vector, at, values),
            )?;
        }
        Ok(())
    }

    /// What the graph reads.
    pub fn view(&self) -> P::With<W<'_, D>> {
        let arena = self.weights.as_ref().unwrap_or(&self.parameters);
        // SAFETY: the vectors hold every place, and are borrowed for as long as the views.
        self.places.map(&mut |place| unsafe { place.view::<D, D::Elem>(arena.address(0)) }.into())
    }

    /// The numbers themselves.
    pub fn parameters(&self) -> P::With<S<'_, D>> {
        // SAFETY: as above.
        self.places.map(&mut |place| unsafe { place.view(self.parameters.address(0)) })
    }

    /// All views of the parameters.
    pub fn training(&mut self) -> Training<'_, D, P> {
        let base = self.gradients.cursor().take::<D::Stat>(1, self.len).pointer();
        // SAFETY: places do not overlap, the vector holds them all, and it is borrowed exclusively.
        let gradients = self.places.map(&mut |place| unsafe { place.view_mut(base) });
        Training { weights: self.view(), parameters: self.parameters(), gradients }
    }

    /// Sets the gradients to zero.
    ///
    /// # Errors
    /// Fails if the device does.
    pub fn clear_gradients(&mut self, device: &D) -> Result<()> {
        device.clear(self.gradients.cursor().take::<D::Stat>(1, self.len))
    }

    /// Bytes that are held.
    pub(in crate::train) fn bytes(&self) -> VectorBytes {
        VectorBytes {
            parameters: self.parameters.capacity(),
            gradients: self.gradients.capacity(),
            moments: self.moments.iter().map(Arena::capacity).sum(),
            weights: self.weights.as_ref().map_or(0, Arena::capacity),
            scalars: self.scalars.capacity(),
        }
    }

    /// How many numbers are trained.
    pub fn count(&self) -> usize {
        let mut count = 0;
        self.places.map(&mut |place| count += place.spec.shape.len());
        count
    }

    /// The tensors of a checkpoint whose names are `asked`, read from the device as they are written; exact,
    /// as they are not narrower in a file.
    pub fn tensors<'a>(&'a self, device: &'a D, asked: impl Fn(&str) -> bool) -> Vec<NewTensor<'a>> {
        self.written(device, &self.parameters, |name| asked(name).then(|| name.to_owned()))
    }

    /// Their moments, by [`Moment::name_of`], likewise.
    pub fn moments<'a>(&'a self, device: &'a D) -> Vec<NewTensor<'a>> {
        let of =
            |(moment, vector): (Moment, _)| self.written(device, vector, |name| Some(moment.name_of(name)));
        Moment::BOTH.into_iter().zip(&self.moments).flat_map(of).collect()
    }

    fn written<'a>(
        &'a self,
        device: &'a D,
        vector: &'a Arena<D>,
        name_of: impl Fn(&str) -> Option<String>,
    ) -> Vec<NewTensor<'a>> {
        let mut tensors = Vec::new();
        self.each_part(|part, begin| {
            let values = move |first: usize, block: &mut [f32]| {
                let all: S<'_, D> = vector.first(1, self.len);
                let first = begin + first;
                block.copy_from_slice(&device.read(all.columns(first..first + block.len()))?);
                Ok(())
            };
            if let Some(name) = name_of(&part.name) {
                tensors.push(NewTensor::new(name, Dtype::F32, &part.shape, values));
            }
        });
        tensors
    }

    /// The gradients of the tensors of a checkpoint.
    ///
    /// # Errors
    /// Fails as `each` does, and if the device does.
    pub fn for_each_gradient(
        &self,
        device: &D,
        mut each: impl FnMut(&Part, HostTensor) -> Result<()>,
    ) -> Result<()> {
        let mut result = Ok(());
        self.each_part(|part, first| {
            if result.is_ok() {
                let all: S<'_, D> = self.gradients.first(1, self.len);
                result = device
                    .read(all.columns(first..first + part.len()))
                    .and_then(|values| each(part, HostTensor::new(&part.shape, values)?));
            }
        });
        result
    }

    /// Calls `each` with every tensor and where it begins in the vectors.
    fn each_part<'a>(&'a self, mut each: impl FnMut(&'a Part, usize)) {
        self.places.map(&mut |place| {
            let mut first = place.first;
            for part in &place.spec.parts {
                each(part, first);
                first += part.len();
            }
        });
    }
}

/// What takes a block of values.
type Sink<'a> = &'a mut dyn FnMut(usize, &[f32]);

/// What takes a block of a place's values.
type Take<'a> = &'a mut dyn FnMut(&ParamSlot, usize, &[f32]) -> Result<()>;

/// Calls `take(place, first element, values)` with one block after the other of what `read` streams of
/// every tensor.
fn each_block<P: Tree<ParamSlot>>(
    places: &P,
    read: &mut dyn FnMut(&Part, Sink<'_>) -> Result<()>,
    take: Take<'_>,
) -> Result<()> {
    let mut result = Ok(());
    places.map(&mut |place| {
        let mut first = 0;
        for part in &place.spec.parts {
            if result.is_err() {
                return;
            }
            let read = read(part, &mut |at, values| {
                if result.is_ok() {
                    result = take(place, first + at, values);
                }
            });
            if result.is_ok() {
                result = read;
            }
            first += part.len();
        }
    });
    result
}

impl ParamSlot {
    /// # Safety
    /// A vector of `E` at `base` on device `D` must hold this place, and be borrowed for 'a.
    unsafe fn view<'a, D, E: Number>(&self, base: *const u8) -> View<'a, D, E> {
        // SAFETY: as the caller promises.
        unsafe { View::new(base.cast::<E>().add(self.first), self.spec.shape, self.spec.shape.cols) }
    }

    /// # Safety
    /// As above, and the place must be borrowed by nothing else.
    unsafe fn view_mut<'a, D, E: Number>(&self, base: *mut E) -> ViewMut<'a, D, E> {
        // SAFETY: as the caller promises.
        unsafe { ViewMut::new(base.add(self.first), self.spec.shape, self.spec.shape.cols) }
    }

    /// Writes `values` from element `at` of this parameter on.
    fn write<D: Device, E: Number>(
        &self,
        device: &D,
        vector: &mut Arena<D>,
        at: usize,
        values: &[f32],
    ) -> Result<()> {
        let Shape { rows, cols } = self.spec.shape;
        let whole = vector.cursor().take::<E>(1, self.first + rows * cols);
        device.write(values, at, whole.split_columns(self.first).1)
    }
}
