//! A row a task.

use super::{CrossEntropyBackward, CrossEntropyForward, CrossEntropyOp, IGNORED};
use crate::device::{Cpu, Real, maximum, sum, vectorised};
use crate::error::Result;
use rayon::prelude::*;

impl<E: Real> CrossEntropyOp for Cpu<E> {
    fn cross_entropy_forward(&self, mut args: CrossEntropyForward<'_, Self>) -> Result<()> {
        args.check();
        let (logits, labels) = (args.logits, args.labels.row(0));
        let width = logits.cols();
        let (at_label, at_all) = (E::of(1.0 - args.smoothing), E::of(args.smoothing / width as f64));
        let (losses, predictions) = (args.row_losses.row_mut(0), args.predictions.row_mut(0));
        let outputs = args.lse.row_mut(0).par_iter_mut().zip(&mut *losses).zip(&mut *predictions);
        outputs.enumerate().for_each(|(r, ((lse, loss), prediction))| {
            let x = logits.row(r);
            let (largest, exponentials, total) = vectorised(
                #[inline(always)]
                || {
                    let largest = maximum(x);
                    let exponentials = sum([x], |[x]| (x - largest).exp());
                    (largest, exponentials, sum([x], |[x]| x))
                },
            );
            *lse = largest + exponentials.ln();
            *loss = match labels[r] {
                IGNORED => E::ZERO,
                label => *lse - at_label * x[label as usize] - at_all * total,
            };
            // None is the largest of a row with NaN; the loss shows it.
            *prediction = x.iter().position(|&x| x == largest).unwrap_or(0) as u32;
        });
        args.loss.row_mut(0)[0] = sum([losses], |[loss]| loss) * E::of(1.0 / counted(labels) as f64);
        let correct = predictions.iter().zip(labels).filter(|(prediction, label)| prediction == label);
        args.correct.row_mut(0)[0] = correct.count() as u32;
        Ok(())
    }

    fn cross_entropy_backward(&self, args: CrossEntropyBackward<'_, Self>) -> Result<()> {
        args.check();
        let (rows, width) = (args.logits.rows(), args.logits.cols());
        let (labels, lse) = (args.labels.row(0), args.lse.row(0));
        let row_weight = args.weight / counted(labels) as f64;
        let weight = E::of(row_weight);
        let at_label = E::of(row_weight * (1.0 - args.smoothing));
        let at_all = E::of(row_weight * args.smoothing / width as f64);
        let logits = args.logits.into_rows();
        (0..rows).into_par_iter().for_each(|r| {
            // SAFETY: one task a row.
            let x = unsafe { logits.row(r) };
            if labels[r] == IGNORED {
                return x.fill(E::ZERO);
            }
            vectorised(
                #[inline(always)]
                || x.iter_mut().for_each(|x| *x = weight * (*x - lse[r]).exp() - at_all),
            );
            x[labels[r] as usize] += -at_label;
        });
        Ok(())
    }
}

/// How many rows have a label.
fn counted(labels: &[u32]) -> usize {
    labels.iter().filter(|&&label| label != IGNORED).count()
}
