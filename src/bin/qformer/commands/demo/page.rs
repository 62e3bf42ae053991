//! The page that shows what was learnt: one file, with pictures and curves in it.

use super::judge::{HeldOut, Judgement};
use super::learn::BATCH_SIZE;
use super::world::Scene;
use super::{Goal, HELD_OUT, commands};
use crate::page::{Picture, figure, head, looks, uri};
use crate::shell::quoted;
use qformer::train::{Objective, Record, Stage1, curves};
use qformer::{Cpu, Error, HostTensor, QFormer, Result};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Examples shown of each kind: always the first ones, whatever they turned out to be.
const LEARNT: usize = 6;
const CAPTION_QUERIES: usize = 5;
const PICTURE_QUERIES: usize = 4;
const CAPTIONED: usize = 18;
const LOOKED_AT: usize = 3;

/// What the page is made of.
pub(super) struct Page<'a> {
    /// Of the demo.
    pub(super) folder: &'a Path,
    pub(super) seed: u64,
    pub(super) learnt: &'a [Scene],
    pub(super) held_out: &'a HeldOut,
    pub(super) after: &'a Judgement,
    pub(super) goals: &'a [Goal],
    pub(super) history: &'a [Record],
    /// After training.
    pub(super) model: &'a QFormer,
    /// That all of it took.
    pub(super) seconds: u64,
}

