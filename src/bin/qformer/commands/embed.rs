//! `qformer embed`: features of images and texts.

use crate::Remarks;
use crate::inputs::{Inputs, Loaded};
use crate::outputs::check_file_name;
use crate::spool::Spool;
use clap::{ArgGroup, Args};
use qformer::data::{NAMES, VISION_OUTPUT};
use qformer::params::safetensors::{self, Dtype};
use qformer::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Write the features of images and texts to a file
///
/// The file holds the tensors image_features [images, queries, E] and text_features [texts, E], of
/// unit length, and query_output [images, queries, D]; the names of the images and the texts are in
/// its metadata, as JSON arrays. An image's similarity to a text is the largest product over its
/// queries.
#[derive(Args)]
#[command(group = ArgGroup::new("source").required(true).multiple(true)
    .args(["images", "image_dir", "features", "text", "texts_file"]))]
pub(crate) struct Arguments {
    #[command(flatten)]
    inputs: Inputs,
    /// File to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// File to write the image encoder's output to; later runs can read it as --features
    #[arg(long, value_name = "FILE", conflicts_with = "features")]
    save_vision_output: Option<PathBuf>,
}

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &Arguments, remarks: Remarks) -> Result<()> {
    for path in [Some(&arguments.output), arguments.save_vision_output.as_ref()].into_iter().flatten() {
        check_file_name(path, "safetensors")?;
    }
    if arguments.save_vision_output.as_ref() == Some(&arguments.output) {
        return Err(Error::usage("--output and --save-vision-output are the same file; give two"));
    }
    let mut text_features = Spool::new(&arguments.output)?;
    let mut query_output = Spool::new(&arguments.output)?;
    let mut image_features = Spool::new(&arguments.output)?;
    let mut vision_output = arguments.save_vision_output.as_deref().map(Spool::new).transpose()?;
    let Loaded { pipeline, texts, images } = arguments.inputs.load(remarks)?;
    for some in texts.parts() {
        text_features.append(&pipeline.text_features(&texts.tokens(some))?)?;
    }
    images.for_each_batch(&pipeline, arguments.inputs.batch.size, remarks, |batch| {
        if let Some(spool) = &mut vision_output {
            spool.append(&batch.to_host()?)?;
        }
        let encoded = pipeline.image_features(batch)?;
        query_output.append(&encoded.query_output)?;
        encoded.features.map_or(Ok(()), |features| image_features.append(&features))
    })?;

    let mut tensors = Vec::new();
    let mut metadata = BTreeMap::new();
    if texts.len() > 0 {
        tensors.push(text_features.into_tensor("text_features", Dtype::F32)?);
        metadata.insert("texts".to_owned(), json_array(&texts.texts));
    }
    if !images.names.is_empty() {
        tensors.push(query_output.into_tensor("query_output", Dtype::F32)?);
        metadata.insert(NAMES.to_owned(), json_array(&images.names));
        if pipeline.abilities().is_some_and(|abilities| abilities.retrieval) {
            tensors.push(image_features.into_tensor("image_features", Dtype::F32)?);
        }
    }
    if let (Some(spool), Some(path)) = (vision_output, &arguments.save_vision_output) {
        let names = BTreeMap::from([(NAMES.to_owned(), json_array(&images.names))]);
        safetensors::write(path, &names, vec![spool.into_tensor(VISION_OUTPUT, Dtype::F32)?])?;
    }
    safetensors::write(&arguments.output, &metadata, tensors)
}

fn json_array(names: &impl Serialize) -> String {
    serde_json::to_string(names).expect("texts")
}
