//! Training from picture files, with a frozen image encoder.

use crate::common::*;
use crate::paths::path;
use qformer::params::safetensors::Checkpoint;
use std::fs;

#[test]
fn checkpoints_of_a_run_on_pictures_carry_the_image_encoder() {
    let (place, golden) = (Workplace::new(), path("tests/golden/retrieval"));
    let line = |(name, caption): (&str, &str)| {
        let image = golden.join(format!("images/{name}.png"));
        format!("{}\n", serde_json::json!({ "image": image, "caption": caption }))
    };
    let examples =
        [("astronaut", "a smiling astronaut"), ("chelsea", "a red cat"), ("coffee", "a cup of coffee")];
    fs::write(place.path("data.jsonl"), examples.map(line).concat()).unwrap();
    let mut command = command();
    command.args(["train", "stage1", "--model"]).arg(golden.join("model"));
    command.arg("--data").arg(place.path("data.jsonl"));
    command.args(["--batch-size", "3", "--steps", "2", "--save-frequency", "1", "--lr", "1e-3"]);
    run(command.arg("--output").arg(place.path("run"))).with(
        0,
        &[
            "begun anew",
            "temp",
            "cls.predictions",
            "image encoder ",
            "image encoder's activations ",
            "step 2/2",
            "img/s",
        ],
    );

    let folder = place.checkpoint("run", 2);
    let (trained, begun) =
        (Checkpoint::open(&folder).unwrap(), Checkpoint::open(&golden.join("model")).unwrap());
    let read = |checkpoint: &Checkpoint, name: &str| {
        let mut values = Vec::new();
        checkpoint.read_f32(name, |_, block| values.extend_from_slice(block)).unwrap();
        values
    };
    // What is frozen stays, to the bit; what is trained does not.
    let frozen = "vision_model.encoder.layers.0.mlp.fc1.weight";
    assert!(read(&trained, frozen) == read(&begun, frozen));
    for name in ["query_tokens", "vision_model.post_layernorm.weight", "qformer.layernorm.bias"] {
        assert!(read(&trained, name) != read(&begun, name), "{name}");
    }
    // The program reads its own checkpoint.
    let mut score = crate::common::command();
    score.args(["score", "--text", "a red cat", "--model"]).arg(&folder);
    let scored = score.arg("--images").arg(golden.join("images/chelsea.png")).output().unwrap();
    assert!(scored.status.success() && !scored.stdout.is_empty(), "{scored:?}");
    // And the run goes on from it.
    run(&mut place.resume("run")).with(0, &["continuing from"]);
}

#[test]
fn a_model_trained_to_match_by_cosines_is_evaluated_by_them() {
    let place = Workplace::new();
    run(&mut place.train("run", 2, &["--matching", "max-similarity"])).with(0, &[]);
    let mut evaluate = command();
    evaluate.arg("evaluate").arg("--model").arg(place.checkpoint("run", 2)).arg("--json");
    evaluate.arg("--features").arg(place.path("features.safetensors"));
    let ended = evaluate.arg("--captions").arg(place.path("captions.jsonl")).output().unwrap();
    let (printed, told) =
        (String::from_utf8(ended.stdout).unwrap(), String::from_utf8(ended.stderr).unwrap());
    assert!(ended.status.success() && told.contains("matched by the largest cosine"), "{told}");
    let found: serde_json::Value = serde_json::from_str(&printed).unwrap();
    // A pair is told a match if 10·cosine - 5 is above 0, as far as two steps of 1e-3 have left it.
    let texts: Vec<String> = lines(&place.path("captions.jsonl"))
        .iter()
        .flat_map(|line| {
            line["caption"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned())
        })
        .collect();
    let score = |more: &[&str]| {
        let mut score = command();
        score.args(["score", "--json", "--model"]).arg(place.checkpoint("run", 2)).args(more);
        score.arg("--features").arg(place.path("features.safetensors")).arg("--text").args(&texts);
        let ended = score.output().unwrap();
        (
            serde_json::from_slice::<serde_json::Value>(&ended.stdout).unwrap(),
            String::from_utf8(ended.stderr).unwrap(),
        )
    };
    // Scores are the cosines too, unless another form is asked for.
    let (scores, told) = score(&[]);
    assert!(
        scores["matching"] == "max-similarity" && told.contains("matched by the largest cosine"),
        "{told}"
    );
    assert_eq!(score(&["--matching", "max-similarity"]), (scores.clone(), String::new()));
    let (classified, told) = score(&["--matching", "classifier"]);
    assert!(
        classified["matching"] == "classifier" && told.contains("warning: the checkpoint was trained"),
        "{told}"
    );
    let matches = |&text: &usize| {
        let cosine = scores["itm"][text / 2][text].as_f64().unwrap();
        assert!((cosine - 0.5).abs() > 0.01, "{cosine} is too near to the edge to tell");
        cosine > 0.5
    };
    let share = (0..texts.len()).filter(matches).count() as f64 / texts.len() as f64;
    assert_eq!(found["itm_accuracy_positives"], share);
    assert!(found["caption_loss"].as_f64().unwrap() > 0.0);
}
