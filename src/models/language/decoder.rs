//! Texts that continue prompts, token by token.

use super::LanguageModel;
use super::decoder_pass::DecoderInputs;
use super::embed::{EmbedInputs, EmbedSizes};
use super::prompt::Prompt;
use crate::device::M;
use crate::error::{Error, Result};
use crate::generate::{Decoding, Hypothesis, NextToken, Step, Watch};
use crate::layers::kv_cache::{CacheRows, KvCache};
use crate::memory::{Cursor, TensorInput};
use crate::ops::Backend;
use crate::ops::attention::{Sequence, SequenceSizes, Sequences, Span};
use std::ops::Range;

/// What stays from token to token.
pub(super) struct DecoderState<'a, B: Backend> {
    cache: KvCache<'a, B>,
    /// Of encoder-decoders: keys and values of what the encoder read [encoder rows, blocks·2·I]
    cross: Option<M<'a, B>>,
}

/// Texts that grow after prompts.
pub struct LanguageDecoder<'a, B: Backend> {
    model: &'a LanguageModel<B>,
    /// The Q-Former's outputs [images, Q, Dq]
    queries: TensorInput<'a, B>,
    /// Those of the images that the prompts are about.
    images: Range<usize>,
    prompts: &'a [Prompt],
    state: DecoderState<'a, B>,
    /// Most sequences at a time.
    most: usize,
    /// The prompt that each sequence continues.
    of: Vec<usize>,
    /// Where the tokens of each sequence are cached.
    cached: CacheRows,
}

impl<B: Backend> LanguageModel<B> {
    /// What continues each prompt about images whose query outputs [I, Q, Dq] are given, ending with one of `stops`: the
    /// best first. A prompt's texts do not depend on what else is asked for.
    ///
    /// `image_token` is the one that stands for a soft prompt's places where the model's tokens are counted: a repetition
    /// penalty of decoder-only models counts these and the prompt's.
    ///
    /// # Errors
    /// Fails if a prompt or a setting is not fit for the model, naming it, if logits are not finite, and if there is not
    /// enough memory.
    pub fn generate<'a>(
        &self,
        queries: impl Into<TensorInput<'a, B>>,
        prompts: &[Prompt],
        image_token: Option<u32>,
        decoding: &Decoding,
        stops: &[u32],
        watch: Watch<'_>,
    ) -> Result<Vec<Vec<Hypothesis>>> {
        let queries = queries.into();
        decoding.validate()?;
        let mut found = Vec::with_capacity(prompts.len());
        for (pass, some) in prompts.chunks(B::IMAGES_PER_PASS).enumerate() {
            let first = pass * B::IMAGES_PER_PASS;
            let sequences = some.len().saturating_mul(decoding.sequences_at_a_time());
            let read: Vec<Vec<u32>> = some.iter().map(|prompt| self.counted(prompt, image_token)).collect();
            let decoding = decoding.starting_at(first as u64);
            let mut watch = |step| match step {
                Step::Token { prompt, sequence, token } => {
                    watch(Step::Token { prompt: first + prompt, sequence, token })
                }
                Step::Searched => watch(step),
            };
            found.extend(self.with_decoder(
                queries,
                some,
                [sequences, decoding.max_new_tokens],
                |decoder| decoding.run_watched(decoder, &read, stops, &mut watch),
            )?);
        }
        Ok(found)
    }

    /// The tokens that penalties count as read before.
    fn counted(&self, prompt: &Prompt, image_token: Option<u32>) -> Vec<u32> {
        match self.architecture.start {
            Some(start) => vec![start],
            None => {
                let image = image_token.map(|token| vec![token; self.queries[0]]).unwrap_or_default();
                [&image[..], &prompt.tokens].concat()
            }
        }
    }

    /// Calls `run` with texts that can grow after prompts: at most `sequences` at a time, of at most `length` new tokens.
    ///
    /// # Errors
    /// Fails as `run` does, and as [`LanguageModel::generate`].
    pub fn with_decoder<'a, R: Send>(
        &self,
        queries: impl Into<TensorInput<'a, B>>,
        prompts: &[Prompt],
        [sequences, length]: [usize; 2],
        run: impl FnOnce(&mut LanguageDecoder<'_, B>) -> Result<R>,
    ) -> Result<R> {
        let queries = queries.into();
        let images = self.check_prompts(queries, prompts, length)?;
        let sequences = sequences.max(prompts.len());
        let soft = self.queries[0];
        let read: usize = prompts.iter().map(|prompt| soft + prompt.tokens.len()).sum();
        let longest = match self.architecture.start {
            Some(_) => 1,
            None => soft + prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0),
        };
        let begun = if self.architecture.start.is_some() { prompts.len() } else { read };
        // Rows of a cache, and of what lists them, are counted in 32 bits.
        let rows = sequences.checked_mul(length).and_then(|new| new.checked_add(begun));
        let listed = sequences.checked_mul(longest.saturating_add(length));
        let counted = |rows: Option<usize>| rows.filter(|&rows| u32::try_from(rows).is_ok());
        let rows = counted(rows).filter(|_| counted(listed).is_some()).ok_or_else(|| {
            Error::usage(format!(
                "{sequences} sequences of {length} new tokens are more than can be followed at a time; lower `beams`, \
                 `sequences` or `max_new_tokens`"
            ))
            .naming(&["beams", "sequences", "max_new_tokens"])
        })?;
        let sizes = [rows, read];
        let mut lease = self.cache.lease(&self.device, (sequences, "sequences"), |cursor| {
            DecoderState::carve(cursor, self, sizes);
        })?;
        let state = DecoderState::carve(&mut lease.cursor(), self, sizes);
        let cached = CacheRows::new(prompts.len(), longest + length);
        let of = (0..prompts.len()).collect();
        run(&mut LanguageDecoder {
            model: self,
            queries,
            images,
            prompts,
            state,
            most: sequences,
            of,
            cached,
        })
    }
}

