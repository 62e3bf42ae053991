//! Operations of a step in products and attention, from its shapes.

use qformer::config::Config;

/// Tokens that LAVIS pads every caption to.
const LAVIS_TOKENS: usize = 32;

/// Operations of a step.
pub(super) struct Flops {
    /// Those that are done here: keys and values of an image projected once, no padding.
    pub(super) done: f64,
    /// Those of LAVIS's step: keys and values four times an image, every caption of 32 tokens.
    pub(super) of_lavis: f64,
}

/// Operations of a forward pass, and how often the backward pass does them again.
#[derive(Default)]
struct Count {
    forward: f64,
    backward: f64,
}

impl Count {
    /// A product whose both gradients are taken.
    fn product(&mut self, [rows, inputs, outputs]: [usize; 3]) {
        let flops = 2.0 * rows as f64 * inputs as f64 * outputs as f64;
        self.forward += flops;
        self.backward += 2.0 * flops;
    }

    /// Queries against keys: two products, and going back five, as the scores are computed again.
    fn attention(&mut self, queries: usize, keys: usize, hidden: usize) {
        let flops = 2.0 * queries as f64 * keys as f64 * hidden as f64;
        self.forward += 2.0 * flops;
        self.backward += 5.0 * flops;
    }

    fn whole(&self) -> f64 {
        self.forward + self.backward
    }
}

/// What all passes have in common.
struct Model<'a> {
    config: &'a Config,
    image_tokens: usize,
}

impl Model<'_> {
    /// A sequence of query and text rows through all blocks, but for the image's keys and values. The
    /// text may see other rows besides.
    fn pass(&self, count: &mut Count, queries: usize, text: usize, seen_besides: usize) {
        let q = &self.config.qformer;
        let (rows, hidden) = (queries + text, q.hidden_size);
        for _ in 0..q.num_hidden_layers {
            count.product([rows, hidden, 4 * hidden]);
            count.product([rows, hidden, 2 * q.intermediate_size]);
            count.attention(rows, rows + seen_besides, hidden);
        }
        for _ in q.cross_attention_layers() {
            count.product([queries, hidden, 2 * hidden]);
            count.attention(queries, self.image_tokens, hidden);
        }
    }

    /// Keys and values of all layers for one image, whose gradient goes to the weights alone.
    fn keys_values(&self, count: &mut Count) {
        let layers = self.config.qformer.cross_attention_layers().count();
        let (width, outputs) = (self.config.vision.width(), 2 * layers * self.config.qformer.hidden_size);
        let flops = 2.0 * self.image_tokens as f64 * width as f64 * outputs as f64;
        count.forward += flops;
        count.backward += flops;
    }

    /// The language head on so many rows.
    fn language_head(&self, count: &mut Count, rows: usize) {
        let q = &self.config.qformer;
        count.product([rows, q.hidden_size, q.hidden_size + q.vocab_size]);
    }
}

/// A step on images of `image_tokens` tokens with texts of these `lengths`; the hard negatives of the
/// images are taken to be as long as their own.
pub(super) fn step(config: &Config, image_tokens: usize, lengths: &[usize]) -> Flops {
    let model = Model { config, image_tokens };
    let queries = config.num_query_tokens;
    let (mut done, mut lavis) = (Count::default(), Count::default());
    for &tokens in lengths {
        model.keys_values(&mut done);
        model.pass(&mut done, queries, 0, 0);
        model.pass(&mut done, 0, tokens, 0);
        (0..3).for_each(|_| model.pass(&mut done, queries, tokens, 0));
        model.pass(&mut done, 0, tokens, queries);
        model.language_head(&mut done, tokens - 1);

        for _ in 0..4 {
            model.keys_values(&mut lavis);
            // The gradient of the features, which `ln_vision` asks for.
            lavis.backward += lavis_features(&model);
        }
        model.pass(&mut lavis, queries, 0, 0);
        model.pass(&mut lavis, 0, LAVIS_TOKENS, 0);
        (0..3).for_each(|_| model.pass(&mut lavis, queries, LAVIS_TOKENS, 0));
        model.pass(&mut lavis, 0, LAVIS_TOKENS, queries);
        model.language_head(&mut lavis, LAVIS_TOKENS);
    }
    Flops { done: done.whole(), of_lavis: lavis.whole() }
}

/// The product that gives an image's features their gradient.
fn lavis_features(model: &Model<'_>) -> f64 {
    let mut count = Count::default();
    model.keys_values(&mut count);
    count.forward
}
