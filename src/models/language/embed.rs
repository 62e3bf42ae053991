//! What enters the blocks: tokens' embeddings and soft prompts, which stand where those of tokens could.

use super::LanguageModel;
use super::parameters::Architecture;
use crate::device::{M, V};
use crate::error::Result;
use crate::memory::{Cursor, TensorInput};
use crate::ops::Backend;
use crate::ops::embedding::EmbeddingForward;
use crate::tensor::ViewMut;
use std::ops::Range;

/// The Q-Former's outputs [images, Q, Dq], and the images that are read of them.
pub(super) type SomeQueries<'a, B> = (TensorInput<'a, B>, Range<usize>);

/// How many rows enter, and what they are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct EmbedSizes {
    /// Rows that enter the blocks.
    pub(super) rows: usize,
    /// Query outputs that become soft prompts; 0 where there are tokens alone.
    pub(super) soft: usize,
    /// Tokens that are looked up.
    pub(super) words: usize,
}

/// What the host says of them.
pub(super) struct EmbedInputs<'a> {
    /// Of each word.
    pub(super) tokens: &'a [u32],
    /// For each row, which of the soft prompts and, after those, of the words it is.
    pub(super) order: &'a [u32],
    /// Each row's place in its sequence.
    pub(super) places: &'a [u32],
}

/// What it takes to embed them; Q-Former's width is Dq.
pub(super) struct EmbedActs<'a, B: Backend> {
    /// The Q-Former's query outputs [soft, Dq]
    pub(super) queries: M<'a, B>,
    /// Soft prompts, then words [soft + words, E]
    pool: M<'a, B>,
    /// The rows where the blocks are not as wide [rows, E]
    narrow: M<'a, B>,
    /// The same, projected [rows, D]
    wide: M<'a, B>,
    /// [1, words]
    tokens: ViewMut<'a, B, u32>,
    /// [1, rows]
    order: ViewMut<'a, B, u32>,
    /// [1, rows]: rows of the table of positions
    places: ViewMut<'a, B, u32>,
    /// [1, rows]: 0, 1, …
    rows: ViewMut<'a, B, u32>,
}

impl<'a, B: Backend> EmbedActs<'a, B> {
    pub(super) fn carve(
        cursor: &mut Cursor<'a, B>,
        sizes: EmbedSizes,
        [queries_width, embedding, hidden]: [usize; 3],
    ) -> Self {
        let EmbedSizes { rows, soft, words } = sizes;
        let projected = if embedding == hidden { 0 } else { rows };
        Self {
            queries: cursor.take(soft, queries_width),
            pool: cursor.take(soft + words, embedding),
            narrow: cursor.take(projected, embedding),
            wide: cursor.take(projected, hidden),
            tokens: cursor.take(1, words),
            order: cursor.take(1, rows),
            places: cursor.take(1, rows),
            rows: cursor.take(1, projected),
        }
    }

    /// What the host knows: `queries` are the Q-Former's outputs [images, Q, Dq], some of whose images have soft prompts
    /// here, if any have.
    pub(super) fn write(
        &mut self,
        b: &B,
        architecture: &Architecture,
        queries: Option<SomeQueries<'_, B>>,
        inputs: &EmbedInputs<'_>,
    ) -> Result<()> {
        if let Some((queries, images)) = queries {
            queries.write(b, images, self.queries.reborrow())?;
        }
        b.write_indices(inputs.tokens, self.tokens.reborrow())?;
        b.write_indices(inputs.order, self.order.reborrow())?;
        let places: Vec<u32> =
            inputs.places.iter().map(|place| place + architecture.first_position as u32).collect();
        b.write_indices(&places, self.places.reborrow())?;
        let rows: Vec<u32> = (0..self.rows.cols() as u32).collect();
        b.write_indices(&rows, self.rows.reborrow())
    }
}

impl<B: Backend> LanguageModel<B> {
    /// The rows [rows, D] that enter the blocks.
    pub(super) fn embed(&self, acts: &mut EmbedActs<'_, B>, x: M<'_, B>) -> Result<()> {
        let (b, parameters) = (&self.device, self.weights.view());
        let soft = acts.queries.rows();
        let (mut of_queries, of_words) = acts.pool.reborrow().split_rows(soft);
        if soft > 0 {
            let projection = self.projection.view();
            projection.forward(b, acts.queries.view(), of_queries.reborrow())?;
        }
        b.embedding_forward(EmbeddingForward {
            ids: acts.tokens.view(),
            table: parameters.words,
            positions: None,
            y: of_words,
        })?;
        let positions = parameters.positions.map(|table| (acts.places.view(), table.matrix()));
        let pool: V<'_, B> = acts.pool.view();
        match &parameters.project_in {
            None => b.embedding_forward(EmbeddingForward {
                ids: acts.order.view(),
                table: pool.into(),
                positions,
                y: x,
            }),
            Some(project) => {
                b.embedding_forward(EmbeddingForward {
                    ids: acts.order.view(),
                    table: pool.into(),
                    positions: None,
                    y: acts.narrow.reborrow(),
                })?;
                project.forward(b, acts.narrow.view(), acts.wide.reborrow())?;
                b.embedding_forward(EmbeddingForward {
                    ids: acts.rows.view(),
                    table: acts.wide.view().into(),
                    positions,
                    y: x,
                })
            }
        }
    }
}
