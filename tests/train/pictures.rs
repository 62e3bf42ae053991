//! Training from picture files, with a frozen image encoder.

use crate::bert;
use crate::common::*;
use crate::paths::path;
use qformer::Tokenizer;
use qformer::params::safetensors::Checkpoint;
use std::fs;

/// A data set of three pictures in the workplace's file data.jsonl.
pub(crate) fn write_pictures(place: &Workplace) {
    let line = |(name, caption): (&str, &str)| {
        let image = path("tests/golden/retrieval/images").join(format!("{name}.png"));
        format!("{}\n", serde_json::json!({ "image": image, "caption": caption }))
    };
    let examples =
        [("astronaut", "a smiling astronaut"), ("chelsea", "a red cat"), ("coffee", "a cup of coffee")];
    fs::write(place.path("data.jsonl"), examples.map(line).concat()).unwrap();
}

fn read(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let mut values = Vec::new();
    checkpoint.read_f32(name, |_, block| values.extend_from_slice(block)).unwrap();
    values
}

#[test]
fn checkpoints_of_a_run_on_pictures_carry_the_image_encoder() {
    let (place, golden) = (Workplace::new(), path("tests/golden/retrieval"));
    write_pictures(&place);
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
fn a_new_model_begins_from_bert_and_sees_by_the_encoder_of_a_checkpoint() {
    let (place, golden) = (Workplace::new(), path("tests/golden/retrieval/model"));
    write_pictures(&place);
    let folder = place.path("bert");
    fs::create_dir(&folder).unwrap();
    let tensors = bert::tiny_bert(|tensor, index| 0.05 * ((tensor * 31 + index) as f32).sin());
    bert::save(&folder.join("model.safetensors"), &tensors);
    Tokenizer::write_tiny(&folder).unwrap();
    let train = |output: &str, vision_model: &[&str]| {
        let mut command = command();
        command.args(["train", "stage1", "--preset", "tiny", "--batch-size", "3", "--steps", "2"]);
        command.args(["--save-frequency", "1", "--lr", "1e-6", "--bert"]).arg(&folder);
        command.arg("--data").arg(place.path("data.jsonl")).args(vision_model);
        run(command.arg("--output").arg(place.path(output)))
    };
    let encoder = ["--vision-model", golden.to_str().unwrap()];
    train("run", &encoder).with(0, &["image encoder ", "step 2/2"]);
    let trained = Checkpoint::open(&place.checkpoint("run", 1)).unwrap();
    let own = Checkpoint::open(&golden).unwrap();
    let frozen = "vision_model.encoder.layers.0.mlp.fc1.weight";
    assert!(read(&trained, frozen) == read(&own, frozen));
    // A step of AdamW goes as far as the learning rate, and decays by less.
    let is_near = |found: &[f32], begun: &[f32]| found.iter().zip(begun).all(|(a, b)| (a - b).abs() < 2e-6);
    let query = "attention.attention.query.weight";
    let name = format!("qformer.encoder.layer.0.{query}");
    let (_, begun) = &tensors["bert.encoder.layer.0.attention.self.query.weight"];
    assert!(is_near(&read(&trained, &name), begun) && !is_near(&read(&own, &name), begun));
    let norm = "vision_model.post_layernorm.weight";
    assert!(is_near(&read(&trained, norm), &[1.0; WIDTH]));
    // It goes on as if it had not been interrupted.
    let result = place.result("run", 2);
    fs::remove_dir_all(place.checkpoint("run", 2)).unwrap();
    run(&mut place.resume("run")).with(0, &["continuing from", "step 2/2"]);
    assert!(place.result("run", 2) == result);
    train("blind", &[]).with(2, &["without a trained image encoder", "--vision-model DIR"]);
    // A run on features leaves the encoder out of its checkpoints.
    run(&mut place.train("features", 1, &[])).with(0, &[]);
    let blind = place.checkpoint("features", 1);
    train("blind", &["--vision-model", blind.to_str().unwrap()]).with(1, &["has no image encoder"]);
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
