//! COCO's captions JSON, and Karpathy's, read as streams of which only names and captions are kept.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::records::{self, Listing};
use crate::data::text_list::{Captions, TextList};
use crate::error::{Error, Result};
use crate::input::printable;

/// The split that Karpathy's `restval` is part of, as in LAVIS.
const TRAIN: &str = "train";

/// Most splits of a file.
const SPLITS: usize = 64;

/// The images of a COCO, Karpathy or LAVIS JSON file; of one with splits, those of `split`.
pub(in crate::data) fn read(path: &Path, split: Option<&str>) -> Result<Listing> {
    let (reader, is_array) = records::open(path)?;
    if is_array {
        if let Some(split) = split {
            let what = format!("its images have no splits, of which {split} could be taken");
            return Err(Error::input(path, what));
        }
        return records::merged(path, records::read(path)?);
    }
    let mut coco = Coco::default();
    records::read_json(path, reader, Whole(&mut coco))?;
    let chosen = coco.choose(path, split)?;
    coco.listing(&chosen).map_err(|what| Error::input(path, what))
}

/// What a file tells.
#[derive(Default)]
struct Coco {
    /// Paths below the folder of images, blank where an image has none.
    names: TextList,
    /// Ids as JSON has them, blank where an image has none.
    ids: TextList,
    /// A place in `split_names` for each image with a split.
    splits: Vec<Option<u8>>,
    split_names: Vec<String>,
    /// Captions within the images.
    sentences: Captions,
    /// Captions beside the images, and the ids of theirs.
    annotations: TextList,
    annotation_ids: TextList,
}

impl Coco {
    /// Whether an image is to be taken; all are if there are no splits.
    fn choose(&self, path: &Path, split: Option<&str>) -> Result<Vec<bool>> {
        let mut names: Vec<&str> = self.split_names.iter().map(String::as_str).collect();
        names.sort_unstable();
        let listed = printable(&names.join(", "));
        let Some(split) = split else {
            return match names[..] {
                [] => Ok(vec![true; self.names.len()]),
                _ => {
                    let what = format_args!("has the splits {listed}; choose one as `split`");
                    Err(Error::input(path, what).naming(&["split"]))
                }
            };
        };
        let is_of = |own: &str| if own == "restval" { split == TRAIN } else { own == split };
        let chosen: Vec<bool> = self
            .splits
            .iter()
            .map(|own| own.is_some_and(|own| is_of(&self.split_names[usize::from(own)])))
            .collect();
        if !chosen.contains(&true) {
            let what = format_args!("has no image of split {split}; its splits are: {listed}");
            return Err(Error::input(path, what));
        }
        Ok(chosen)
    }

    /// The chosen images with their captions, by image.
    fn listing(&self, chosen: &[bool]) -> std::result::Result<Listing, String> {
        let mut names = TextList::default();
        let mut numbers: Vec<Option<u32>> = Vec::with_capacity(chosen.len());
        for (name, &is_chosen) in self.names.iter().zip(chosen) {
            let number = names.len() as u32;
            numbers.push(is_chosen.then_some(number));
            if is_chosen {
                if name.is_empty() {
                    return Err(format!("image {number} has neither \"file_name\" nor \"filename\""));
                }
                names.push(name)?;
            }
        }
        let ids = self.by_id(&numbers)?;
        // COCO's annotations are in no order; an image's stay in theirs.
        let mut captions = Captions::default();
        for caption in self.sentences.iter() {
            if let Some(image) = numbers[caption.image as usize] {
                captions.push(image, caption.text)?;
            }
        }
        for (index, (id, text)) in self.annotation_ids.iter().zip(self.annotations.iter()).enumerate() {
            let found = ids.binary_search_by_key(&id, |&image| self.ids.get(image as usize)).ok();
            let Some(image) = found.and_then(|place| numbers[ids[place] as usize]) else {
                let id = printable(id);
                return Err(format!("annotation {index} is of image {id}, which is the id of no image"));
            };
            captions.push(image, text)?;
        }
        let mut sorted = Captions::default();
        for index in captions.by_image() {
            sorted.push(captions.image(index as usize), captions.text(index as usize))?;
        }
        Ok(Listing { names, captions: sorted })
    }

    /// The images that have numbers and ids, by their ids, which differ.
    fn by_id(&self, numbers: &[Option<u32>]) -> std::result::Result<Vec<u32>, String> {
        let has_id =
            |&image: &u32| numbers[image as usize].is_some() && !self.ids.get(image as usize).is_empty();
        let mut order: Vec<u32> = (0..numbers.len() as u32).filter(has_id).collect();
        let id = |image: u32| self.ids.get(image as usize);
        order.sort_unstable_by(|&a, &b| id(a).cmp(id(b)).then(a.cmp(&b)));
        match order.windows(2).find(|pair| id(pair[0]) == id(pair[1])) {
            Some(pair) => {
                let number = numbers[pair[1] as usize].unwrap_or_default();
                Err(format!("image {number} has the id of an earlier one"))
            }
            None => Ok(order),
        }
    }

