//! Captions as LAVIS trains on them.

/// Most words kept of a caption.
const WORDS: usize = 50;

/// `text` as LAVIS's `BlipCaptionProcessor` has it: in lower case, with `.!"()*#:;~` turned into
/// spaces, two or more white spaces into one, none at the ends, and at most 50 words.
pub fn clean_caption(text: &str) -> String {
    let spaced: String = text
        .to_lowercase()
        .chars()
        .map(|character| if ".!\"()*#:;~".contains(character) { ' ' } else { character })
        .collect();
    let mut collapsed = String::with_capacity(spaced.len());
    let mut characters = spaced.chars().peekable();
    while let Some(character) = characters.next() {
        let run = is_space(character) && characters.next_if(|&next| is_space(next)).is_some();
        while run && characters.next_if(|&next| is_space(next)).is_some() {}
        // One white space alone stays what it is.
        collapsed.push(if run { ' ' } else { character });
    }
    let trimmed = collapsed.trim_end_matches('\n').trim_matches(' ');
    trimmed.split(' ').take(WORDS).collect::<Vec<_>>().join(" ")
}

/// White space as Python's regular expressions have it.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}
