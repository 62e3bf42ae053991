//! Small parts of a page.

/// A picture with what stands under it.
pub(super) fn figure(uri: &str, caption: &str) -> String {
    format!("<figure><img src=\"{uri}\" alt=\"\"><figcaption>{caption}</figcaption></figure>")
}

/// A PNG file as an address that holds it.
pub(super) fn png_uri(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut uri = String::from("data:image/png;base64,");
    for bytes in bytes.chunks(3) {
        let bits =
            bytes.iter().chain(&[0; 2]).take(3).fold(0_usize, |bits, &byte| bits << 8 | usize::from(byte));
        for place in 0..4 {
            let digit = char::from(DIGITS[bits >> (18 - 6 * place) & 63]);
            uri.push(if place <= bytes.len() { digit } else { '=' });
        }
    }
    uri
}

/// Such as 97 %.
pub(super) fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// `said`, its words that differ from those of `truth` struck out and followed by the right ones.
pub(super) fn corrected(said: &str, truth: &str) -> String {
    let (said, truth): (Vec<&str>, Vec<&str>) = (said.split(' ').collect(), truth.split(' ').collect());
    let words = (0..said.len().max(truth.len())).map(|place| match (said.get(place), truth.get(place)) {
        (Some(word), Some(right)) if word == right => (*word).to_owned(),
        (word, right) => {
            let wrong = word.map(|word| format!("<del>{word}</del>"));
            let right = right.map(|word| format!("<ins>{word}</ins>"));
            wrong.into_iter().chain(right).collect::<Vec<_>>().join(" ")
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_base64() {
        let texts = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (bytes, expected) in texts {
            assert_eq!(png_uri(bytes.as_bytes()), format!("data:image/png;base64,{expected}"));
        }
    }

    #[test]
    fn wrong_words_are_struck_out() {
        assert_eq!(corrected("one red ring", "one red ring"), "one red ring");
        assert_eq!(corrected("one red ring", "two red"), "<del>one</del> <ins>two</ins> red <del>ring</del>");
    }
}
