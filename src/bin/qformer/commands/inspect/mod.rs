//! `qformer inspect`: what a checkpoint holds and what can be done with it.

mod component;
mod part;
mod print;

use crate::Remarks;
use crate::progress::Progress;
use clap::Args;
use component::{Component, components};
use part::Part;
use qformer::config::{LanguageConfig, VisionConfig};
use qformer::models::language::{self, Head};
use qformer::models::qformer::{Abilities, Parameters};
use qformer::models::vision::encoder;
use qformer::params::names::{Naming, canonical};
use qformer::params::safetensors::{Checkpoint, Dtype};
use qformer::params::{NamedCheckpoint, part_names};
use qformer::{Config, Result};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Show what a checkpoint holds and what can be done with it
#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder of a checkpoint, or a .safetensors or .pth file by itself
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Read all values too, and count those that are infinite or not a number
    #[arg(long)]
    values: bool,
}

/// All that is told of a checkpoint.
#[derive(Serialize)]
struct Report {
    path: String,
    files: usize,
    /// Whose names the tensors have; `None` if they are no Q-Former's.
    naming: Option<&'static str>,
    /// Number of tensors by type.
    dtypes: BTreeMap<String, usize>,
    tensors: usize,
    /// Elements of all tensors but copies and buffers.
    parameters: usize,
    bytes: u64,
    /// The models that the configuration tells of.
    components: Vec<Component>,
    parts: Vec<PartReport>,
    uses: Vec<Use>,
    /// Tensors that are missing, misshapen or surplus; `None` where no configuration tells.
    faults: Option<Vec<String>>,
    /// Tensors with values that are infinite or not a number, and how many; `None` if not asked for.
    not_finite: Option<BTreeMap<String, usize>>,
    config: Option<Value>,
}

/// One part of a model.
#[derive(Default, Serialize)]
struct PartReport {
    part: &'static str,
    tensors: usize,
    parameters: usize,
    bytes: u64,
}

/// Something to use a checkpoint for.
#[derive(Serialize)]
struct Use {
    name: &'static str,
    /// What is in the way, if anything is.
    obstacle: Option<&'static str>,
}

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &Arguments, remarks: Remarks) -> Result<()> {
    let config = match arguments.path.is_dir() {
        true => Some(Config::load(&arguments.path)?),
        false => None,
    };
    let checkpoint = Checkpoint::open(&arguments.path)?;
    let report = Report {
        not_finite: match arguments.values {
            true => Some(count_not_finite(&checkpoint, remarks)?),
            false => None,
        },
        ..describe(&checkpoint, config.as_ref())?
    };
    crate::print(&match arguments.json {
        true => format!("{:#}\n", serde_json::to_value(&report).expect("numbers and texts")),
        false => print::report(&report, config.as_ref()),
    })
}

fn describe(checkpoint: &Checkpoint, config: Option<&Config>) -> Result<Report> {
    let named = NamedCheckpoint::new(checkpoint)?;
    let mut parts = BTreeMap::<Part, PartReport>::new();
    let mut dtypes = BTreeMap::new();
    for name in checkpoint.names() {
        let info = checkpoint.get(name).expect("a name of the checkpoint");
        *dtypes.entry(info.dtype.to_string()).or_default() += 1;
        let part = Part::of(canonical(name).as_deref());
        let report = parts.entry(part).or_default();
        report.part = part.title();
        report.tensors += 1;
        report.parameters += if part == Part::Copies { 0 } else { info.elements() };
        report.bytes += info.bytes();
    }
    let has = |part| parts.contains_key(&part);
    let faults = config.map(|config| faults(config, &named, has(Part::ImageEncoder)));
    let mut uses = uses(config, &named, has);
    if faults.as_ref().is_some_and(|faults| !faults.is_empty()) {
        for one in &mut uses {
            one.obstacle.get_or_insert("the tensors do not fit config.json");
        }
    }
    let components = config.map_or_else(Vec::new, |config| {
        components(config, has(Part::ImageEncoder), has(Part::LanguageModel))
    });
    let parts: Vec<PartReport> = parts.into_values().collect();
    Ok(Report {
        path: checkpoint.path().to_string_lossy().into_owned(),
        files: checkpoint.files(),
        naming: Naming::of(checkpoint.names()).map(|naming| match naming {
            Naming::HuggingFace => "Hugging Face",
            Naming::Lavis => "LAVIS",
            Naming::InstructBlip => "InstructBLIP",
        }),
        dtypes,
        tensors: parts.iter().map(|part| part.tensors).sum(),
        parameters: parts.iter().map(|part| part.parameters).sum(),
        bytes: parts.iter().map(|part| part.bytes).sum(),
        components,
        parts,
        uses,
        faults,
        not_finite: None,
        config: config.map(Config::to_json),
    })
}

