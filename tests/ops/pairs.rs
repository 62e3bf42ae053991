use crate::device::{Tensor, TestDevice};
use qformer::device::{Cpu, Cuda};
use qformer::ops::attention::{Sequence, Span};
use qformer::ops::cross_entropy::IGNORED;
use qformer::ops::matching::LEFT_OUT;
use qformer::ops::pairs::{ABSENT, FILLER, ListedPairs, PairsList, PairsOp, PairsStream, StreamSizes, Texts};
use std::ops::Range;

/// Hard negatives of a batch.
#[derive(Clone)]
struct Negatives {
    texts: Vec<u32>,
    images: Vec<u32>,
}

impl Negatives {
    /// Of so many images; every `missing`th has none, and neither has its text.
    fn of(images: u32, missing: u32) -> Self {
        let other =
            |i: u32, step: u32| if i % missing == missing - 1 { ABSENT } else { (i * step + 1) % images };
        Self {
            texts: (0..images).map(|i| other(i, 5)).collect(),
            images: (0..images).map(|i| other(i, 3)).collect(),
        }
    }

    /// The pairs of each image, in their order.
    fn plain(&self) -> Vec<Vec<[u32; 2]>> {
        let of_image = |image: u32| {
            let mut pairs = vec![[image, image]];
            let texts = (0..self.images.len()).filter(|&text| self.images[text] == image);
            pairs.extend(texts.map(|text| [image, text as u32]));
            pairs.extend(Some(self.texts[image as usize]).filter(|&text| text != ABSENT).map(|t| [image, t]));
            pairs
        };
        (0..self.texts.len() as u32).map(of_image).collect()
    }

    /// Pairs [2, 3·images] and bounds.
    fn listed<D: TestDevice + PairsOp>(&self) -> [Vec<u32>; 2] {
        let images = self.texts.len();
        let indices = |values: &[u32]| Tensor::<D, u32>::indices(1, values.len(), values);
        let mut pairs = Tensor::<D, u32>::indices(2, 3 * images, &vec![7; 6 * images]);
        let mut bounds = indices(&vec![7; images + 1]);
        D::get()
            .pairs_list(PairsList {
                negative_texts: indices(&self.texts).view(),
                negative_images: indices(&self.images).view(),
                pairs: pairs.view_mut(),
                bounds: bounds.view_mut(),
            })
            .unwrap();
        [pairs.read_indices(), bounds.read_indices()]
    }
}

fn lists<D: TestDevice + PairsOp>() {
    for (images, missing) in [(1, 1), (2, 100), (7, 3), (300, 10), (129, 1)] {
        let negatives = Negatives::of(images, missing);
        let plain = negatives.plain();
        let [pairs, bounds] = negatives.listed::<D>();
        let ends = plain.iter().scan(0, |end, pairs| {
            *end += pairs.len() as u32;
            Some(*end)
        });
        assert_eq!(bounds, [0].into_iter().chain(ends).collect::<Vec<_>>());
        let (of_images, of_texts) = pairs.split_at(pairs.len() / 2);
        let mut want = plain.concat();
        want.resize(3 * images as usize, [ABSENT; 2]);
        let got: Vec<[u32; 2]> =
            of_images.iter().zip(of_texts).map(|(&image, &text)| [image, text]).collect();
        assert_eq!(got, want);
    }
}

#[test]
fn pairs_stand_together_by_their_image() {
    lists::<Cpu<f32>>();
    lists::<Cuda>();
}

/// A pass over some pairs.
#[derive(Clone)]
struct Case {
    negatives: Negatives,
    /// Tokens of each text.
    texts: Vec<Vec<u32>>,
    pairs: Range<usize>,
    images: Range<usize>,
    captions: usize,
    rows: usize,
    predicting: usize,
    with_cls: bool,
}

const QUERIES: usize = 4;
const IMAGE_TOKENS: usize = 17;
const START: u32 = 99;

/// What it writes, in the order of its fields.
#[derive(Debug, PartialEq)]
struct Stream {
    query_ids: Vec<u32>,
    tokens: Vec<u32>,
    positions: Vec<u32>,
    matched: Vec<u32>,
    generated: Vec<u32>,
    cross: Vec<u32>,
    picked: Vec<u32>,
    places: Vec<u32>,
    predicted: Vec<u32>,
    labels: Vec<u32>,
    needed: u32,
}

/// A table of groups and sequences, with room for so many of either.
fn table(groups: &[usize], sequences: &[Sequence], [group_room, room]: [usize; 2]) -> Vec<u32> {
    let mut words: Vec<u32> = groups.iter().map(|&group| group as u32).collect();
    words.resize(group_room + 1, sequences.len() as u32);
    let spans = sequences.iter().flat_map(|s| [s.queries, s.keys].concat());
    words.extend(spans.flat_map(|span| [span.start as u32, span.len as u32]));
    words.resize(group_room + 1 + 8 * room, 0);
    words
}

