//! The model card of a checkpoint.

use super::Stage1Settings;
use crate::config::VisionConfig;
use crate::train::CardFacts;

/// What the checkpoint is, and the losses of its last step.
pub(super) fn model_card(facts: &CardFacts<'_, Stage1Settings>) -> String {
    let CardFacts { settings, step, .. } = facts;
    let [itc, itm, lm] = settings.objective.loss_weights;
    let batch = settings.batch_size * settings.accum_freq;
    let seen = match facts.has_encoder {
        true => "The image encoder, which was not trained, is in the folder.",
        false => "It was trained on an image encoder's output; the encoder is not in the folder.",
    };
    let opened_by = match facts.config.vision {
        VisionConfig::Features(_) => {
            "It reads the features of images, which `qformer` takes in place of pictures; transformers knows no such model."
        }
        _ => {
            "`Blip2ForImageTextRetrieval.from_pretrained` of transformers opens the folder; `stage1.safetensors` holds what\n\
             transformers has no place for."
        }
    };
    let mut card = format!(
        "---\n\
         library_name: transformers\n\
         tags:\n- blip-2\n- image-text-retrieval\n\
         ---\n\n\
         # BLIP-2's Q-Former after step {step} of {} of stage 1\n\n\
         Trained by qformer {} with ITC, ITM and ITG weighted {itc}, {itm} and {lm}, in batches of {batch}, with a learning\n\
         rate of {:e} at most. {seen}\n\n\
         {opened_by}\n",
        settings.steps,
        env!("CARGO_PKG_VERSION"),
        settings.lr,
    );
    if let Some(last) = facts.last {
        card += &format!("\n| of the last step's batch | |\n|---|---|\n| loss | {:.4} |\n", last.loss);
        for (label, name) in [
            ("ITC", "loss_itc"),
            ("ITM", "loss_itm"),
            ("ITG", "loss_lm"),
            ("ITM accuracy", "itm_accuracy"),
            ("ITC recall at 1", "itc_recall1"),
        ] {
            card += &format!("| {label} | {:.4} |\n", last.measured.get(name).unwrap_or(f64::NAN));
        }
        card += "\n`qformer evaluate` measures it on other data.\n";
    }
    card
}