impl Page<'_> {
    /// The file.
    pub(super) fn html(&self) -> Result<String> {
        let (pictures, steps) = (self.learnt.len(), self.history.len());
        let (minutes, seconds) = (self.seconds / 60, self.seconds % 60);
        let queries = self.model.config().num_query_tokens;
        let curves = curves::svg("Training", steps, Stage1::<Cpu<f32>>::MEASURES, self.history);
        let mut page = format!(
            "{}<h1>A Q-Former learns to see</h1>\n\
             <p>{queries} learned queries look at a picture through cross-attention and speak to text through shared \
             self-attention. Trained from nothing by BLIP-2’s three objectives on {pictures} drawn pictures, over an image \
             encoder that is random and stays so: {steps} steps of {BATCH_SIZE} pictures; all of it took {minutes} min {seconds} s.</p>\n\
             <p class=\"soft\">All that is judged here was held out: {HELD_OUT} pictures whose captions, each a new \
             combination of attributes, never occurred in training. Examples are the first ones, not chosen.</p>\n",
            head("qformer demo")
        );
        self.tiles(&mut page);
        page.push_str("<h2>What it learns from</h2><p class=\"soft\">Count, size, colour, shape and place; one group of things, or two.</p><div class=\"grid six\">\n");
        for (index, scene) in self.learnt.iter().take(LEARNT).enumerate() {
            page.push_str(&figure(&self.uri("train", index)?, &scene.caption()));
        }
        let _ = write!(page, "</div>\n<h2>How it learns</h2><div class=\"curves\">{curves}</div>");
        self.retrieval(&mut page)?;
        self.captions(&mut page)?;
        let looks = self.looks()?;
        let block = self.model.config().qformer.num_hidden_layers;
        let _ = write!(
            page,
            "<h2>Where the queries look</h2><p class=\"soft\">Each query’s cross-attention in the last of {block} \
             blocks, the mean over its heads: patches are the darker, the less a query takes from them; the \
             brightest is full.</p>{looks}"
        );
        let (model, folder) = ("run/checkpoints/latest", quoted(self.folder));
        let [caption, score] = commands(Path::new(""), self.held_out);
        let _ = write!(
            page,
            "<h2>Go on from here</h2><p class=\"soft\">The folder’s parts are what every command reads: a data set, \
             encoded images, a run with its checkpoint. Try the model on a picture, inspect and evaluate it. Seed {}.</p>\
             <pre><code>cd {folder}\n\
             {caption}\n\
             {score}\n\
             qformer inspect {model}\n\
             qformer evaluate --model {model} --features features/held-out.safetensors --captions pictures/held-out.jsonl\n\
             </code></pre>\n</body></html>\n",
            self.seed
        );
        Ok(page)
    }

    fn tiles(&self, page: &mut String) {
        page.push_str("<div class=\"grid tiles\">\n");
        for Goal { what, before, after, least } in self.goals {
            let (verdict, class) = if after >= least { ("reached", "yes") } else { ("missed", "no") };
            let [of_after, of_least] = [after, least].map(|share| format!("{:.1}%", 100.0 * share));
            let _ = write!(
                page,
                "<div class=\"tile\"><div class=\"what\">{what}</div><div class=\"share\">{:.0}<small> %</small></div>\
                 <div class=\"bar\"><i style=\"width:{of_after}\"></i><b style=\"left:{of_least}\"></b></div>\
                 <div class=\"from\">{} before · goal {} <span class=\"{class}\">{verdict}</span></div></div>",
                100.0 * after,
                percent(*before),
                percent(*least),
            );
        }
        page.push_str("</div>\n");
    }

    fn retrieval(&self, page: &mut String) -> Result<()> {
        let ranking = self.held_out.ranking(self.model)?;
        page.push_str(
            "<h2>What it finds</h2><p class=\"soft\">By contrastive similarity, the nearest put in order by \
             matching; what belongs together is framed or printed green.</p><h3>A caption, and the five of \
             100 pictures that fit it best</h3>\n",
        );
        for text in 0..CAPTION_QUERIES {
            let caption = self.held_out.scenes[text].caption();
            let _ = write!(page, "<div class=\"query\"><div>{caption}</div><div class=\"hits\">");
            for (place, image) in ranking.pictures_of(text)?.into_iter().take(5).enumerate() {
                let class = if image == text { "is-right" } else { "" };
                let (uri, place) = (self.held_out_uri(image)?, place + 1);
                let _ = write!(
                    page,
                    "<figure class=\"{class}\"><img src=\"{uri}\" alt=\"\"><figcaption>{place}</figcaption></figure>"
                );
            }
            page.push_str("</div></div>\n");
        }
        page.push_str(
            "<h3>A picture, and the four of 100 captions that fit it best</h3><div class=\"grid two\">\n",
        );
        for image in 0..PICTURE_QUERIES {
            let _ = write!(
                page,
                "<div class=\"card pair\"><img src=\"{}\" alt=\"\"><ol>",
                self.held_out_uri(image)?
            );
            for text in ranking.captions_of(image)?.into_iter().take(4) {
                let class = if image == text { "is-right" } else { "" };
                let _ = write!(page, "<li class=\"{class}\">{}</li>", self.held_out.scenes[text].caption());
            }
            page.push_str("</ol></div>\n");
        }
        page.push_str("</div>\n");
        Ok(())
    }

    fn captions(&self, page: &mut String) -> Result<()> {
        page.push_str(
            "<h2>What it says</h2><p class=\"soft\">Captions generated word by word from what the queries saw; \
             a wrong word is struck out, and the right one follows it.</p><div class=\"grid six\">\n",
        );
        for (image, scene) in self.held_out.scenes.iter().take(CAPTIONED).enumerate() {
            let (said, truth) = (&self.after.said[image], scene.caption());
            let (mark, class) = if *said == truth { ("✓", "yes") } else { ("✗", "no") };
            let _ = write!(
                page,
                "<figure><img src=\"{}\" alt=\"\"><figcaption class=\"said\"><span class=\"{class}\">{mark}</span> \
                 {}</figcaption></figure>",
                self.held_out_uri(image)?,
                corrected(said, &truth)
            );
        }
        page.push_str("</div>\n");
        Ok(())
    }

    fn held_out_uri(&self, index: usize) -> Result<String> {
        self.uri("held-out", index)
    }

    /// A picture of the data set, as an address that holds it.
    fn uri(&self, part: &str, index: usize) -> Result<String> {
        let path = self.folder.join("pictures").join(part).join(format!("{index:05}.png"));
        Ok(uri("png", &fs::read(&path).map_err(|error| Error::io(&path, "read", error))?))
    }

    /// Each query's cross-attention in the last block, for the first pictures held out.
    fn looks(&self) -> Result<String> {
        let config = self.model.config();
        let per_image = config.image_tokens() * config.vision.width();
        let shape = [LOOKED_AT, config.image_tokens(), config.vision.width()];
        let values = self.held_out.vision_output.values()[..LOOKED_AT * per_image].to_vec();
        let block = config.qformer.cross_attention_layers().next_back().expect("block 0 has cross-attention");
        let maps = self.model.cross_attention_maps(&HostTensor::new(&shape, values)?, None, block)?;
        let mut html = String::new();
        for number in 0..LOOKED_AT {
            let (uri, caption) = (self.held_out_uri(number)?, self.held_out.scenes[number].caption());
            let picture = Picture { uri: &uri, number, size: [1, 1], caption: &caption };
            html += &looks(&picture, &maps, number, config.vision.encoder()?.patches_per_side());
        }
        Ok(html)
    }
}

/// Such as 97 %.
fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// `said`, its words that differ from those of `truth` struck out and followed by the right ones.
fn corrected(said: &str, truth: &str) -> String {
    let (said, truth): (Vec<&str>, Vec<&str>) = (said.split(' ').collect(), truth.split(' ').collect());
    let words = (0..said.len().max(truth.len())).map(|place| match (said.get(place), truth.get(place)) {
        (Some(word), Some(right)) if word == right => (*word).to_owned(),
        (word, right) => {
            let wrong = word.map(|word| format!("<del>{word}</del>"));
            let right = right.map(|word| format!("<ins>{word}</ins>"));
            wrong.into_iter().chain(right).collect::<Vec<_>>().join(" ")
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_words_are_struck_out() {
        assert_eq!(corrected("one red ring", "one red ring"), "one red ring");
        assert_eq!(corrected("one red ring", "two red"), "<del>one</del> <ins>two</ins> red <del>ring</del>");
    }
}