impl Case {
    /// A batch of so many images, all its pairs and captions, with texts of 2 to `longest` tokens.
    fn whole(images: u32, missing: u32, longest: usize, filler: usize) -> Self {
        let length = |i: usize| 2 + i * 7 % (longest - 1);
        let texts: Vec<Vec<u32>> = (0..images as usize)
            .map(|i| (0..length(i)).map(|t| (1 + t * 5 + i) as u32 % 90).collect())
            .collect();
        let mut case = Self {
            negatives: Negatives::of(images, missing),
            pairs: 0..3 * images as usize,
            images: 0..images as usize,
            captions: images as usize,
            rows: 0,
            predicting: 0,
            with_cls: true,
            texts,
        };
        let of_captions: usize = case.texts.iter().map(Vec::len).sum();
        case.predicting = of_captions - case.captions + filler;
        case.rows = case.needed() + filler;
        case
    }

    fn list(&self) -> Vec<[u32; 2]> {
        let mut list = self.negatives.plain().concat();
        list.resize(3 * self.texts.len(), [ABSENT; 2]);
        list[self.pairs.clone()].to_vec()
    }

    fn captions(&self) -> &[Vec<u32>] {
        &self.texts[self.images.start..self.images.start + self.captions]
    }

    fn needed(&self) -> usize {
        let of_pairs = self.list().into_iter().filter(|pair| pair[1] != ABSENT);
        let of_pairs: usize = of_pairs.map(|[_, text]| self.texts[text as usize].len()).sum();
        of_pairs + self.captions().iter().map(Vec::len).sum::<usize>()
    }

    fn room(&self) -> usize {
        self.pairs.len() + self.rows.div_ceil(FILLER)
    }

    fn picks(&self) -> usize {
        self.predicting + if self.with_cls { self.pairs.len() } else { 0 }
    }

    fn run<D: TestDevice + PairsOp>(&self) -> Stream {
        let indices = |values: &[u32]| Tensor::<D, u32>::indices(1, values.len(), values);
        let out = |len: usize| indices(&vec![12345; len]);
        let [pairs, bounds] = self.negatives.listed::<D>();
        let mut pairs = Tensor::<D, u32>::indices(2, 3 * self.texts.len(), &pairs);
        let mut starts = vec![0];
        for text in &self.texts {
            starts.push(starts[starts.len() - 1] + text.len() as u32);
        }
        let (count, rows) = (self.pairs.len(), self.rows);
        let [mut query_ids, mut tokens, mut positions, mut places] =
            [count * QUERIES, rows, rows, rows].map(out);
        let [mut matched, mut generated, mut cross] =
            [9 * self.room() + 1, 9 * self.captions + 1, self.images.len() + 1 + 8 * count].map(out);
        let [mut picked, mut predicted, mut labels, mut needed] =
            [self.picks(), self.predicting, count, 1].map(out);
        D::get()
            .pairs_stream(PairsStream {
                listed: ListedPairs {
                    pairs: pairs.view().columns(self.pairs.clone()),
                    first: self.pairs.start,
                    bounds: indices(&bounds).view(),
                },
                texts: Texts {
                    tokens: indices(&self.texts.concat()).view(),
                    starts: indices(&starts).view(),
                },
                sizes: StreamSizes {
                    queries: QUERIES,
                    image_tokens: IMAGE_TOKENS,
                    images: self.images.clone(),
                    captions: self.captions,
                    start_token: START,
                },
                query_ids: query_ids.view_mut(),
                tokens: tokens.view_mut(),
                positions: positions.view_mut(),
                matched: matched.view_mut(),
                generated: generated.view_mut(),
                cross: cross.view_mut(),
                picked: picked.view_mut(),
                places: places.view_mut(),
                predicted: predicted.view_mut(),
                labels: labels.view_mut(),
                needed: needed.view_mut(),
            })
            .unwrap();
        Stream {
            query_ids: query_ids.read_indices(),
            tokens: tokens.read_indices(),
            positions: positions.read_indices(),
            matched: matched.read_indices(),
            generated: generated.read_indices(),
            cross: cross.read_indices(),
            picked: picked.read_indices(),
            places: places.read_indices(),
            predicted: predicted.read_indices(),
            labels: labels.read_indices(),
            needed: needed.read_indices()[0],
        }
    }

