//! Where a text can be cut without a change to its tokens, so that a long one is tokenized from its beginning,
//! piece by piece, and no further than its tokens are asked for.

use tokenizers::normalizers::BertNormalizer;
use tokenizers::{AddedToken, NormalizedString, Normalizer};

/// Bytes of a text that are tokenized together, if there is a place to cut after them.
const PIECE_BYTES: usize = 4096;

/// Longest text without a place to cut, in bytes.
const UNCUT_BYTES: usize = 1 << 16;

/// The ASCII characters before which any text can be cut. They are white space and punctuation, where words
/// begin and end whatever is around them, if no added token holds them but at its start: one might then reach
/// across the cut.
#[derive(Debug)]
pub(super) struct Cuts([bool; 128]);

impl Cuts {
    /// The places for a tokenizer with these added tokens.
    pub(super) fn new(added: &[AddedToken], normalizer: &BertNormalizer) -> tokenizers::Result<Self> {
        let is_space = |character: char| matches!(character, ' ' | '\t' | '\n' | '\r');
        // What `single_word` means by a word has the underscore in it.
        let ends_words = |character: char| character.is_ascii_punctuation() && character != '_';
        let mut places = [false; 128];
        for (code, place) in (0_u8..).zip(&mut places) {
            *place = is_space(char::from(code)) || ends_words(char::from(code));
        }
        for token in added {
            let mut normalized = NormalizedString::from(token.content.as_str());
            normalizer.normalize(&mut normalized)?;
            for content in [token.content.as_str(), normalized.get()] {
                for (index, character) in content.chars().enumerate() {
                    // A token that has to be a word by itself is one by what stands before it.
                    if index == 0 && !token.single_word {
                        continue;
                    }
                    for (code, place) in (0_u8..).zip(&mut places) {
                        let other = char::from(code);
                        // Normalisation makes one white space of all.
                        *place &= other != character && !(is_space(other) && character.is_whitespace());
                    }
                }
            }
        }
        Ok(Self(places))
    }

    /// `text` in two parts whose tokens are those of the whole, the first a few thousand bytes long where the
    /// text allows it. The error is a sentence without its subject.
    pub(super) fn split<'t>(&self, text: &'t str) -> Result<(&'t str, &'t str), String> {
        let is_place = |byte: &u8| self.0.get(usize::from(*byte)) == Some(&true);
        let after = text.as_bytes().get(PIECE_BYTES..).unwrap_or_default();
        let cut = after.iter().position(is_place).map_or(text.len(), |place| PIECE_BYTES + place);
        if cut > UNCUT_BYTES {
            return Err(format!(
                "has {cut} bytes without a space or punctuation; at most {UNCUT_BYTES} are read"
            ));
        }
        Ok(text.split_at(cut))
    }
}
