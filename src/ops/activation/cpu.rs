//! Activations in loops that vectorise.

use super::{Activation, ActivationBackward, ActivationForward, ActivationOp};
use crate::device::{Cpu, Real, vectorised};
use crate::error::Result;
use rayon::prelude::*;

/// √(2/π), of GELU's tanh form.
const TANH_SCALE: f64 = 0.797_884_560_802_865_4;
/// The cubic coefficient of GELU's tanh form.
const TANH_CUBIC: f64 = 0.044_715;
/// Slope of quick GELU's sigmoid.
const QUICK_SLOPE: f64 = 1.702;

/// Φ(x), the normal distribution function: ½·erfc(|x|/√2), mirrored for x > 0, which keeps the
/// relative precision of small values.
#[inline(always)]
fn normal_cdf<E: Real>(x: E) -> E {
    let tail = E::of(0.5) * (x.abs() * E::of(std::f64::consts::FRAC_1_SQRT_2)).erfc();
    if x > E::ZERO { E::ONE - tail } else { tail }
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
fn sigmoid<E: Real>(x: E) -> E {
    E::ONE / (E::ONE + (-x).exp())
}

#[inline(always)]
fn tanh_argument<E: Real>(x: E) -> E {
    E::of(TANH_SCALE) * x * (E::ONE + E::of(TANH_CUBIC) * x * x)
}

/// f(x)
#[inline(always)]
fn value<E: Real>(activation: Activation, x: E) -> E {
    match activation {
        Activation::Gelu => x * normal_cdf(x),
        // ½(1 + tanh u) = sigmoid(2u)
        Activation::GeluTanh => x * sigmoid(E::of(2.0) * tanh_argument(x)),
        Activation::QuickGelu => x * sigmoid(E::of(QUICK_SLOPE) * x),
        Activation::Relu => {
            if x < E::ZERO {
                E::ZERO
            } else {
                x
            }
        }
    }
}

/// f'(x)
#[inline(always)]
fn derivative<E: Real>(activation: Activation, x: E) -> E {
    match activation {
        Activation::Gelu => {
            let density = E::of(0.398_942_280_401_432_7) * (E::of(-0.5) * x * x).exp();
            normal_cdf(x) + x * density
        }
        Activation::GeluTanh => {
            let s = sigmoid(E::of(2.0) * tanh_argument(x));
            let slope = E::of(TANH_SCALE) * (E::ONE + E::of(3.0 * TANH_CUBIC) * x * x);
            s + x * E::of(2.0) * s * (E::ONE - s) * slope
        }
        Activation::QuickGelu => {
            let s = sigmoid(E::of(QUICK_SLOPE) * x);
            s + E::of(QUICK_SLOPE) * x * s * (E::ONE - s)
        }
        Activation::Relu => {
            if x > E::ZERO {
                E::ONE
            } else {
                E::ZERO
            }
        }
    }
}

impl Activation {
    /// x = f(x); to be called from vectorised code.
    #[inline(always)]
    pub(crate) fn apply<E: Real>(self, x: &mut [E]) {
        // One loop a kind: a choice inside the loop would keep it from vectorising.
        match self {
            Activation::Gelu => x.iter_mut().for_each(|x| *x = value(Activation::Gelu, *x)),
            Activation::GeluTanh => x.iter_mut().for_each(|x| *x = value(Activation::GeluTanh, *x)),
            Activation::QuickGelu => x.iter_mut().for_each(|x| *x = value(Activation::QuickGelu, *x)),
            Activation::Relu => x.iter_mut().for_each(|x| *x = value(Activation::Relu, *x)),
        }
    }

    /// dx = dy·f'(x) in the place of dy; to be called from vectorised code.
    #[inline(always)]
    pub(crate) fn apply_derivative<E: Real>(self, x: &[E], dy: &mut [E]) {
        // Loops, not `for_each`: that of a zip is a function of its own, compiled for any processor.
        macro_rules! each {
            ($activation:expr) => {
                for (dy, &x) in dy.iter_mut().zip(x) {
                    *dy = *dy * derivative($activation, x);
                }
            };
        }
        match self {
            Activation::Gelu => each!(Activation::Gelu),
            Activation::GeluTanh => each!(Activation::GeluTanh),
            Activation::QuickGelu => each!(Activation::QuickGelu),
            Activation::Relu => each!(Activation::Relu),
        }
    }
}

impl<E: Real> ActivationOp for Cpu<E> {
    fn activation_forward(
        &self,
        ActivationForward { activation, x, y }: ActivationForward<'_, Self>,
    ) -> Result<()> {
        assert_eq!(x.shape(), y.shape());
        let y = y.into_rows();
        (0..x.rows()).into_par_iter().for_each(|r| {
            // SAFETY: one task a row.
            let y = unsafe { y.row(r) };
            y.copy_from_slice(x.row(r));
            vectorised(
                #[inline(always)]
                || activation.apply(y),
            );
        });
        Ok(())
    }

    fn activation_backward(
        &self,
        ActivationBackward { activation, x, dy }: ActivationBackward<'_, Self>,
    ) -> Result<()> {
        assert_eq!(x.shape(), dy.shape());
        let dy = dy.into_rows();
        (0..x.rows()).into_par_iter().for_each(|r| {
            // SAFETY: one task a row.
            let dy = unsafe { dy.row(r) };
            vectorised(
                #[inline(always)]
                || activation.apply_derivative(x.row(r), dy),
            );
        });
        Ok(())
    }
}
