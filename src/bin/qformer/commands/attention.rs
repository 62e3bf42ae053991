//! `qformer attention`: where the queries look in photographs.

use crate::Remarks;
use crate::inputs::images::Images;
use crate::inputs::{BatchArguments, ModelArguments, load};
use crate::outputs::check_file_name;
use crate::page::{Picture, escaped, head, looks, uri};
use clap::{ArgGroup, Args};
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize};
use qformer::models::vision::image::Rgb;
use qformer::output::{self, counted, write_atomically};
use qformer::{Config, Error, Result};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Longest side of a picture in the page, in pixels.
const SIDE: u32 = 400;
/// Quality of a picture in the page, as JPEG counts it.
const QUALITY: u8 = 85;

/// Show where the queries look: a page with each query's cross-attention over your photographs
///
/// The page is one file. It shows every image once for each query, dark where the query does not look: the weights of
/// cross-attention in one layer, the mean over its heads. With --text the queries read the image together with that
/// text, as they do when the two are matched; without, they read the image alone, as they do when it is embedded.
#[derive(Args)]
#[command(group = ArgGroup::new("image").required(true).args(["images", "image_dir"]))]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    batch: BatchArguments,
    /// JPEG, PNG or WebP files
    #[arg(long, alias = "image", value_name = "FILE", num_args = 1..)]
    images: Vec<PathBuf>,
    /// Folder whose .jpg, .jpeg, .png and .webp files are read, in the order of their names
    #[arg(long, value_name = "DIR", conflicts_with = "images")]
    image_dir: Option<PathBuf>,
    /// Text that the queries read together with every image
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// Layer of the Q-Former, counted from 0, of those that attend to the image [default: the last of them]
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
    /// Page to write
    #[arg(long, short, value_name = "FILE.html")]
    output: PathBuf,
}

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &Arguments, remarks: Remarks) -> Result<()> {
    check_file_name(&arguments.output, "html")?;
    output::check_writable(&arguments.output)?;
    if arguments.text.as_deref().is_some_and(|text| text.trim().is_empty()) {
        return Err(Error::usage("--text is blank; give a text, or leave it out"));
    }
    let builder = arguments.model.open()?.batch_size(arguments.batch.size);
    let images = Images::of_files(&arguments.images, arguments.image_dir.as_deref(), &builder)?;
    if arguments.text.is_some() {
        builder.tokenizer()?;
    }
    let pipeline = load(builder, images.parts(), remarks)?;
    let config = pipeline.config();
    let last = config.qformer.cross_attention_layers().next_back().expect("layer 0 attends to the image");
    let layer = arguments.layer.unwrap_or(last);
    let mut page = heading(config, layer, images.names.len(), arguments.text.as_deref());
    let (side, mut number) = (config.vision.encoder()?.patches_per_side(), 0);
    images.for_each_batch(&pipeline, arguments.batch.size, remarks, |batch| {
        let maps = pipeline.attention_maps(batch, arguments.text.as_deref(), layer)?;
        for image in 0..maps.shape()[0] {
            let name = &images.names[number];
            let (uri, size) = thumbnail(name.as_ref())?;
            let picture = Picture { uri: &uri, number, size, caption: &escaped(name) };
            page += &looks(&picture, &maps, image, side);
            number += 1;
        }
        Ok(())
    })?;
    page += "</body></html>\n";
    write_atomically(&arguments.output, |file| {
        file.write_all(page.as_bytes()).map_err(|error| Error::io(&arguments.output, "write", error))
    })
}

fn heading(config: &Config, layer: usize, images: usize, text: Option<&str>) -> String {
    let (queries, layers) = (config.num_query_tokens, config.qformer.num_hidden_layers);
    let mut page = head("Where the queries look");
    let _ = write!(
        page,
        "<h1>Where the queries look</h1>\n<p>{queries} learned queries read {} through cross-attention. \
         Shown is layer {layer} of {layers} (the first is 0), the mean over its {} heads: patches are the darker, the less \
         a query takes from them; the brightest is full.</p>\n",
        counted(images, "image"),
        config.qformer.num_attention_heads
    );
    let _ = match text {
        Some(text) => writeln!(page, "<p>They read each together with the text “{}”.</p>", escaped(text)),
        None => writeln!(page, "<p class=\"soft\">They read each image alone.</p>"),
    };
    page
}

/// An image file made small, as an address that holds it, with its width and height.
fn thumbnail(path: &Path) -> Result<(String, [usize; 2])> {
    let Rgb { pixels, width, height } = Rgb::read(path)?;
    let image = image::RgbImage::from_raw(width as u32, height as u32, pixels).expect("3 bytes a pixel");
    let scale = (f64::from(SIDE) / width.max(height) as f64).min(1.0);
    let [to_width, to_height] = [width, height].map(|side| ((side as f64 * scale).round() as u32).max(1));
    let small = resize(&image, to_width, to_height, FilterType::Triangle);
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
        .encode(&small, to_width, to_height, ExtendedColorType::Rgb8)
        .expect("3 bytes a pixel");
    Ok((uri("jpeg", &jpeg), [to_width as usize, to_height as usize]))
}
