//! What a run begins with: a checkpoint, a new model, or its own checkpoint.

use super::arguments::ModelArguments;
use crate::Remarks;
use crate::inputs::images;
use qformer::data::{Dataset, Kind};
use qformer::generate::Decoding;
use qformer::models::vision::encoder;
use qformer::models::vision::image::ImageProcessor;
use qformer::params::safetensors::Checkpoint;
use qformer::params::sources::{Bert, Initial, Layered};
use qformer::params::{NamedCheckpoint, TensorSource};
use qformer::train::{Companions, Settings, Stage1Parameters, Stage1Settings, TrainingStart};
use qformer::{Config, Error, Result, Tokenizer};
use std::path::Path;
use tempfile::TempDir;

impl ModelArguments {
    /// Opens the model that is begun with, and hands it to `take`.
    pub(super) fn open<R>(
        &self,
        settings: &Settings<Stage1Settings>,
        dataset: &Dataset,
        remarks: Remarks,
        take: impl FnOnce(TrainingStart<'_>) -> Result<R>,
    ) -> Result<R> {
        let bert = self.bert.as_deref().map(Bert::open).transpose()?;
        match (&self.model, self.preset.as_deref()) {
            (Some(folder), _) => self.go_on(folder, bert.as_ref(), settings, dataset, remarks, take),
            (None, Some(preset)) => self.anew(preset, bert.as_ref(), settings, dataset, remarks, take),
            (None, None) => Err(Error::usage("no model is given; give --model DIR or --preset blip2-vit-g")),
        }
    }

    /// The checkpoint in `folder`.
    fn go_on<R>(
        &self,
        folder: &Path,
        bert: Option<&Bert>,
        settings: &Settings<Stage1Settings>,
        dataset: &Dataset,
        remarks: Remarks,
        take: impl FnOnce(TrainingStart<'_>) -> Result<R>,
    ) -> Result<R> {
        let config = Config::load(folder)?;
        let tokenizer = if has_tokenizer(folder) { folder } else { self.bert.as_deref().unwrap_or(folder) };
        let open = Checkpoint::open(folder)?;
        expect_encoder(folder, &config, &open, dataset, remarks)?;
        let named = NamedCheckpoint::new(&open)?;
        let source = Layered::new(&named, Initial::new(&config, settings.seed.into(), bert));
        let begun = source.begun(&Stage1Parameters::spec(&config, settings.objective.matching));
        if !begun.is_empty() {
            remarks.note(format_args!(
                "begun anew, as {} lacks them: {}",
                folder.display(),
                begun.join(", ")
            ));
        }
        let decoding = Decoding::load_for_captions(folder, config.qformer.max_position_embeddings)?;
        take(model(&config, images::processor_or_blip2(folder, &config)?, tokenizer, &decoding, &source)?)
    }

    /// A new model of the sizes `preset`, with the image encoder that is given, if one is.
    fn anew<R>(
        &self,
        preset: &str,
        bert: Option<&Bert>,
        settings: &Settings<Stage1Settings>,
        dataset: &Dataset,
        remarks: Remarks,
        take: impl FnOnce(TrainingStart<'_>) -> Result<R>,
    ) -> Result<R> {
        let is_tiny = preset == "tiny";
        let mut config = if is_tiny { Config::tiny() } else { Config::blip2_vit_g() };
        let folder = TempDir::new().map_err(|error| Error::io(&std::env::temp_dir(), "write to", error))?;
        let tokenizer = match &self.bert {
            Some(bert) => bert,
            None if is_tiny => {
                Tokenizer::write_tiny(folder.path())?;
                folder.path()
            }
            None => {
                return Err(Error::usage(
                    "--preset blip2-vit-g takes --bert DIR, bert-base-uncased with its tokenizer",
                ));
            }
        };
        let decoding = Decoding::default().within(config.qformer.max_position_embeddings - 1);
        let seed = settings.seed.into();
        let Some(folder) = &self.vision_model else {
            let config = suited(config, dataset, remarks);
            let source = Initial::new(&config, seed, bert);
            let processor = config.vision.image_size().map(ImageProcessor::blip2);
            return take(model(&config, processor, tokenizer, &decoding, &source)?);
        };
        config.vision = Config::load(folder)?.vision;
        config.qformer.encoder_hidden_size = config.vision.width();
        let open = Checkpoint::open(folder)?;
        expect_encoder(folder, &config, &open, dataset, remarks)?;
        let named = NamedCheckpoint::new(&open)?;
        let source = Layered::with_encoder_of(&named, Initial::new(&config, seed, bert));
        take(model(&config, images::processor_or_blip2(folder, &config)?, tokenizer, &decoding, &source)?)
    }
}

/// The preset `config`, as a model of features if `dataset` are such and not of the shape that its encoder makes.
fn suited(config: Config, dataset: &Dataset, remarks: Remarks) -> Config {
    let Kind::Features { tokens, width } = dataset.kind() else { return config };
    let [own_tokens, own_width] = [config.image_tokens(), config.vision.width()];
    if [tokens, width] == [own_tokens, own_width] {
        return config;
    }
    remarks.note(format_args!(
        "the features have {tokens} tokens of width {width}, and the preset's image encoder makes {own_tokens} of \
         width {own_width}: the model is made for the features, without an image encoder"
    ));
    config.on_features(tokens, width)
}

/// Refuses the checkpoint in `folder` if `dataset` are pictures and it has no image encoder; warns if they
/// are features of another one.
fn expect_encoder(
    folder: &Path,
    config: &Config,
    checkpoint: &Checkpoint,
    dataset: &Dataset,
    remarks: Remarks,
) -> Result<()> {
    match dataset.kind() {
        Kind::Pictures => {
            config.vision.encoder().map_err(|error| Error::input(folder, error))?;
            encoder::expect_in(checkpoint)
        }
        Kind::Features { .. } => images::compare_encoders(dataset, folder, config, checkpoint, remarks),
    }
}

/// Opens a run's own checkpoint, and hands it to `take`.
pub(super) fn reopen<R>(folder: &Path, take: impl FnOnce(TrainingStart<'_>) -> Result<R>) -> Result<R> {
    let config = Config::load(folder)?;
    let open = Checkpoint::open(folder)?;
    let source = NamedCheckpoint::new(&open)?;
    let decoding = Decoding::load_for_captions(folder, config.qformer.max_position_embeddings)?;
    take(model(&config, images::processor_or_blip2(folder, &config)?, folder, &decoding, &source)?)
}

fn model<'a>(
    config: &Config,
    processor: Option<ImageProcessor>,
    tokenizer: &Path,
    decoding: &Decoding,
    source: &'a dyn TensorSource,
) -> Result<TrainingStart<'a>> {
    let companions = Companions::gather(config, processor.as_ref(), Some(tokenizer), Some(decoding))?;
    let (config, tokenizer) = (config.clone(), Tokenizer::load(tokenizer)?);
    Ok(TrainingStart { config, tokenizer, processor, companions, source, has_encoder: false })
}

fn has_tokenizer(folder: &Path) -> bool {
    let files = [qformer::tokenizer::FILE_NAME, qformer::tokenizer::VOCABULARY_FILE_NAME];
    files.iter().any(|file| folder.join(file).exists())
}
