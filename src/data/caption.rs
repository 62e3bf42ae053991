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

#[cfg(test)]
mod tests {
    use super::clean_caption;

    /// What Python's `re` and `str` make of them by LAVIS's four steps.
    #[test]
    fn captions_are_cleaned_as_lavis_does() {
        for (text, cleaned) in [
            ("A man, riding a \"wave\" (on a surf-board)!", "a man, riding a wave on a surf-board"),
            ("  Two\t\tdogs\nrun.\n", "two dogs\nrun"),
            ("a\tb", "a\tb"),
            ("...", ""),
            ("It's 5:30~ish; #sun *hot*", "it's 5 30 ish sun hot"),
            ("É ÇA\u{a0} VA", "é ça va"),
            ("one\n\n", "one"),
            ("\ta cat \n", "\ta cat"),
            ("a\u{1c}\u{1d}b", "a b"),
            ("x .\n", "x"),
            ("ΟΔΟΣ.", "οδος"),
            ("İstanbul", "i\u{307}stanbul"),
        ] {
            assert_eq!(clean_caption(text), cleaned, "{text:?}");
        }
    }

    #[test]
    fn fifty_words_are_kept() {
        let words = |count: usize| (0..count).map(|i| i.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(clean_caption(&words(60)), words(50));
        assert_eq!(clean_caption(&words(50)), words(50));
    }
}
