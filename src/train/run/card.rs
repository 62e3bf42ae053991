//! The model card of a checkpoint.

use super::checkpoint::Frozen;
use super::metrics::Record;
use super::settings::Settings;
use crate::config::{Config, VisionConfig};

/// Name of the file, as model hubs have it.
pub(super) const FILE_NAME: &str = "README.md";

/// What the checkpoint after step `step` is, and what its last step found out.
pub(super) fn model_card(
    config: &Config,
    settings: &Settings,
    (step, last): (usize, Option<&Record>),
    encoder: Option<&Frozen>,
) -> String {
    let [itc, itm, lm] = settings.loss_weights;
    let batch = settings.batch_size * settings.accum_freq;
    let seen = match encoder {
        Some(_) => "The image encoder, which was not trained, is in the folder.",
        None => "It was trained on an image encoder's output; the encoder is not in the folder.",
    };
    let opened_by = match config.vision {
        VisionConfig::Features(_) => {
            "It reads features only, which `qformer` takes by `--features`; transformers knows no such model."
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
    if let Some(last) = last {
        card += &format!(
            "\n| of the last step's batch | |\n|---|---|\n\
             | loss | {:.4} |\n| ITC | {:.4} |\n| ITM | {:.4} |\n| ITG | {:.4} |\n\
             | ITM accuracy | {:.4} |\n| ITC recall at 1 | {:.4} |\n\n\
             `qformer evaluate` measures it on other data.\n",
            last.loss, last.loss_itc, last.loss_itm, last.loss_lm, last.itm_accuracy, last.itc_recall1,
        );
    }
    card
}
