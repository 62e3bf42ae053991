//! Where a text can be cut without a change to its tokens, so that a long one is tokenized from its beginning,
//! piece by piece, and no further than its tokens are asked for.

use std::collections::HashSet;

use tokenizers::normalizers::BertNormalizer;
use tokenizers::{AddedToken, NormalizedString, Normalizer};

/// Bytes of a text that are tokenized together, if there is a place to cut after them.
const PIECE_BYTES: usize = 4096;

/// Longest text without a place to cut, in bytes.
const UNCUT_BYTES: usize = 1 << 18;

/// Places where any text can be cut: before the white space and punctuation of ASCII, where words begin and end
/// whatever is around them, unless an added token might reach across.
#[derive(Debug)]
pub(super) struct Cuts {
    /// Whether a text can be cut before a character.
    places: [bool; 128],
    /// Bytes that follow each other in an added token that is found in the text as it stands.
    pairs: HashSet<[u8; 2]>,
}

impl Cuts {
    /// The places for a tokenizer with these added tokens.
    pub(super) fn new(added: &[AddedToken], normalizer: &BertNormalizer) -> tokenizers::Result<Self> {
        let places = std::array::from_fn(|code| {
            let character = char::from(code as u8);
            is_space(character) || character.is_ascii_punctuation()
        });
        let mut cuts = Self { places, pairs: HashSet::new() };
        for token in added {
            if token.single_word {
                // Whether such a token is found depends on the character before it, and a word in that sense
                // may have an underscore.
                cuts.exclude('_');
                cuts.exclude_all(token.content.chars().take(1));
            }
            // White space before a token may belong to the one before that.
            cuts.exclude_all(token.content.chars().take(1).filter(|first| first.is_whitespace()));
            if token.normalized {
                let mut normalized = NormalizedString::from(token.content.as_str());
                normalizer.normalize(&mut normalized)?;
                let first = normalized.get().chars().take(1);
                cuts.exclude_all(first.filter(|first| token.single_word || first.is_whitespace()));
                cuts.exclude_all(token.content.chars().skip(1));
                cuts.exclude_all(normalized.get().chars().skip(1));
            } else {
                cuts.pairs.extend(token.content.as_bytes().windows(2).map(|pair| [pair[0], pair[1]]));
            }
        }
        Ok(cuts)
    }

    fn exclude_all(&mut self, characters: impl Iterator<Item = char>) {
        characters.for_each(|character| self.exclude(character));
    }

    fn exclude(&mut self, character: char) {
        for (code, place) in (0_u8..).zip(&mut self.places) {
            let other = char::from(code);
            // Normalisation makes one white space of all.
            *place &= other != character && !(is_space(other) && character.is_whitespace());
        }
    }

    /// `text` in two parts whose tokens are those of the whole, the first a few thousand bytes long where the
    /// text allows it. The error is a sentence without its subject.
    pub(super) fn split<'t>(&self, text: &'t str) -> Result<(&'t str, &'t str), String> {
        let bytes = text.as_bytes();
        let is_place = |&end: &usize| {
            self.places.get(usize::from(bytes[end])) == Some(&true)
                && !self.pairs.contains(&[bytes[end - 1], bytes[end]])
        };
        let cut = (PIECE_BYTES..text.len()).find(is_place).unwrap_or(text.len());
        if cut > UNCUT_BYTES {
            return Err(format!(
                "has {cut} bytes without a space or punctuation; at most {UNCUT_BYTES} are read"
            ));
        }
        Ok(text.split_at(cut))
    }
}

/// White space that no normalisation takes out.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r')
}
