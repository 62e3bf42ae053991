//! `qformer attention`

use crate::common::*;
use std::fs;

fn attention(more: &[&str]) -> Run {
    run([&["attention", "--model", &shown(&model())], more].concat())
}

#[test]
fn a_page_shows_every_query_over_every_image() {
    let folder = tempfile::tempdir().unwrap();
    let page = |name: &str, more: &[&str]| {
        let file = folder.path().join(name);
        let [photographs, output] = [golden().join("images"), file.clone()].map(|path| shown(&path));
        let arguments = [&["--image-dir", &photographs, "--output", &output], more].concat();
        assert_eq!(attention(&arguments).succeeds(), "");
        fs::read_to_string(file).unwrap()
    };
    let alone = page("alone.html", &[]);
    let queries = qformer::Config::load(&model()).unwrap().num_query_tokens;
    assert_eq!(alone.matches("<figcaption>query ").count(), 3 * queries);
    assert_eq!(
        alone.matches("data:image/jpeg;base64,").count(),
        2 * 3,
        "each photograph, and once for all its maps"
    );
    assert_eq!(alone.matches("data:image/png;base64,").count(), 3 * queries);
    for image in images() {
        assert!(alone.contains(&shown(&image)));
    }
    assert!(alone.ends_with("</body></html>\n"));
    // The same whatever the batch; other maps with a text, and in another layer.
    assert_eq!(alone, page("batches.html", &["--batch-size", "2"]));
    let first = page("first.html", &["--layer", "0"]);
    let told = page("text.html", &["--text", "a <b>red</b> cup"]);
    assert!(told.contains("a &lt;b&gt;red&lt;/b&gt; cup") && !told.contains("<b>red"));
    let maps = |page: &str| -> Vec<String> {
        page.split("data:image/png;base64,")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().to_owned())
            .collect()
    };
    assert!(maps(&alone) != maps(&told) && maps(&alone) != maps(&first));
}

#[test]
fn what_cannot_be_shown_is_refused_before_the_model_is_loaded() {
    let [image] = [shown(&images()[0])];
    attention(&["--images", &image, "--output", "page.png"]).misuses(&["page.png", ".html"]);
    attention(&["--images", &image]).misuses(&["--output"]);
    attention(&["--output", "page.html"]).misuses(&["--images"]);
    attention(&["--images", &image, "--text", " ", "--output", "page.html"]).misuses(&["--text is blank"]);
    attention(&["--images", &image, "--layer", "1", "--output", "page.html"]).misuses(&["layer 1", "0, 2"]);
    attention(&["--images", "none.png", "--output", "page.html"]).fails(&["none.png"]);
}
