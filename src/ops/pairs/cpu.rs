//! One task: there are a few hundred pairs of a dozen tokens.

use super::{ABSENT, Counts, FILLER, PADDING, PairsList, PairsOp, PairsStream};
use crate::device::{Cpu, Real};
use crate::error::Result;
use crate::ops::attention::{SEQUENCE_WORDS, Sequence, Span};
use crate::ops::cross_entropy::IGNORED;
use crate::ops::matching::LEFT_OUT;

/// Writes a table: bounds of the groups, the sequences, and zeros where there is room for more.
fn write_table(table: &mut [u32], groups: impl Iterator<Item = usize>, sequences: &[Sequence]) {
    let words = groups.map(|group| group as u32).chain(sequences.iter().flat_map(Sequence::words));
    let words = words.chain(std::iter::repeat(0));
    table.iter_mut().zip(words).for_each(|(to, word)| *to = word);
}

/// The same of sequences of which each is a group; `room` for so many.
fn write_alone(table: &mut [u32], room: usize, sequences: &[Sequence]) {
    write_table(table, (0..=room).map(|group| group.min(sequences.len())), sequences);
}

impl<E: Real> PairsOp for Cpu<E> {
    fn pairs_list(&self, args: PairsList<'_, Self>) -> Result<()> {
        let images = args.check();
        let PairsList { negative_texts, negative_images, mut pairs, mut bounds } = args;
        let (negative_texts, negative_images) = (negative_texts.row(0), negative_images.row(0));
        let mut list = Vec::new();
        for image in 0..images as u32 {
            bounds.row_mut(0)[image as usize] = list.len() as u32;
            list.push([image, image]);
            let of_texts = (0..).zip(negative_images).filter(|&(_, &negative)| negative == image);
            list.extend(of_texts.map(|(text, _)| [image, text]));
            let negative = negative_texts[image as usize];
            list.extend((negative != ABSENT).then_some([image, negative]));
        }
        bounds.row_mut(0)[images] = list.len() as u32;
        list.resize(pairs.cols(), [ABSENT; 2]);
        for which in 0..2 {
            pairs.row_mut(which).iter_mut().zip(&list).for_each(|(to, pair)| *to = pair[which]);
        }
        Ok(())
    }

    fn pairs_stream(&self, mut args: PairsStream<'_, Self>) -> Result<()> {
        let Counts { pairs, rows, predicting, matched: room } = args.check();
        let (sizes, listed) = (&args.sizes, &args.listed);
        let (queries, images) = (sizes.queries, &sizes.images);
        let (tokens, starts) = (args.texts.tokens.row(0), args.texts.starts.row(0));
        let text = |text: usize| &tokens[starts[text] as usize..starts[text + 1] as usize];
        let set = |index: usize| Span::new(index * queries, queries);
        let query_rows = pairs * queries;
        let [mut of_rows, mut positions, mut places] = [(); 3].map(|()| Vec::with_capacity(rows));
        let [mut picked, mut predicted] = [(); 2].map(|()| Vec::new());

        let mut generated = Vec::new();
        for caption in 0..sizes.captions {
            let (text, start) = (text(images.start + caption), of_rows.len());
            let span = Span::new(query_rows + start, text.len());
            generated.push(Sequence { queries: [Span::EMPTY, span], keys: [set(caption), span] });
            of_rows.push(sizes.start_token);
            of_rows.extend(&text[1..]);
            positions.extend(0..text.len() as u32);
            predicted.extend(&text[1..]);
            for row in start..start + text.len() - 1 {
                places.push(picked.len() as u32);
                picked.push((query_rows + row) as u32);
            }
            places.push(args.picked.cols() as u32);
        }
        picked.resize(predicting, 0);
        predicted.resize(predicting, IGNORED);
        let mut needed = of_rows.len();

        let [mut matched, mut cross] = [(); 2].map(|()| Vec::with_capacity(room));
        let with_cls = args.picked.cols() > predicting;
        for index in 0..pairs {
            let [image, of] = [0, 1].map(|which| listed.pairs.row(which)[index]);
            let tokens = if of == ABSENT { &[][..] } else { text(of as usize) };
            needed += tokens.len();
            let tokens = if needed > rows { &[][..] } else { tokens };
            let span = match tokens.len() {
                0 => Span::EMPTY,
                len => Span::new(query_rows + of_rows.len(), len),
            };
            let both = [set(index), span];
            matched.push(Sequence { queries: both, keys: both });
            let image_place = if image == ABSENT { images.len() - 1 } else { image as usize - images.start };
            let keys = Span::new(image_place * sizes.image_tokens, sizes.image_tokens);
            cross.push(Sequence { queries: [set(index), Span::EMPTY], keys: [keys, Span::EMPTY] });
            args.labels.row_mut(0)[index] = if image == ABSENT { LEFT_OUT } else { u32::from(image == of) };
            of_rows.extend(tokens);
            positions.extend(0..tokens.len() as u32);
            places.resize(of_rows.len(), args.picked.cols() as u32);
            if with_cls {
                if span.len > 0 {
                    places[span.start - query_rows] = picked.len() as u32;
                }
                picked.push(span.start as u32);
            }
        }
        while of_rows.len() < rows {
            let span = Span::new(query_rows + of_rows.len(), FILLER.min(rows - of_rows.len()));
            matched.push(Sequence { queries: [Span::EMPTY, span], keys: [Span::EMPTY, span] });
            of_rows.resize(of_rows.len() + span.len, PADDING);
        }
        positions.resize(rows, 0);
        places.resize(rows, args.picked.cols() as u32);

        for (id, row) in args.query_ids.row_mut(0).iter_mut().zip(0..) {
            *id = (row % queries) as u32;
        }
        args.tokens.row_mut(0).copy_from_slice(&of_rows);
        args.positions.row_mut(0).copy_from_slice(&positions);
        args.places.row_mut(0).copy_from_slice(&places);
        args.picked.row_mut(0).copy_from_slice(&picked);
        args.predicted.row_mut(0).copy_from_slice(&predicted);
        args.needed.row_mut(0)[0] = needed as u32;
        write_alone(args.matched.row_mut(0), room, &matched);
        write_alone(args.generated.row_mut(0), sizes.captions, &generated);
        let bounds = &listed.bounds.row(0)[images.start..images.end];
        let bound = |&bound: &u32| (bound as usize).saturating_sub(listed.first).min(pairs);
        write_table(args.cross.row_mut(0), bounds.iter().map(bound).chain([pairs]), &cross);
        debug_assert_eq!(args.cross.cols(), images.len() + 1 + pairs * SEQUENCE_WORDS);
        Ok(())
    }
}
