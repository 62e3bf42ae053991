//! Parts of the pages that commands write.

mod maps;

pub(crate) use maps::{Picture, looks};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// How a page begins, up to its heading, with the style of all pages.
pub(crate) fn head(title: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\n\
         <style>{}</style></head>\n<body>\n",
        include_str!("style.css")
    )
}

/// A picture with what stands under it.
pub(crate) fn figure(uri: &str, caption: &str) -> String {
    format!("<figure><img src=\"{uri}\" alt=\"\"><figcaption>{caption}</figcaption></figure>")
}

/// An image file of a kind ("png", "jpeg") as an address that holds it.
pub(crate) fn uri(kind: &str, bytes: &[u8]) -> String {
    format!("data:image/{kind};base64,{}", BASE64_STANDARD.encode(bytes))
}

/// A text from outside as HTML shows it.
pub(crate) fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            // What a terminal would obey has no place in a page either.
            c if c.is_control() => html.push(char::REPLACEMENT_CHARACTER),
            c => html.push(c),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn a_text_from_outside_is_text() {
        assert_eq!(escaped("<b a=\"1\">&\u{7}é"), "&lt;b a=&quot;1&quot;&gt;&amp;\u{fffd}é");
    }
}
