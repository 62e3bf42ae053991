//! The pass of an encoder over prompts, as far as what the decoder reads of them: keys and values of its cross-attention.

use super::LanguageModel;
use super::embed::{EmbedActs, EmbedInputs, EmbedSizes, SomeQueries};
use super::stack::{SelfInputs, StackActs};
use super::t5::Side;
use crate::device::M;
use crate::error::Result;
use crate::memory::{Address, Cursor, Pass};
use crate::ops::Backend;
use crate::ops::attention::{Mask, SequenceSizes, Sequences};
use crate::tensor::ViewMut;

/// The pass by all that its operations follow from.
#[derive(Clone, PartialEq, Eq, Hash)]
struct EncoderPass {
    embed: EmbedSizes,
    sequences: SequenceSizes,
    /// Where the keys and values go.
    keys_values: Address,
}

/// What it works in.
struct EncoderActs<'a, B: Backend> {
    embed: EmbedActs<'a, B>,
    stack: StackActs<'a, B>,
    /// [rows, D]
    output: M<'a, B>,
    table: ViewMut<'a, B, u32>,
}

impl<B: Backend> Pass<B> for EncoderPass {
    type Model = LanguageModel<B>;
    type Acts<'a> = EncoderActs<'a, B>;

    fn items(&self) -> (usize, &'static str) {
        (self.embed.rows, "tokens of prompts")
    }

    fn carve<'a>(&self, model: &LanguageModel<B>, cursor: &mut Cursor<'a, B>) -> EncoderActs<'a, B> {
        EncoderActs {
            embed: EmbedActs::carve(cursor, self.embed, model.embed_widths()),
            stack: StackActs::carve(cursor, self.embed.rows, &model.architecture),
            output: cursor.take(self.embed.rows, model.architecture.hidden),
            table: cursor.take(1, self.sequences.words()),
        }
    }
}

impl<B: Backend> LanguageModel<B> {
    /// Keys and values [rows, blocks·2·I] of the encoder's output for all of the decoder's blocks, of rows that `sequences`
    /// tell apart.
    pub(super) fn encode(
        &self,
        queries: SomeQueries<'_, B>,
        (sizes, inputs): (EmbedSizes, &EmbedInputs<'_>),
        sequences: &Sequences,
        keys_values: &mut M<'_, B>,
    ) -> Result<()> {
        let parameters = self.weights.view();
        let address = Address::of(keys_values.view());
        let pass = EncoderPass { embed: sizes, sequences: sequences.sizes(), keys_values: address };
        // SAFETY: beside its own memory the pass reads the model's weights and writes the keys and values, whose address
        // it has.
        unsafe {
            self.workspace.run(
                &self.device,
                self,
                pass,
                |acts| {
                    acts.embed.write(&self.device, &self.architecture, Some(queries), inputs)?;
                    sequences.place(&self.device, acts.table.reborrow()).map(drop)
                },
                |pass, acts| {
                    let b = &self.device;
                    let EncoderActs { embed, stack, output, table } = acts;
                    self.embed(embed, stack.input())?;
                    let encoder = parameters.encoder.as_ref().expect("an encoder-decoder");
                    let mut own = SelfInputs {
                        sequences: pass.sequences.placed_at(table.view()),
                        mask: Mask::None,
                        bias: self.bias(Side::Encoder),
                        cache: None,
                    };
                    let x = encoder.forward(b, &self.architecture, &mut own, None, stack)?;
                    let norm = encoder.norm.as_ref().expect("an encoder ends with a norm");
                    norm.forward(b, x, output.reborrow())?;
                    let cross_kv = parameters.cross_kv.as_ref().expect("an encoder-decoder");
                    cross_kv.forward(b, output.view(), keys_values.reborrow())
                },
                |_| Ok(()),
            )
        }
    }
}
