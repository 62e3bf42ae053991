//! The pairs of hard negatives.

use super::tensor::Tensor;
use super::{CAPTION, Cases, Cost};
use qformer::Result;
use qformer::ops::Backend;
use qformer::ops::attention::SEQUENCE_WORDS;
use qformer::ops::contrastive::NO_NEGATIVE;
use qformer::ops::pairs::{FILLER, ListedPairs, PAIRS_OF_IMAGE, PairsList, PairsStream, StreamSizes, Texts};

/// Of a step: every image and every text has a hard negative, if there is another.
pub(super) fn measure<B: Backend>(cases: &mut Cases<'_, B>) -> Result<()> {
    let (device, images) = (cases.device, cases.batch);
    let (queries, image_tokens) = (cases.config.num_query_tokens, cases.config.image_tokens());
    let count = PAIRS_OF_IMAGE * images;
    let bytes = |words: usize| Cost::bytes(words * size_of::<u32>());
    let others = |step: usize| -> Vec<u32> {
        (0..images).map(|i| if images > 1 { ((i + step) % images) as u32 } else { NO_NEGATIVE }).collect()
    };
    let (mut texts, mut pictures) =
        (Tensor::indices(device, &others(1))?, Tensor::indices(device, &others(images - 1))?);
    let mut listed =
        [Tensor::<B, u32>::zeros(device, 2, count)?, Tensor::<B, u32>::zeros(device, 1, images + 1)?];
    let words = 2 * images + 2 * count + images + 1;
    cases.case(
        "pairs of hard negatives",
        &format!("{images} images"),
        bytes(words),
        &mut listed[..],
        |listed| {
            let [pairs, bounds] = listed else { unreachable!("two lists") };
            device.pairs_list(PairsList {
                negative_texts: texts.view(),
                negative_images: pictures.view(),
                pairs: pairs.view_mut(),
                bounds: bounds.view_mut(),
            })
        },
    )?;

    let rows = (images + count) * CAPTION;
    let (room, predicting) = (count + rows.div_ceil(FILLER), images * (CAPTION - 1));
    let mut all = Tensor::indices(device, &vec![1; images * CAPTION])?;
    let starts: Vec<u32> = (0..=images).map(|text| (text * CAPTION) as u32).collect();
    let mut starts = Tensor::indices(device, &starts)?;
    let sizes = [
        count * queries,
        rows,
        rows,
        room * (SEQUENCE_WORDS + 1) + 1,
        images * (SEQUENCE_WORDS + 1) + 1,
        images + 1 + count * SEQUENCE_WORDS,
        predicting,
        rows,
        predicting,
        count,
        1,
    ];
    let written = sizes.into_iter().map(|len| Tensor::<B, u32>::zeros(device, 1, len));
    let mut written = written.collect::<Result<Vec<_>>>()?;
    let words = sizes.iter().sum::<usize>() + 2 * count + rows;
    let [mut pairs, mut bounds] = listed;
    let shape = format!("{count} pairs, {rows} tokens");
    cases.case("their stream", &shape, bytes(words), &mut written[..], |written| {
        let mut written = written.iter_mut().map(Tensor::view_mut);
        let mut next = || written.next().expect("as many as sizes");
        device.pairs_stream(PairsStream {
            listed: ListedPairs { pairs: pairs.view(), first: 0, bounds: bounds.view() },
            texts: Texts { tokens: all.view(), starts: starts.view() },
            sizes: StreamSizes { queries, image_tokens, images: 0..images, captions: images, start_token: 2 },
            query_ids: next(),
            tokens: next(),
            positions: next(),
            matched: next(),
            generated: next(),
            cross: next(),
            picked: next(),
            places: next(),
            predicted: next(),
            labels: next(),
            needed: next(),
        })
    })
}
