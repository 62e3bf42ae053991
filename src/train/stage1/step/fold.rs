//! The norm of the images' features, folded into the projections that read them.

use super::acts::FoldActs;
use super::pass::StepContext;
use crate::device::SM;
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::fold::{FoldBackward, FoldForward};
use crate::train::stage1::Stage1Parameters;

impl<B: Backend> StepContext<'_, B> {
    /// The projections of the images, the same for all micro-batches.
    pub(super) fn fold_forward(&self, acts: &mut FoldActs<'_, B>) -> Result<()> {
        let parameters = &self.parameters.qformer;
        self.b.clear(acts.dweight.reborrow())?;
        self.b.clear(acts.dbias.reborrow())?;
        self.b.fold_forward(FoldForward {
            weight: parameters.image_kv.weight.matrix(),
            bias: parameters.image_kv.own_bias().matrix(),
            norm_weight: parameters.image_norm.weight.matrix(),
            norm_bias: parameters.image_norm.bias.matrix(),
            folded_weight: acts.weight.reborrow(),
            folded_bias: acts.bias.reborrow(),
        })
    }

    /// The gradients of what was folded, from those of all micro-batches' projections.
    pub(super) fn fold_backward(
        &self,
        acts: &FoldActs<'_, B>,
        gradients: &mut Stage1Parameters<SM<'_, B>>,
    ) -> Result<()> {
        let (parameters, gradients) = (&self.parameters.qformer, &mut gradients.qformer);
        self.b.fold_backward(FoldBackward {
            weight: parameters.image_kv.weight.matrix(),
            norm_weight: parameters.image_norm.weight.matrix(),
            norm_bias: parameters.image_norm.bias.matrix(),
            dfolded_weight: acts.dweight.view(),
            dfolded_bias: acts.dbias.view(),
            dweight: gradients.image_kv.weight.reborrow(),
            dbias: gradients.image_kv.bias.as_mut().expect("with a bias").reborrow(),
            dnorm_weight: gradients.image_norm.weight.reborrow(),
            dnorm_bias: gradients.image_norm.bias.reborrow(),
        })
    }
}