    fn split(&mut self, name: &str) -> std::result::Result<u8, String> {
        let known = self.split_names.iter().position(|known| known == name);
        if known.is_none() && self.split_names.len() == SPLITS {
            return Err(format!("more than {SPLITS} splits"));
        }
        let place = known.unwrap_or_else(|| {
            self.split_names.push(name.to_owned());
            self.split_names.len() - 1
        });
        Ok(place as u8)
    }
}

/// An id as JSON has it: digits, or a text in quotes.
struct Id(String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        struct IdVisitor;

        impl Visitor<'_> for IdVisitor {
            type Value = Id;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an id that is a whole number or a text")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> std::result::Result<Id, E> {
                Ok(Id(number.to_string()))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Id, E> {
                Ok(Id(format!("\"{text}\"")))
            }
        }

        json.deserialize_any(IdVisitor)
    }
}

#[derive(Deserialize)]
struct Annotation {
    image_id: Id,
    caption: String,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

/// Reads the whole file.
struct Whole<'a>(&'a mut Coco);

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Part {
    Images,
    Annotations,
    #[serde(other)]
    Other,
}

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with \"images\"")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut parts: A) -> std::result::Result<(), A::Error> {
        let coco = self.0;
        let (mut has_images, mut has_annotations) = (false, false);
        while let Some(part) = parts.next_key()? {
            match part {
                Part::Images if has_images => return Err(A::Error::duplicate_field("images")),
                Part::Images => {
                    parts.next_value_seed(List::Images(coco))?;
                    has_images = true;
                }
                Part::Annotations if has_annotations => {
                    return Err(A::Error::duplicate_field("annotations"));
                }
                Part::Annotations => {
                    parts.next_value_seed(List::Annotations(coco))?;
                    has_annotations = true;
                }
                Part::Other => drop(parts.next_value::<IgnoredAny>()?),
            }
        }
        if has_images { Ok(()) } else { Err(A::Error::missing_field("images")) }
    }
}

/// Reads one of the lists.
enum List<'a> {
    Images(&'a mut Coco),
    Annotations(&'a mut Coco),
    /// Those of an image.
    Sentences(u32, &'a mut Captions),
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> std::result::Result<(), A::Error> {
        loop {
            let is_last = match &mut self {
                Self::Images(coco) => items.next_element_seed(Image(coco))?.is_none(),
                Self::Annotations(coco) => match items.next_element::<Annotation>()? {
                    Some(Annotation { image_id: Id(id), caption }) => {
                        coco.annotation_ids.push(&id).map_err(A::Error::custom)?;
                        coco.annotations.push(&caption).map_err(A::Error::custom)?;
                        false
                    }
                    None => true,
                },
                Self::Sentences(image, captions) => match items.next_element::<Sentence>()? {
                    Some(Sentence { raw }) => {
                        captions.push(*image, &raw).map_err(A::Error::custom)?;
                        false
                    }
                    None => true,
                },
            };
            if is_last {
                return Ok(());
            }
        }
    }
}

/// Reads an image.
struct Image<'a>(&'a mut Coco);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Id,
    FileName,
    Filepath,
    Filename,
    Split,
    Sentences,
    #[serde(other)]
    Other,
}

impl<'de> DeserializeSeed<'de> for Image<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Image<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an image's object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> std::result::Result<(), A::Error> {
        let coco = self.0;
        let mut seen = HashSet::new();
        let (mut id, mut split): (Option<Id>, Option<String>) = (None, None);
        let (mut folder, mut file, mut path): (Option<String>, Option<String>, Option<String>) =
            (None, None, None);
        while let Some(field) = fields.next_key::<Field>()? {
            if field != Field::Other && !seen.insert(field) {
                return Err(A::Error::custom(format_args!("the field {field:?} of an image comes twice")));
            }
            match field {
                Field::Id => id = fields.next_value()?,
                Field::FileName => path = fields.next_value()?,
                Field::Filepath => folder = fields.next_value()?,
                Field::Filename => file = fields.next_value()?,
                Field::Split => split = fields.next_value()?,
                Field::Sentences => {
                    let image = coco.names.len() as u32;
                    fields.next_value_seed(List::Sentences(image, &mut coco.sentences))?;
                }
                Field::Other => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        let name = match (folder, file, path) {
            (Some(folder), Some(file), _) => format!("{folder}/{file}"),
            (None, Some(name), _) | (_, None, Some(name)) => name,
            (_, None, None) => String::new(),
        };
        let split = split.map(|name| coco.split(&name)).transpose().map_err(A::Error::custom)?;
        coco.splits.push(split);
        coco.ids.push(&id.map_or_else(String::new, |Id(id)| id)).map_err(A::Error::custom)?;
        coco.names.push(&name).map_err(A::Error::custom)
    }
}