/// What does not fit the configuration. A checkpoint without an image encoder lacks nothing: LAVIS
/// saves none after pre-training.
fn faults(config: &Config, checkpoint: &NamedCheckpoint<'_>, has_image_encoder: bool) -> Vec<String> {
    let qformer = Parameters::spec(config, Abilities::of(config, checkpoint));
    let vision = config.vision.encoder().ok().map(encoder::Parameters::spec);
    let mut faults = checkpoint.faults(&qformer);
    let mut named = part_names(&qformer);
    if let Some(vision) = &vision {
        if has_image_encoder {
            faults.extend(checkpoint.faults(vision));
        }
        named.extend(part_names(vision));
    }
    if language::is_in(checkpoint) {
        // What is not built has no tensors that are known here.
        let parts = language::parts(config, Head::of(checkpoint)).unwrap_or_default();
        faults.extend(checkpoint.faults_of(&parts));
    }
    // Nothing here knows the tensors of an encoder that is not built.
    let is_unknown = matches!(config.vision, VisionConfig::Clip(_));
    faults.extend(checkpoint.surplus(&named, |name| {
        // LAVIS's pair in place of an image encoder's bias.
        let is_bias = name.ends_with(".self_attn.q_bias") || name.ends_with(".self_attn.v_bias");
        let part = Part::of(Some(name));
        is_bias || part.is_extra() || (is_unknown && part == Part::ImageEncoder)
    }));
    faults
}

/// What the checkpoint can be used for.
fn uses(config: Option<&Config>, checkpoint: &NamedCheckpoint<'_>, has: impl Fn(Part) -> bool) -> Vec<Use> {
    let reads_text = has(Part::TextEmbeddings)
        && has(Part::TextFeedForward)
        && config.is_none_or(|config| config.qformer.use_qformer_text_input);
    let has_head = |name: &str| checkpoint.contains(&format!("{name}.weight"));
    let unless = |there: bool, obstacle| (!there).then_some(obstacle);
    let no_qformer = unless(has(Part::QueryTokens) && has(Part::CrossAttention), "there is no Q-Former");
    let is_built = config.is_none_or(|config| !matches!(config.vision, VisionConfig::Clip(_)));
    let no_image_encoder =
        unless(has(Part::ImageEncoder), "there is no image encoder; its output can be given with --features")
            .or(unless(
                is_built,
                "the image encoder is not built yet; its output can be given with --features",
            ));
    let no_text = no_qformer.or(unless(reads_text, "the Q-Former reads no text"));
    let no_projections = unless(
        has_head("vision_projection") && has_head("text_projection"),
        "there are no projections (vision_projection, text_projection)",
    );
    let no_matching_head = unless(has_head("itm_head"), "there is no matching head (itm_head)");
    let no_temperature = unless(has(Part::Temperature), "there is no temperature (temp)");
    let no_language_head =
        unless(has(Part::LanguageModellingHead), "there is no language-modelling head (cls.predictions)");
    let no_language_model = unless(has(Part::LanguageModel), "there is no language model");
    let is_built = config.is_none_or(|config| !matches!(config.language, Some(LanguageConfig::Llama(_))));
    let no_language_model =
        no_language_model.or(unless(is_built, "language models of this kind are not built yet"));
    [
        ("read images", no_qformer.or(no_image_encoder)),
        ("compare images with texts (ITC)", no_text.or(no_projections)),
        ("match images with texts (ITM)", no_text.or(no_matching_head)),
        ("write captions with the Q-Former (ITG)", no_text.or(no_language_head)),
        ("go on with stage 1 of training", no_text.or(no_temperature).or(no_language_head)),
        ("write texts with a language model", no_qformer.or(no_language_model)),
    ]
    .map(|(name, obstacle)| Use { name, obstacle })
    .into()
}

/// Reads all values of numbers with a fraction.
fn count_not_finite(checkpoint: &Checkpoint, remarks: Remarks) -> Result<BTreeMap<String, usize>> {
    let tensors: Vec<_> =
        checkpoint.names().map(|name| (name, checkpoint.get(name).expect("its own name"))).collect();
    let total = tensors.iter().map(|(_, info)| info.bytes() as usize).sum();
    let progress = Progress::of_bytes("reading values", remarks);
    let (mut done, mut found) = (0, BTreeMap::new());
    for (name, info) in tensors {
        if matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) {
            let count = checkpoint.read_f32(name, |_, _| ())?;
            if count > 0 {
                found.insert(name.to_owned(), count);
            }
        }
        done += info.bytes() as usize;
        progress.set(done, total);
    }
    Ok(found)
}
