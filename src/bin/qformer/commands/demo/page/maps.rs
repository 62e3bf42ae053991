//! Where the queries look, drawn over the pictures.

use super::{Page, html};
use qformer::{HostTensor, Result};
use std::fmt::Write;

/// Pictures shown.
const PICTURES: usize = 3;

impl Page<'_> {
    /// Each query's cross-attention in the last block, for the first pictures held out.
    pub(super) fn looks(&self) -> Result<String> {
        let config = self.model.config();
        let per_image = config.image_tokens() * config.vision.width();
        let shape = [PICTURES, config.image_tokens(), config.vision.width()];
        let values = self.held_out.vision_output.values()[..PICTURES * per_image].to_vec();
        let block = config.qformer.cross_attention_layers().next_back().expect("block 0 has cross-attention");
        let maps = self.model.cross_attention_maps(&HostTensor::new(&shape, values)?, block)?;
        let mut html = String::new();
        for image in 0..PICTURES {
            let uri = self.held_out_uri(image)?;
            let caption = self.held_out.scenes[image].caption();
            let picture = html::figure(&uri, &caption);
            // The picture stands in the page once for all its maps.
            let side = config.vision.encoder()?.patches_per_side();
            let _ = write!(
                html,
                "<div class=\"looks\">{picture}<div class=\"maps\">\
                 <svg width=\"0\" height=\"0\" style=\"position:absolute\" aria-hidden=\"true\"><defs>\
                 <image id=\"picture-{image}\" href=\"{uri}\" width=\"{side}\" height=\"{side}\"/></defs></svg>"
            );
            for query in 0..config.num_query_tokens {
                let map = over_heads(&maps, image, query);
                let _ = write!(
                    html,
                    "<figure>{}<figcaption>query {}</figcaption></figure>",
                    spotlight(image, &map, side),
                    query + 1
                );
            }
            html.push_str("</div></div>");
        }
        Ok(html)
    }
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

/// The picture, patch by patch as dark as little is looked at it.
fn spotlight(image: usize, weights: &[f32], side: usize) -> String {
    let largest = weights.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let mut svg = format!("<svg viewBox=\"0 0 {side} {side}\"><use href=\"#picture-{image}\"/>");
    for (patch, weight) in weights.iter().enumerate() {
        let (row, column, dark) = (patch / side, patch % side, 0.86 * (1.0 - weight / largest));
        // A hair wider than a patch, so that no seam shows.
        let _ = write!(
            svg,
            "<rect x=\"{column}\" y=\"{row}\" width=\"1.01\" height=\"1.01\" fill=\"#0d1117\" fill-opacity=\"{dark:.2}\"/>"
        );
    }
    svg + "</svg>"
}
