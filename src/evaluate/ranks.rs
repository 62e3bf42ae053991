//! Who comes before whom.
//!
//! Ranks count from 0. Where scores are equal, the one of the smaller number comes first.

use super::Recalls;
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::cmp::Ordering;

/// Texts whose columns are gathered at a time: a row's part of them is a few cache lines.
const TEXTS_AT_A_TIME: usize = 64;

/// Contrastive similarities of all images and texts.
pub(super) struct Similarities<'a> {
    /// [I, T]
    values: Vec<f32>,
    /// The image that each text is of.
    owners: &'a [u32],
    images: usize,
}

impl<'a> Similarities<'a> {
    /// # Errors
    /// Fails if a value is not a number, which has no rank.
    pub(super) fn new(values: Vec<f32>, owners: &'a [u32], images: usize) -> Result<Self> {
        assert_eq!(values.len(), images * owners.len());
        if let Some(place) = values.iter().position(|value| value.is_nan()) {
            let (image, text) = (place / owners.len(), place % owners.len());
            return Err(Error::value(format!(
                "the similarity of image {image} and text {text} is not a number; \
                 the features or the weights hold values that are not finite"
            )));
        }
        Ok(Self { values, owners, images })
    }

    pub(super) fn get(&self, image: u32, text: u32) -> f32 {
        self.row(image as usize)[text as usize]
    }

    /// [T]
    fn row(&self, image: usize) -> &[f32] {
        &self.values[image * self.owners.len()..(image + 1) * self.owners.len()]
    }

    /// What `each` makes of the similarities [I] of every text, given its number.
    fn of_columns<R: Send>(&self, each: impl Fn(usize, &[f32]) -> R + Sync) -> Vec<R> {
        let texts: Vec<usize> = (0..self.owners.len()).collect();
        let of_block = |block: &[usize]| {
            let mut columns = vec![Vec::with_capacity(self.images); block.len()];
            for image in 0..self.images {
                let row = &self.row(image)[block[0]..block[0] + block.len()];
                columns.iter_mut().zip(row).for_each(|(column, &value)| column.push(value));
            }
            block.iter().zip(columns).map(|(&text, column)| each(text, &column)).collect::<Vec<R>>()
        };
        texts.par_chunks(TEXTS_AT_A_TIME).flat_map(of_block).collect()
    }

    /// For every image the `count` texts of the largest similarity.
    pub(super) fn texts_of_images(&self, count: usize) -> Vec<Vec<u32>> {
        (0..self.images).into_par_iter().map(|image| first(self.row(image), count)).collect()
    }

    /// For every text the `count` images of the largest similarity.
    pub(super) fn images_of_texts(&self, count: usize) -> Vec<Vec<u32>> {
        self.of_columns(|_, column| first(column, count))
    }

    /// Pairs (image, text) that do not match: for every text the likest image that it is not of, and for
    /// every image the likest text that is not of it.
    pub(super) fn hard_negatives(&self) -> Vec<(u32, u32)> {
        let of_texts = self.of_columns(|text, column| {
            let others = (0..self.images as u32).filter(|&image| image != self.owners[text]);
            likest(column, others).map(|image| (image, text as u32))
        });
        let of_images = (0..self.images as u32).into_par_iter().map(|image| {
            let others = (0..self.owners.len() as u32).filter(|&text| self.owners[text as usize] != image);
            likest(self.row(image as usize), others).map(|text| (image, text))
        });
        of_texts.into_par_iter().chain(of_images).flatten().collect()
    }

    /// For every image the numbers of its texts.
    fn texts_by_owner(&self) -> Vec<Vec<u32>> {
        let mut texts = vec![Vec::new(); self.images];
        self.owners.iter().zip(0..).for_each(|(&image, text)| texts[image as usize].push(text));
        texts
    }

