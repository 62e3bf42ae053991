//! The language model of a checkpoint.

use crate::Remarks;
use clap::Args;
use qformer::{Pipeline, PipelineBuilder, Result, WeightType};
use std::path::PathBuf;

/// Which language model, and how it is kept.
#[derive(Args)]
pub(crate) struct LanguageArguments {
    /// Folder of the language model, as transformers saves it alone, for LAVIS's .pth files, which hold none
    #[arg(long, value_name = "DIR")]
    language_model: Option<PathBuf>,
    /// Type that its weights are kept in: auto, f32, f16 or bf16; auto is the file's, and bf16 where 32 bits do not fit
    #[arg(long, value_name = "TYPE", default_value_t = WeightType::Auto)]
    dtype: WeightType,
}

impl LanguageArguments {
    /// The checkpoint with its language model.
    pub(crate) fn with(&self, builder: PipelineBuilder) -> Result<PipelineBuilder> {
        let builder = match &self.language_model {
            Some(folder) => builder.language_model(folder)?,
            None => builder.with_language_model(),
        };
        Ok(builder.weight_type(self.dtype))
    }
}

/// Tells that weights were rounded where nobody asked for it.
pub(crate) fn tell_of_narrowing(pipeline: &Pipeline, remarks: Remarks) {
    if pipeline.language_model_was_narrowed() {
        remarks
            .note("the language model's 32-bit weights are kept as bf16, since there is no memory for more");
    }
}
