//! Where the queries look, drawn over a picture.

use super::{figure, uri};
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use qformer::HostTensor;
use std::fmt::Write;

/// How dark a patch is that is not looked at.
const DARKEST: f32 = 0.86;

/// A picture that maps are drawn over.
pub(crate) struct Picture<'a> {
    /// Its address.
    pub(crate) uri: &'a str,
    /// Told apart from the page's others by this.
    pub(crate) number: usize,
    /// Width and height, in any unit.
    pub(crate) size: [usize; 2],
    pub(crate) caption: &'a str,
}

/// The picture, and beside it the picture once for each query, dark where the query does not look: `maps` [I, H, Q, N]
/// are of image `image`, whose first token is of the whole image and whose others are of `side` by `side` patches.
pub(crate) fn looks(picture: &Picture<'_>, maps: &HostTensor, image: usize, side: usize) -> String {
    let Picture { uri, number, size: [width, height], caption } = picture;
    // The picture stands in the page once for all its maps.
    let mut html = format!(
        "<div class=\"looks\">{}<div class=\"maps\">\
         <svg width=\"0\" height=\"0\" style=\"position:absolute\" aria-hidden=\"true\"><defs>\
         <image id=\"picture-{number}\" href=\"{uri}\" width=\"{width}\" height=\"{height}\"/></defs></svg>",
        figure(uri, caption)
    );
    let queries = maps.shape()[2];
    for query in 0..queries {
        let dark = darkness(&over_heads(maps, image, query), side);
        let _ = write!(
            html,
            "<figure><svg viewBox=\"0 0 {width} {height}\"><use href=\"#picture-{number}\"/>\
             <image href=\"{dark}\" width=\"{width}\" height=\"{height}\" preserveAspectRatio=\"none\"/></svg>\
             <figcaption>query {}</figcaption></figure>",
            query + 1
        );
    }
    html + "</div></div>\n"
}

/// The weights [N − 1] of a query's patches, the mean over heads of maps [I, H, Q, N].
fn over_heads(maps: &HostTensor, image: usize, query: usize) -> Vec<f32> {
    let [_, heads, queries, tokens] = *maps.shape() else { unreachable!("maps [I, H, Q, N]") };
    let mut mean = vec![0.0; tokens - 1];
    for head in 0..heads {
        let first = ((image * heads + head) * queries + query) * tokens;
        // The first token is of the whole image.
        let of_head = &maps.values()[first + 1..first + tokens];
        mean.iter_mut().zip(of_head).for_each(|(mean, weight)| *mean += weight / heads as f32);
    }
    mean
}

/// A picture of a pixel a patch, as dark as little is looked at it.
fn darkness(weights: &[f32], side: usize) -> String {
    let largest = weights.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let pixels: Vec<u8> = weights
        .iter()
        .flat_map(|weight| [13, 17, 23, (255.0 * DARKEST * (1.0 - weight / largest)).round() as u8])
        .collect();
    let mut png = Vec::new();
    let size = side as u32;
    PngEncoder::new(&mut png)
        .write_image(&pixels, size, size, ExtendedColorType::Rgba8)
        .expect("a pixel for every patch");
    uri("png", &png)
}