    /// For every image the rank of the first of its texts among all texts; none if it has no text.
    pub(super) fn ranks_of_texts(&self) -> Vec<Option<usize>> {
        let owned = self.texts_by_owner();
        let rank = |(image, owned): (usize, &Vec<u32>)| {
            let row = self.row(image);
            likest(row, owned.iter().copied()).map(|text| rank(row, text))
        };
        owned.par_iter().enumerate().map(rank).collect()
    }

    /// For every text the rank of its image among all images.
    pub(super) fn ranks_of_images(&self) -> Vec<Option<usize>> {
        self.of_columns(|text, column| Some(rank(column, self.owners[text])))
    }

    /// For every image the rank of the first of its texts, if `candidates` come in the order of `score`
    /// before all others, which stay where they are in `ranks`.
    pub(super) fn reranked_texts(
        &self,
        ranks: &[Option<usize>],
        candidates: &[Vec<u32>],
        score: impl Fn(u32, u32) -> f32 + Sync,
    ) -> Vec<Option<usize>> {
        let owned = self.texts_by_owner();
        let of_image = |image: usize| {
            let scores: Vec<(u32, f32)> =
                candidates[image].iter().map(|&text| (text, score(image as u32, text))).collect();
            reranked(&scores, |text| owned[image].contains(&text)).or(ranks[image])
        };
        (0..self.images).into_par_iter().map(of_image).collect()
    }

    /// The same for every text and its image.
    pub(super) fn reranked_images(
        &self,
        ranks: &[Option<usize>],
        candidates: &[Vec<u32>],
        score: impl Fn(u32, u32) -> f32 + Sync,
    ) -> Vec<Option<usize>> {
        let of_text = |text: usize| {
            let scores: Vec<(u32, f32)> =
                candidates[text].iter().map(|&image| (image, score(image, text as u32))).collect();
            reranked(&scores, |image| image == self.owners[text]).or(ranks[text])
        };
        (0..self.owners.len()).into_par_iter().map(of_text).collect()
    }
}

/// The larger score first, then the smaller number.
fn order(a: (u32, f32), b: (u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The numbers of the `count` largest of `values`.
fn first(values: &[f32], count: usize) -> Vec<u32> {
    let mut numbered: Vec<(u32, f32)> = (0..).zip(values.iter().copied()).collect();
    if count < numbered.len() {
        numbered.select_nth_unstable_by(count, |&a, &b| order(a, b));
        numbered.truncate(count);
    }
    numbered.into_iter().map(|(number, _)| number).collect()
}

/// The number of the largest of `values` among `numbers`.
fn likest(values: &[f32], numbers: impl Iterator<Item = u32>) -> Option<u32> {
    let numbered = numbers.map(|number| (number, values[number as usize]));
    numbered.min_by(|&a, &b| order(a, b)).map(|(number, _)| number)
}

/// How many of `values` come before that of `number`.
fn rank(values: &[f32], number: u32) -> usize {
    let own = (number, values[number as usize]);
    (0..).zip(values.iter().copied()).filter(|&other| order(other, own) == Ordering::Less).count()
}

/// How many of `scores` come before the first that is the `own`.
fn reranked(scores: &[(u32, f32)], own: impl Fn(u32) -> bool) -> Option<usize> {
    let best = scores.iter().copied().filter(|&(number, _)| own(number)).min_by(|&a, &b| order(a, b))?;
    Some(scores.iter().filter(|&&other| order(other, best) == Ordering::Less).count())
}

/// Of the ranks of texts for images, and of images for texts.
pub(super) fn recalls([texts, images]: &[Vec<Option<usize>>; 2]) -> Recalls {
    let at = |ranks: &[Option<usize>]| {
        let ranks: Vec<usize> = ranks.iter().copied().flatten().collect();
        [1, 5, 10].map(|k| ranks.iter().filter(|&&rank| rank < k).count() as f64 / ranks.len() as f64)
    };
    Recalls { image_to_text: at(texts), text_to_image: at(images) }
}