    /// The same by its definition, where there is room for all.
    fn plain(&self) -> Stream {
        let (list, picks) = (self.list(), self.picks() as u32);
        let query_rows = list.len() * QUERIES;
        let set = |i: usize| Span::new(i * QUERIES, QUERIES);
        let mut texts: Vec<Vec<u32>> = self.captions().to_vec();
        texts.iter_mut().for_each(|text| text[0] = START);
        let text = |&[_, text]: &[u32; 2]| self.texts.get(text as usize).cloned().unwrap_or_default();
        texts.extend(list.iter().map(text));
        let mut free = self.rows - texts.iter().map(Vec::len).sum::<usize>();
        while free > 0 {
            texts.push(vec![0; free.min(FILLER)]);
            free -= free.min(FILLER);
        }
        let (mut spans, mut next) = (Vec::new(), query_rows);
        for text in &texts {
            spans.push(if text.is_empty() { Span::EMPTY } else { Span::new(next, text.len()) });
            next += text.len();
        }
        let last = self.captions + list.len();
        let (of_captions, of_pairs) = (&spans[..self.captions], &spans[self.captions..last]);

        let alone = |queries: Span, text: Span| Sequence { queries: [queries, text], keys: [queries, text] };
        let mut matched: Vec<Sequence> =
            of_pairs.iter().enumerate().map(|(i, &span)| alone(set(i), span)).collect();
        matched.extend(spans[last..].iter().map(|&span| alone(Span::EMPTY, span)));
        let generated: Vec<Sequence> = of_captions
            .iter()
            .enumerate()
            .map(|(i, &span)| Sequence { queries: [Span::EMPTY, span], keys: [set(i), span] })
            .collect();
        let place = |pair: &[u32; 2]| (pair[0] as usize).min(self.images.end - 1) - self.images.start;
        let cross = |(i, pair): (usize, &[u32; 2])| Sequence {
            queries: [set(i), Span::EMPTY],
            keys: [Span::new(place(pair) * IMAGE_TOKENS, IMAGE_TOKENS), Span::EMPTY],
        };
        let cross: Vec<Sequence> = list.iter().enumerate().map(cross).collect();
        let bounds: Vec<usize> = (0..=self.images.len())
            .map(|image| list.iter().filter(|pair| place(pair) < image).count())
            .collect();
        let groups = |count: usize| (0..=count).collect::<Vec<_>>();

        let predicting = of_captions.iter().flat_map(|span| span.start..span.start + span.len - 1);
        let mut picked: Vec<u32> = predicting.map(|row| row as u32).collect();
        let mut predicted: Vec<u32> = self.captions().iter().flat_map(|text| &text[1..]).copied().collect();
        picked.resize(self.predicting, 0);
        predicted.resize(self.predicting, IGNORED);
        if self.with_cls {
            picked.extend(of_pairs.iter().map(|span| span.start as u32));
        }
        let places = (query_rows as u32..next as u32)
            .map(|row| picked.iter().position(|&p| p == row).map_or(picks, |place| place as u32));
        let filler: usize = spans[last..].iter().map(|span| span.len).sum();
        let place_in_text = texts[..last].iter().flat_map(|text| 0..text.len() as u32);
        Stream {
            query_ids: (0..query_rows).map(|row| (row % QUERIES) as u32).collect(),
            positions: place_in_text.chain(std::iter::repeat_n(0, filler)).collect(),
            matched: table(&groups(matched.len()), &matched, [self.room(); 2]),
            generated: table(&groups(generated.len()), &generated, [self.captions; 2]),
            cross: table(&bounds, &cross, [self.images.len(), list.len()]),
            places: places.collect(),
            labels: list
                .iter()
                .map(|&[image, text]| if image == ABSENT { LEFT_OUT } else { u32::from(image == text) })
                .collect(),
            needed: self.needed() as u32,
            tokens: texts.concat(),
            picked,
            predicted,
        }
    }

    /// Whole batches, small and with more pairs than a block has threads; then passes over a part.
    fn all() -> Vec<Self> {
        let mut cases = vec![
            Self::whole(1, 1, 5, 0),
            Self::whole(1, 1, 5, 70),
            Self::whole(2, 100, 40, 3),
            Self::whole(7, 3, 12, 31),
            Self::whole(45, 1, 20, 100),
            Self::whole(360, 7, 9, 33),
        ];
        let without = Self { with_cls: false, ..cases[3].clone() };
        let mut part = cases[4].clone();
        part.negatives = Negatives::of(45, 9);
        let bounds = part.negatives.listed::<Cpu<f32>>()[1].clone();
        // Some pairs of a micro-batch of ten images, with its captions; then the rest, without.
        part.images = 20..30;
        part.pairs = bounds[20] as usize..bounds[20] as usize + 11;
        part.captions = 10;
        part.predicting = part.captions().iter().map(|text| text.len() - 1).sum();
        part.rows = part.needed();
        let mut rest = Self { captions: 0, predicting: 0, ..part.clone() };
        rest.pairs = part.pairs.end..bounds[30] as usize;
        rest.rows = rest.needed() + 40;
        cases.extend([without, part, rest]);
        cases
    }
}

fn streams<D: TestDevice + PairsOp>() {
    for case in Case::all() {
        assert_eq!(case.run::<D>(), case.plain());
    }
}

#[test]
fn streams_are_as_defined() {
    streams::<Cpu<f32>>();
    streams::<Cuda>();
}

#[test]
fn texts_that_find_no_room_have_no_rows() {
    let fitting = Case::whole(7, 3, 12, 0);
    let captions: usize = fitting.texts.iter().map(Vec::len).sum();
    for rows in captions..fitting.rows {
        let case = Case { rows, ..fitting.clone() };
        let [cpu, gpu] = [case.run::<Cpu<f32>>(), case.run::<Cuda>()];
        assert_eq!(cpu, gpu, "{rows} rows");
        assert_eq!(cpu.needed as usize, fitting.rows);
        assert!(cpu.tokens.iter().all(|&token| token < 100), "{:?}", cpu.tokens);
    }
}
