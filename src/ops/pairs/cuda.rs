//! Launches of `kernels/pairs.cu`.

use super::{Counts, FILLER, PairsList, PairsOp, PairsStream};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, count};
use crate::error::Result;

/// Threads of the list's blocks, each for an image.
const LIST_THREADS: u32 = 128;
/// One block makes a stream.
const STREAM: Grid = Grid { blocks: [1, 1, 1], threads: 1024, shared_bytes: 0 };

const _: () = assert!(FILLER == 32, "as in the kernel");

arguments! {
    struct PairsListArgs("pairs", "pairs_list", 72) {
        /// [1, images]
        negative_texts: In<'a, u32>,
        /// [1, images]
        negative_images: In<'a, u32>,
        /// [2, 3·images]
        pairs: Out<'a, u32>,
        /// [1, images + 1]
        bounds: Out<'a, u32>,
        images: u32,
        unused: u32,
    }

    struct PairsStreamArgs("pairs", "pairs_stream", 288) {
        /// [2, count]
        pairs: In<'a, u32>,
        /// [1, images of the batch + 1]
        bounds: In<'a, u32>,
        /// [1, tokens of all texts]
        texts: In<'a, u32>,
        /// [1, images of the batch + 1]
        starts: In<'a, u32>,
        /// [1, count·queries]
        query_ids: Out<'a, u32>,
        /// [1, rows]
        tokens: Out<'a, u32>,
        /// [1, rows]
        positions: Out<'a, u32>,
        /// [1, words]
        matched: Out<'a, u32>,
        /// [1, words]
        generated: Out<'a, u32>,
        /// [1, words]
        cross: Out<'a, u32>,
        /// [1, picks]
        picked: Out<'a, u32>,
        /// [1, rows]
        places: Out<'a, u32>,
        /// [1, predicting]
        predicted: Out<'a, u32>,
        /// [1, count]
        labels: Out<'a, u32>,
        /// [1, 1]
        needed: Out<'a, u32>,
        first: u32,
        count: u32,
        rows: u32,
        picks: u32,
        predicting: u32,
        room: u32,
        queries: u32,
        image_tokens: u32,
        first_image: u32,
        images: u32,
        captions: u32,
        start_token: u32,
    }
}

impl PairsOp for Cuda {
    fn pairs_list(&self, args: PairsList<'_, Self>) -> Result<()> {
        let images = count(args.check());
        let PairsList { negative_texts, negative_images, pairs, bounds } = args;
        self.launch(
            Grid { blocks: [images.div_ceil(LIST_THREADS), 1, 1], threads: LIST_THREADS, shared_bytes: 0 },
            PairsListArgs {
                negative_texts: In::of(negative_texts),
                negative_images: In::of(negative_images),
                pairs: Out::of(pairs),
                bounds: Out::of(bounds),
                images,
                unused: 0,
            },
        )
    }

    fn pairs_stream(&self, args: PairsStream<'_, Self>) -> Result<()> {
        let Counts { pairs, rows, predicting, matched: room } = args.check();
        let PairsStream { listed, texts, sizes, .. } = args;
        let picks = count(args.picked.cols());
        self.launch(
            STREAM,
            PairsStreamArgs {
                pairs: In::of(listed.pairs),
                bounds: In::of(listed.bounds),
                texts: In::of(texts.tokens),
                starts: In::of(texts.starts),
                query_ids: Out::of(args.query_ids),
                tokens: Out::of(args.tokens),
                positions: Out::of(args.positions),
                matched: Out::of(args.matched),
                generated: Out::of(args.generated),
                cross: Out::of(args.cross),
                picked: Out::of(args.picked),
                places: Out::of(args.places),
                predicted: Out::of(args.predicted),
                labels: Out::of(args.labels),
                needed: Out::of(args.needed),
                first: count(listed.first),
                count: count(pairs),
                rows: count(rows),
                picks,
                predicting: count(predicting),
                room: count(room),
                queries: count(sizes.queries),
                image_tokens: count(sizes.image_tokens),
                first_image: count(sizes.images.start),
                images: count(sizes.images.len()),
                captions: count(sizes.captions),
                start_token: sizes.start_token,
            },
        )
    }
}
