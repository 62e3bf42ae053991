//! Many short texts, and captions, in little memory: a list's length is bounded by its file alone.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

/// Texts between two that know where they begin.
const BLOCK: usize = 16;

/// Longest text of a list, in bytes.
const TEXT_BYTES: usize = 1 << 20;

/// Texts, one after the other: little more than four bytes and its own for each.
#[derive(Debug, Default)]
pub struct TextList {
    bytes: String,
    lengths: Vec<u32>,
    /// Where every `BLOCK`th text begins.
    starts: Vec<usize>,
}

impl TextList {
    /// Appends `text`; the error is a sentence without its place.
    ///
    /// # Errors
    /// Fails if it is longer than a mebibyte.
    pub fn push(&mut self, text: &str) -> Result<(), String> {
        if text.len() > TEXT_BYTES {
            return Err(format!("a text of {} bytes; at most {TEXT_BYTES} are read", text.len()));
        }
        if self.len().is_multiple_of(BLOCK) {
            push(&mut self.starts, self.bytes.len());
        }
        push(&mut self.lengths, text.len() as u32);
        if self.bytes.capacity() - self.bytes.len() < text.len() {
            self.bytes.reserve_exact(text.len().max(self.bytes.len() / 4));
        }
        self.bytes.push_str(text);
        Ok(())
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Text `index`.
    ///
    /// # Panics
    /// Panics if there is none.
    pub fn get(&self, index: usize) -> &str {
        let block = index / BLOCK;
        let before = &self.lengths[block * BLOCK..index];
        let start = self.starts[block] + before.iter().map(|&length| length as usize).sum::<usize>();
        &self.bytes[start..start + self.lengths[index] as usize]
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|index| self.get(index))
    }
}

/// Appends `value` to `values`, whose memory grows by a quarter, where `Vec` would double it.
fn push<T>(values: &mut Vec<T>, value: T) {
    if values.len() == values.capacity() {
        values.reserve_exact((values.len() / 4).max(16));
    }
    values.push(value);
}

impl Serialize for TextList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for TextList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;

        impl<'de> Visitor<'de> for Texts {
            type Value = TextList;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of texts")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<TextList, A::Error> {
                let mut list = TextList::default();
                while let Some(text) = texts.next_element::<String>()? {
                    list.push(&text).map_err(de::Error::custom)?;
                }
                Ok(list)
            }
        }

        deserializer.deserialize_seq(Texts)
    }
}

/// A text about an image: an example to learn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caption<'a> {
    /// Which image of the data set.
    pub image: u32,
    /// As the data set has it; what is learnt from is [`Dataset::text`](super::Dataset::text).
    pub text: &'a str,
}

/// The captions of a data set, in its order.
#[derive(Debug, Default)]
pub struct Captions {
    images: Vec<u32>,
    texts: TextList,
}

impl Captions {
    /// Appends one; the error is a sentence without its place.
    pub(super) fn push(&mut self, image: u32, text: &str) -> Result<(), String> {
        self.texts.push(text)?;
        push(&mut self.images, image);
        Ok(())
    }

    /// Gives every image its number in `numbers`.
    pub(super) fn renumber(&mut self, numbers: &[u32]) {
        self.images.iter_mut().for_each(|image| *image = numbers[*image as usize]);
    }

    /// The places of the captions by their images' numbers, those of one image in their order.
    pub fn by_image(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        order.sort_unstable_by_key(|&index| (self.image(index as usize), index));
        order
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// The image of caption `index`.
    ///
    /// # Panics
    /// Panics if there is no such caption.
    pub fn image(&self, index: usize) -> u32 {
        self.images[index]
    }

    /// The text of caption `index`.
    ///
    /// # Panics
    /// Panics if there is no such caption.
    pub fn text(&self, index: usize) -> &str {
        self.texts.get(index)
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Caption<'_>> {
        self.images.iter().enumerate().map(|(index, &image)| Caption { image, text: self.text(index) })
    }
}
