//! The Q-Former once more, as plainly as it can be written: double precision, every product a loop,
//! keys and values projected layer by layer, tensors taken by name. It shares no code with the passes
//! that are measured, so agreement means that both are right.

use qformer::config::Config;
use qformer::params::{Part, TensorSource};
use rayon::prelude::*;

/// Rows of one width.
type Rows = Vec<Vec<f64>>;

/// A Q-Former read from `source`.
pub(crate) struct Reference<'a> {
    pub(crate) source: &'a (dyn TensorSource + Sync),
    pub(crate) config: &'a Config,
}

/// Which rows a row attends to.
#[derive(Clone, Copy)]
enum Sees {
    All,
    Earlier,
}

/// Outputs of the joint pass for one pair.
pub(crate) struct JointOutput {
    pub(crate) logits: Vec<f64>,
    pub(crate) largest_cosine: f64,
}

impl Reference<'_> {
    /// Each query's last output `[Q][D]` for one image's features [N·W] before the last norm.
    pub(crate) fn image_pass(&self, vision_output: &[f32]) -> Rows {
        self.blocks(self.queries(), Rows::new(), &self.norm_image(vision_output)).0
    }

    /// The feature `[E]` of one text.
    pub(crate) fn text_pass(&self, tokens: &[u32]) -> Vec<f64> {
        let (_, text) = self.blocks(Rows::new(), self.embed(tokens), &Rows::new());
        unit(self.linear("text_projection", &text[..1], self.config.image_text_hidden_size).remove(0))
    }

    /// Matching of one image and one text.
    pub(crate) fn joint_pass(&self, vision_output: &[f32], tokens: &[u32]) -> JointOutput {
        let (queries, text) =
            self.blocks(self.queries(), self.embed(tokens), &self.norm_image(vision_output));
        let mut logits = vec![0.0; 2];
        for row in self.linear("itm_head", &queries, 2) {
            logits.iter_mut().zip(row).for_each(|(l, x)| *l += x / queries.len() as f64);
        }
        let embedding = self.config.image_text_hidden_size;
        let cls = unit(self.linear("text_projection", &text[..1], embedding).remove(0));
        let projected = self.linear("vision_projection", &queries, embedding);
        let cosines = projected.into_iter().map(|query| dot(&unit(query), &cls));
        JointOutput { logits, largest_cosine: cosines.fold(f64::MIN, f64::max) }
    }

    /// [T - 1, V]: logits of the token after each of a text's but the last, `start` being the first.
    pub(crate) fn caption_pass(&self, vision_output: &[f32], tokens: &[u32], start: u32) -> Rows {
        let config = &self.config.qformer;
        let tokens: Vec<u32> = std::iter::once(start).chain(tokens[1..].iter().copied()).collect();
        let image = self.norm_image(vision_output);
        let (_, mut text) = self.masked_blocks(self.queries(), self.embed(&tokens), &image, Sees::Earlier);
        text.pop();
        let head = "cls.predictions.transform";
        let mut hidden = self.linear(&format!("{head}.dense"), &text, config.hidden_size);
        hidden.iter_mut().flatten().for_each(|x| *x = gelu(*x));
        let hidden = self.norm(&format!("{head}.LayerNorm"), &hidden, config.layer_norm_eps);
        let words =
            self.tensor("embeddings.word_embeddings.weight", &[config.vocab_size, config.hidden_size]);
        let bias = self.tensor("cls.predictions.bias", &[config.vocab_size]);
        let logits =
            |x: &Vec<f64>| words.chunks(config.hidden_size).zip(&bias).map(|(w, b)| dot(w, x) + b).collect();
        hidden.par_iter().map(logits).collect()
    }

    /// Each query's feature `[Q][E]` of one image.
    pub(crate) fn image_features(&self, vision_output: &[f32]) -> Rows {
        let queries = self.image_pass(vision_output);
        self.linear("vision_projection", &queries, self.config.image_text_hidden_size)
            .into_iter()
            .map(unit)
            .collect()
    }

    fn blocks(&self, queries: Rows, text: Rows, image: &[Vec<f64>]) -> (Rows, Rows) {
        self.masked_blocks(queries, text, image, Sees::All)
    }

    fn masked_blocks(
        &self,
        mut queries: Rows,
        mut text: Rows,
        image: &[Vec<f64>],
        sees: Sees,
    ) -> (Rows, Rows) {
        let config = &self.config.qformer;
        for layer in 0..config.num_hidden_layers {
            let name = |part: &str| format!("qformer.encoder.layer.{layer}.{part}");
            let count = queries.len();
            let all: Rows = queries.iter().chain(&text).cloned().collect();
            // Queries stand first: to see what is earlier is to see them, and of the text no more.
            let seen = |row: usize| match sees {
                Sees::All => all.len(),
                Sees::Earlier => count.max(row + 1),
            };
            let mut all = self.attention(&name("attention"), &all, &all, seen);
            text = all.split_off(count);
            queries = all;
            if !queries.is_empty() && layer % config.cross_attention_frequency == 0 {
                queries = self.attention(&name("crossattention"), &queries, image, |_| image.len());
            }
            queries = self.feed_forward(&name("intermediate_query"), &name("output_query"), queries);
            text = self.feed_forward(&name("intermediate"), &name("output"), text);
        }
        (queries, text)
    }

    /// Row i of `x` sees the first `seen(i)` rows of `memory`.
    fn attention(
        &self,
        name: &str,
        x: &[Vec<f64>],
        memory: &[Vec<f64>],
        seen: impl Fn(usize) -> usize + Sync,
    ) -> Rows {
        let (hidden, heads) = (self.config.qformer.hidden_size, self.config.qformer.num_attention_heads);
        let width = hidden / heads;
        let q = self.linear(&format!("{name}.attention.query"), x, hidden);
        let k = self.linear(&format!("{name}.attention.key"), memory, hidden);
        let v = self.linear(&format!("{name}.attention.value"), memory, hidden);
        let context: Rows = q
            .par_iter()
            .enumerate()
            .map(|(row, q)| {
                let (k, v) = (&k[..seen(row)], &v[..seen(row)]);
                let mut out = vec![0.0; hidden];
                for head in 0..heads {
                    let columns = head * width..(head + 1) * width;
                    let scores: Vec<f64> = k
                        .iter()
                        .map(|k| dot(&q[columns.clone()], &k[columns.clone()]) / (width as f64).sqrt())
                        .collect();
                    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                    let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                    for (score, v) in scores.iter().zip(v) {
                        let p = (score - largest).exp() / total;
                        out[columns.clone()]
                            .iter_mut()
                            .zip(&v[columns.clone()])
                            .for_each(|(o, v)| *o += p * v);
                    }
                }
                out
            })
            .collect();
        let projected = self.linear(&format!("{name}.output.dense"), &context, hidden);
        self.norm(&format!("{name}.output.LayerNorm"), &add(projected, x), self.config.qformer.layer_norm_eps)
    }

    fn feed_forward(&self, first: &str, second: &str, x: Rows) -> Rows {
        if x.is_empty() {
            return x;
        }
        let config = &self.config.qformer;
        let mut inner = self.linear(&format!("{first}.dense"), &x, config.intermediate_size);
        for value in inner.iter_mut().flatten() {
            *value = gelu(*value);
        }
        let projected = self.linear(&format!("{second}.dense"), &inner, config.hidden_size);
        self.norm(&format!("{second}.LayerNorm"), &add(projected, &x), config.layer_norm_eps)
    }

    fn queries(&self) -> Rows {
        let (count, hidden) = (self.config.num_query_tokens, self.config.qformer.hidden_size);
        let tokens = self.tensor("query_tokens", &[1, count, hidden]);
        self.norm_embeddings(tokens.chunks(hidden).map(<[f64]>::to_vec).collect())
    }

    fn embed(&self, tokens: &[u32]) -> Rows {
        let config = &self.config.qformer;
        let hidden = config.hidden_size;
        let words = self.tensor("embeddings.word_embeddings.weight", &[config.vocab_size, hidden]);
        let positions =
            self.tensor("embeddings.position_embeddings.weight", &[config.max_position_embeddings, hidden]);
        let row = |table: &[f64], i: usize| table[i * hidden..(i + 1) * hidden].to_vec();
        let words = tokens.iter().map(|&id| row(&words, id as usize)).collect();
        let positions: Rows = (0..tokens.len()).map(|i| row(&positions, i)).collect();
        self.norm_embeddings(add(words, &positions))
    }

    fn norm_embeddings(&self, x: Rows) -> Rows {
        self.norm("qformer.layernorm", &x, self.config.qformer.layer_norm_eps)
    }

    fn norm_image(&self, vision_output: &[f32]) -> Rows {
        let vision = &self.config.vision;
        let rows: Rows = vision_output
            .chunks(vision.width())
            .map(|row| row.iter().map(|&x| f64::from(x)).collect())
            .collect();
        self.norm("vision_model.post_layernorm", &rows, vision.post_layer_norm_eps())
    }

    fn norm(&self, name: &str, x: &[Vec<f64>], epsilon: f64) -> Rows {
        let width = x.first().map_or(0, Vec::len);
        let (weight, bias) = (
            self.tensor(&format!("{name}.weight"), &[width]),
            self.tensor(&format!("{name}.bias"), &[width]),
        );
        x.iter()
            .map(|row| {
                let mean = row.iter().sum::<f64>() / width as f64;
                let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / width as f64;
                let scale = 1.0 / (variance + epsilon).sqrt();
                row.iter()
                    .zip(weight.iter().zip(&bias))
                    .map(|(x, (w, b))| (x - mean) * scale * w + b)
                    .collect()
            })
            .collect()
    }

    fn linear(&self, name: &str, x: &[Vec<f64>], out: usize) -> Rows {
        let inputs = x[0].len();
        let weight = self.tensor(&format!("{name}.weight"), &[out, inputs]);
        let bias = self.tensor(&format!("{name}.bias"), &[out]);
        x.par_iter().map(|x| weight.chunks(inputs).zip(&bias).map(|(w, b)| dot(w, x) + b).collect()).collect()
    }

    /// A tensor of the source.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Vec<f64> {
        let part = Part { name: name.to_owned(), shape: shape.to_vec() };
        let mut values = vec![0.0; part.len()];
        self.source
            .read(&part, &mut |first, block| {
                values[first..].iter_mut().zip(block).for_each(|(v, &x)| *v = x.into());
            })
            .expect("the measured model has read the same tensor");
        values
    }
}

/// x·Φ(x)
fn gelu(x: f64) -> f64 {
    x * 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        a.iter().zip(b).zip(&mut lanes).for_each(|((a, b), lane)| *lane += a * b);
    }
    lanes.iter().sum()
}

fn add(mut x: Rows, y: &[Vec<f64>]) -> Rows {
    x.iter_mut().flatten().zip(y.iter().flatten()).for_each(|(x, y)| *x += y);
    x
}

fn unit(x: Vec<f64>) -> Vec<f64> {
    let length = dot(&x, &x).sqrt();
    x.into_iter().map(|x| x / length).collect()
}
