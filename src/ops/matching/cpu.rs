//! One task: there are a few thousand pairs at most.

use super::{LEFT_OUT, MatchingBackward, MatchingForm, MatchingForward, MatchingGradient, MatchingOp};
use crate::device::{Cpu, Real};
use crate::error::Result;

impl<E: Real> MatchingForm<'_, Cpu<E>> {
    /// How much more a match is said than no match: the logit of a pair.
    fn logit(&self, pair: usize) -> E {
        match self {
            Self::Classifier { logits } => logits.row(pair)[1] - logits.row(pair)[0],
            Self::MaxSimilarity { similarity, scale, bias } => {
                scale.row(0)[0] * similarity.row(pair)[0] + bias.row(0)[0]
            }
        }
    }
}

/// 1/(1 + e⁻ˣ), without overflow.
fn sigmoid<E: Real>(x: E) -> E {
    let e = (-x.abs()).exp();
    if x < E::ZERO { e / (E::ONE + e) } else { E::ONE / (E::ONE + e) }
}

/// ln(1 + eˣ), without overflow.
fn softplus<E: Real>(x: E) -> E {
    let above = if x < E::ZERO { E::ZERO } else { x };
    above + (E::ONE + (-x.abs()).exp()).ln()
}

impl<E: Real> MatchingOp for Cpu<E> {
    fn matching_forward(&self, args: MatchingForward<'_, Self>) -> Result<()> {
        let pairs = args.check();
        let MatchingForward { form, labels, mut loss, mut correct } = args;
        let mut total = E::ZERO;
        let [mut right, mut counted] = [0; 2];
        for (pair, &label) in (0..pairs).zip(labels.row(0)) {
            if label == LEFT_OUT {
                continue;
            }
            let x = form.logit(pair);
            let matches = label == 1;
            total += softplus(if matches { -x } else { x });
            right += u32::from((x > E::ZERO) == matches);
            counted += 1;
        }
        loss.row_mut(0)[0] = total / E::of(f64::from(counted.max(1)));
        correct.row_mut(0).copy_from_slice(&[right, counted]);
        Ok(())
    }

    fn matching_backward(&self, args: MatchingBackward<'_, Self>) -> Result<()> {
        let pairs = args.check();
        let MatchingBackward { form, labels, correct, weight, mut gradient } = args;
        let weight = E::of(weight / f64::from(correct.row(0)[1].max(1)));
        for (pair, &label) in (0..pairs).zip(labels.row(0)) {
            let dlogit = match label {
                LEFT_OUT => E::ZERO,
                label => (sigmoid(form.logit(pair)) - E::of(f64::from(label))) * weight,
            };
            match (&form, &mut gradient) {
                (_, MatchingGradient::Classifier { dlogits }) => {
                    dlogits.row_mut(pair).copy_from_slice(&[-dlogit, dlogit]);
                }
                (
                    MatchingForm::MaxSimilarity { similarity, scale, .. },
                    MatchingGradient::MaxSimilarity { dsimilarity, dscale, dbias },
                ) => {
                    dsimilarity.row_mut(pair)[0] = dlogit * scale.row(0)[0];
                    dscale.row_mut(0)[0] += dlogit * similarity.row(pair)[0];
                    dbias.row_mut(0)[0] += dlogit;
                }
                _ => unreachable!("checked"),
            }
        }
        Ok(())
    }
}