impl<'a, B: Backend> DecoderState<'a, B> {
    /// For so many tokens of all sequences together, and so many rows that an encoder reads.
    fn carve(cursor: &mut Cursor<'a, B>, model: &LanguageModel<B>, [tokens, read]: [usize; 2]) -> Self {
        let (inner, parameters) = (model.architecture.inner, model.weights.view());
        let blocks = parameters.decoder.blocks.len();
        let cross = parameters.encoder.is_some().then(|| cursor.take(read, blocks * 2 * inner));
        Self { cache: KvCache::carve(cursor, [blocks, tokens, inner]), cross }
    }
}

/// The rows of prompts, soft prompts among them.
struct PromptRows {
    sizes: EmbedSizes,
    tokens: Vec<u32>,
    order: Vec<u32>,
    places: Vec<u32>,
    /// Of each prompt.
    spans: Vec<Span>,
}

/// Sequences that grow by some tokens each.
struct Growth {
    cached: CacheRows,
    /// The prompt that each sequence continues.
    of: Vec<usize>,
    /// Each new row's place in its sequence.
    places: Vec<u32>,
    own: Sequences,
    cross: Option<Sequences>,
}

impl<B: Backend> LanguageDecoder<'_, B> {
    /// The images' soft prompts and the tokens of all prompts.
    fn prompt_rows(&self) -> PromptRows {
        let soft = self.model.queries[0];
        let of_images = self.images.len() * soft;
        let mut rows = PromptRows {
            sizes: EmbedSizes { rows: 0, soft: of_images, words: 0 },
            tokens: Vec::new(),
            order: Vec::new(),
            places: Vec::new(),
            spans: Vec::new(),
        };
        for prompt in self.prompts {
            let (image, words) = (prompt.image - self.images.start, of_images + rows.tokens.len());
            let length = soft + prompt.tokens.len();
            rows.spans.push(Span::new(rows.order.len(), length));
            rows.order.extend((image * soft..(image + 1) * soft).map(|row| row as u32));
            rows.order.extend((words..words + prompt.tokens.len()).map(|row| row as u32));
            rows.places.extend(0..length as u32);
            rows.tokens.extend(&prompt.tokens);
        }
        (rows.sizes.rows, rows.sizes.words) = (rows.order.len(), rows.tokens.len());
        rows
    }

    /// An encoder-decoder reads the prompts.
    fn encode(&mut self) -> Result<()> {
        let PromptRows { sizes, tokens, order, places, spans } = self.prompt_rows();
        let inputs = EmbedInputs { tokens: &tokens, order: &order, places: &places };
        let sequence = |&span: &Span| Sequence { queries: [span, Span::EMPTY], keys: [span, Span::EMPTY] };
        let sequences = Sequences::new(spans.iter().map(sequence).collect());
        let keys_values = self.state.cross.as_mut().expect("an encoder-decoder");
        let queries = (self.queries, self.images.clone());
        self.model.encode(queries, (sizes, &inputs), &sequences, keys_values)
    }

    /// A decoder-only model reads the prompts; the logits of what follows each [prompts, V].
    fn read_prompts(&mut self) -> Result<Vec<f32>> {
        let PromptRows { sizes, tokens, order, places, spans } = self.prompt_rows();
        let lengths: Vec<usize> = spans.iter().map(|span| span.len).collect();
        let every: Vec<usize> = (0..self.prompts.len()).collect();
        let growth = self.growth(&every, &lengths);
        let predicting: Vec<u32> = spans.iter().map(|span| (span.start + span.len - 1) as u32).collect();
        let inputs = DecoderInputs {
            queries: Some((self.queries, self.images.clone())),
            embed: (sizes, EmbedInputs { tokens: &tokens, order: &order, places: &places }),
            sequences: &growth.own,
            slots: &growth.cached.slots(),
            cache_rows: &growth.cached.table(),
            cross: None,
            predicting: &predicting,
            labels: None,
        };
        let logits = self.model.decode(&inputs, &mut self.state.cache)?;
        self.cached = growth.cached;
        Ok(logits)
    }

    /// The sequences that continue `parents`, each by so many tokens.
    fn growth(&self, parents: &[usize], tokens: &[usize]) -> Growth {
        let cached = self.cached.continued(parents, tokens);
        let longest = cached.longest();
        let mut rows = 0;
        let spans: Vec<Span> = tokens
            .iter()
            .map(|&tokens| {
                rows += tokens;
                Span::new(rows - tokens, tokens)
            })
            .collect();
        let places = parents.iter().zip(tokens).flat_map(|(&parent, &tokens)| {
            let first = self.cached.length(parent) as u32;
            first..first + tokens as u32
        });
        let own = spans.iter().enumerate().map(|(sequence, &span)| Sequence {
            queries: [Span::EMPTY, span],
            keys: [Span::EMPTY, Span::new(sequence * longest, cached.length(sequence))],
        });
        let own = Sequences::reading(own.collect());
        // At every place in the texts the work is the same.
        let sizes = SequenceSizes { keys: longest, ..own.sizes() };
        let of: Vec<usize> = parents.iter().map(|&parent| self.of[parent]).collect();
        let cross = self.state.cross.as_ref().map(|_| self.cross_sequences(&of, &spans, rows));
        Growth { own: own.within(sizes), cross, of, places: places.collect(), cached }
    }

    /// Rows of sequences against what the encoder read of their prompts.
    fn cross_sequences(&self, of: &[usize], spans: &[Span], rows: usize) -> Sequences {
        let soft = self.model.queries[0];
        let mut read = 0;
        let prompts: Vec<Span> = self
            .prompts
            .iter()
            .map(|prompt| {
                let length = soft + prompt.tokens.len();
                read += length;
                Span::new(read - length, length)
            })
            .collect();
        let sequence = |(&prompt, &span): (&usize, &Span)| Sequence {
            queries: [span, Span::EMPTY],
            keys: [prompts[prompt], Span::EMPTY],
        };
        let sequences = Sequences::reading(of.iter().zip(spans).map(sequence).collect());
        let keys = prompts.iter().map(|span| span.len).max().unwrap_or(0);
        let sizes = SequenceSizes { groups: of.len(), sequences: of.len(), keys, queries: rows };
        sequences.within(sizes)
    }

    /// Reads the new tokens of a growth, all sequences' one after the other; what is wanted of the rows `predicting`.
    fn read(
        &mut self,
        growth: &Growth,
        tokens: &[u32],
        predicting: &[u32],
        labels: Option<&[u32]>,
    ) -> Result<Vec<f32>> {
        let order: Vec<u32> = (0..tokens.len() as u32).collect();
        let sizes = EmbedSizes { rows: tokens.len(), soft: 0, words: tokens.len() };
        let DecoderState { cache, cross } = &mut self.state;
        let inputs = DecoderInputs {
            queries: None,
            embed: (sizes, EmbedInputs { tokens, order: &order, places: &growth.places }),
            sequences: &growth.own,
            slots: &growth.cached.slots(),
            cache_rows: &growth.cached.table(),
            cross: cross.as_ref().map(M::<B>::view).zip(growth.cross.as_ref()),
            predicting,
            labels,
        };
        self.model.decode(&inputs, cache)
    }

    /// The logits of what follows each sequence [sequences, V], grown by a token.
    fn grow(&mut self, parents: &[usize], tokens: &[u32]) -> Result<Vec<f32>> {
        let growth = self.growth(parents, &vec![1; parents.len()]);
        let predicting: Vec<u32> = (0..tokens.len() as u32).collect();
        let logits = self.read(&growth, tokens, &predicting, None)?;
        (self.of, self.cached) = (growth.of, growth.cached);
        Ok(logits)
    }

    /// −ln p of every token but the first of each continuation of a sequence, continuation by continuation. Nothing of
    /// them is kept.
    pub(super) fn losses_after_first(
        &mut self,
        parents: &[usize],
        continuations: &[&[u32]],
    ) -> Result<Vec<f32>> {
        let lengths: Vec<usize> = continuations.iter().map(|tokens| tokens.len() - 1).collect();
        let growth = self.growth(parents, &lengths);
        let read: Vec<u32> =
            continuations.iter().flat_map(|tokens| &tokens[..tokens.len() - 1]).copied().collect();
        let labels: Vec<u32> = continuations.iter().flat_map(|tokens| &tokens[1..]).copied().collect();
        let predicting: Vec<u32> = (0..read.len() as u32).collect();
        self.model.device.enter(|| self.read(&growth, &read, &predicting, Some(&labels)))
    }

    fn check(&self, parents: &[usize], tokens: &[u32]) -> Result<()> {
        let (count, before) = (parents.len(), self.cached.count());
        if count == 0 || tokens.len() != count {
            let tokens = tokens.len();
            return Err(Error::usage(format!(
                "{count} sequences go on with {tokens} tokens; each takes one"
            )));
        }
        if let Some(parent) = parents.iter().find(|&&parent| parent >= before) {
            return Err(Error::usage(format!(
                "a sequence is to continue number {parent}, but there are {before} that can be continued"
            )));
        }
        let vocabulary = self.model.architecture.vocabulary;
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(Error::value(format!(
                "a sequence goes on with token {id}, but the vocabulary has {vocabulary}"
            )));
        }
        let length = parents.iter().map(|&parent| self.cached.length(parent) + 1).max().unwrap_or(0);
        if length > self.cached.longest() || count > self.most {
            return Err(Error::usage(format!(
                "{count} sequences of {length} tokens are more than the decoder was made for; make it for as many"
            )));
        }
        Ok(())
    }
}

impl<B: Backend> NextToken for LanguageDecoder<'_, B> {
    fn begin(&mut self) -> Result<Vec<f32>> {
        let model = self.model;
        model.device.enter(|| match model.architecture.start {
            Some(start) => {
                self.encode()?;
                let every: Vec<usize> = (0..self.prompts.len()).collect();
                self.grow(&every, &vec![start; every.len()])
            }
            None => self.read_prompts(),
        })
    }

    /// # Errors
    /// Fails if there is not a token of the vocabulary for each parent, if a parent is not among the sequences of the last
    /// call (in the first: among the prompts), if there are more sequences or more tokens than the decoder was made for,
    /// and if there is not enough memory.
    fn advance(&mut self, parents: &[usize], tokens: &[u32]) -> Result<Vec<f32>> {
        self.check(parents, tokens)?;
        let model = self.model;
        model.device.enter(|| self.grow(parents, tokens))
    }
}
