//! Long texts are tokenized piece by piece, as far as tokens are asked for.

use super::{folder_with, with};
use qformer::Tokenizer;
use qformer::params::init::{key, uniform};
use serde_json::json;

/// The library's own tokenizer takes the text whole.
#[test]
fn the_tokens_of_a_long_text_are_those_of_the_whole() {
    let snippets = [
        "a",
        "cat",
        "red",
        " ",
        " ",
        "  ",
        "\t",
        "\n",
        "\u{a0}",
        "\u{2028}",
        "\u{b}",
        "\u{85}",
        "\u{0}",
        "\u{301}",
        "=",
        "\u{338}",
        "-",
        "_",
        "]",
        "[",
        "]]",
        "[SEP]",
        "[DEC]",
        "[dec]",
        "SEP",
        "猫",
        "\u{f900}",
        "。",
        "\u{37e}",
        "É",
        "ﷺ",
        "\u{1f600}",
        "x",
        "X",
        "b",
        "\u{200d}",
        ".",
        ",",
        "red cat",
        "a-b",
        "İ",
        "Σ",
        "\u{fffd}",
    ];
    let (stream, mut drawn, mut loaded) = (key(1, "texts"), 0, 0);
    for content in ["[DEC]", "red cat", "a-b", "]]x", "-=", " cat", "猫 x", "x_", "=]", "\u{37e}="] {
        for flags in 0..8 {
            let token = json!({ "id": 85, "content": content, "special": true, "single_word": flags & 1 > 0,
                "lstrip": flags & 2 > 0, "rstrip": flags & 2 > 0, "normalized": flags & 4 > 0 });
            let definition = with("/added_tokens/5", token);
            let ours = Tokenizer::load(folder_with(&[("tokenizer.json", &definition)]).path()).unwrap();
            let whole = tokenizers::Tokenizer::from_bytes(&definition).unwrap();
            loaded += 1;
            let mut text = String::new();
            while text.len() < 9_000 {
                drawn += 1;
                text.push_str(snippets[(uniform(stream, drawn) * snippets.len() as f64) as usize]);
            }
            let encoding = whole.encode_fast(&*text, false).unwrap();
            let expected = encoding.get_ids();
            for length in [3, 64, 2_000, 20_000] {
                let ids = ours.encode(&text, length).unwrap();
                let words = &ids[1..ids.len() - 1];
                assert!(
                    words == &expected[..expected.len().min(length - 2)],
                    "{content:?}, {flags}: {text:?}"
                );
            }
        }
    }
    assert_eq!(loaded, 80);
}
