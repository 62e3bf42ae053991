//! `qformer caption`, `answer` and `chat` through a language model; `init` and `inspect` of such checkpoints.

use crate::common::*;
use qformer::Config;
use qformer::tokenizer::LanguageTokenizer;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tempfile::TempDir;

/// A golden folder's checkpoint, in a folder of its own, whose answers end at a newline as those of BLIP-2's OPT do.
fn checkpoint(name: &str) -> TempDir {
    let from = crate::paths::path("tests/golden").join(name).join("model");
    let folder = TempDir::new().unwrap();
    for entry in from.read_dir().unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let stop = if name == "dialogue-opt" { 202 } else { 1 };
    fs::write(folder.path().join("generation_config.json"), json!({"eos_token_id": stop}).to_string())
        .unwrap();
    folder
}

fn image(name: &str) -> String {
    shown(&crate::paths::path("tests/golden/dialogue-opt/images").join(name))
}

fn expected(name: &str) -> Value {
    let path = crate::paths::path("tests/golden").join(name).join("expected.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// What a run makes of lines on its standard input.
fn run_with_input<const N: usize>(arguments: [&str; N], input: &str) -> Run {
    let mut program = command();
    program.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    ended(child.wait_with_output().unwrap())
}

const CHECKPOINTS: [&str; 2] = ["dialogue-opt", "dialogue-t5"];
const TEMPLATE: &str = "Question: {} Answer:";

/// The reference's answer to a prompt about an image.
fn reference(name: &str, image: usize, prompt: &str) -> (String, Value) {
    let expected = expected(name);
    let of = |case: &&Value| case["image"] == image && case["prompt"] == prompt;
    let case = expected["prompts"].as_array().unwrap().iter().find(of).unwrap();
    // transformers kept T5's end token in the text.
    let text = case["text"].as_str().unwrap().trim().trim_end_matches("</s>");
    (text.to_owned(), case["beam5"].clone())
}

#[test]
fn answers_are_those_of_transformers() {
    for name in CHECKPOINTS {
        let model = checkpoint(name);
        let model = shown(model.path());
        let asked = ["--question", "what is in the picture?", "--prompt", TEMPLATE, "--json"];
        let how = ["--max-new-tokens", "14", "--num-beams", "5", "--length-penalty", "1"];
        let images =
            ["--images".to_owned(), image("coffee.png"), image("astronaut.png"), image("rocket.png")];
        let images: Vec<&str> = images.iter().map(String::as_str).collect();
        for batch in ["1", "8"] {
            let more =
                [&["answer", "--model", &model, "--batch-size", batch][..], &images, &asked, &how].concat();
            let found: Value = serde_json::from_str(&run(more).succeeds()).unwrap();
            for (index, found) in found.as_array().unwrap().iter().enumerate() {
                let (text, ids) = reference(name, index, "Question: what is in the picture? Answer:");
                assert_eq!(
                    (&found["answer"], &found["tokens"]),
                    (&Value::from(text), &ids),
                    "{name} {index}"
                );
                assert_eq!(found["question"], "what is in the picture?");
            }
        }
    }
}

#[test]
fn a_dialogue_through_a_pipe_is_a_line_for_a_line() {
    for name in CHECKPOINTS {
        let (model, [coffee, astronaut]) = (checkpoint(name), ["coffee.png", "astronaut.png"].map(image));
        let model = shown(model.path());
        let lines = format!(
            "what is in the picture?\n\nwhich colour is it?\n/image {astronaut}\nwhat is in the picture?\n/reset\n\
             what is in the picture?\n/quit\nis it on a table?\n"
        );
        let arguments =
            ["chat", "--model", &model, "--image", &coffee, "--num-beams", "5", "--max-new-tokens", "14"];
        let printed = run_with_input(arguments, &lines).succeeds();
        let answers: Vec<&str> = printed.lines().collect();
        let first = "Question: what is in the picture? Answer:";
        let (of_coffee, _) = reference(name, 0, first);
        let (of_astronaut, _) = reference(name, 1, first);
        assert_eq!(answers.len(), 4, "{printed}");
        assert_eq!([answers[0], answers[2], answers[3]], [&of_coffee[..], &of_astronaut, &of_astronaut]);
        // The history is part of the prompt.
        let second = format!("{first} {of_coffee}. Question: which colour is it? Answer:");
        assert_eq!(answers[1], reference(name, 0, &second).0, "{name}");
    }
}

#[test]
fn candidates_are_ranked_as_the_reference_ranks_them() {
    for name in CHECKPOINTS {
        let (model, folder) = (checkpoint(name), TempDir::new().unwrap());
        let case = expected(name)["ranking"][1].clone();
        let candidates: Vec<String> = serde_json::from_value(case["candidates"].clone()).unwrap();
        let list = folder.path().join("answers.txt");
        fs::write(&list, candidates.join("\n")).unwrap();
        let output = folder.path().join("answers.json");
        run([
            "answer",
            "--model",
            &shown(model.path()),
            "--images",
            &image("astronaut.png"),
            "--question",
            "what is in the picture?",
            "--prompt",
            TEMPLATE,
            "--candidates",
            &shown(&list),
            "--output",
            &shown(&output),
        ])
        .succeeds();
        let found: Value = serde_json::from_slice(&fs::read(&output).unwrap()).unwrap();
        let ranked = found[0]["candidates"].as_array().unwrap();
        let order: Vec<usize> = serde_json::from_value(case["order"].clone()).unwrap();
        for (found, candidate) in ranked.iter().zip(order) {
            assert_eq!(found["answer"], Value::from(candidates[candidate].clone()), "{name}");
            let nll = case["nll"][candidate].as_f64().unwrap();
            // What single precision leaves.
            assert!(
                (found["nll"].as_f64().unwrap() - nll).abs() < 1e-4 * nll.max(1.0),
                "{name} {found} {nll}"
            );
        }
        assert_eq!(found[0]["answer"], ranked[0]["answer"]);
    }
}

#[test]
fn captions_go_on_from_a_prompt_by_any_type_of_weights() {
    for name in CHECKPOINTS {
        let model = checkpoint(name);
        let captions = |more: &[&str]| {
            let (model, coffee) = (shown(model.path()), image("coffee.png"));
            let base =
                ["caption", "--model", &model, "--images", &coffee, "--json", "--max-new-tokens", "14"];
            let found: Value = serde_json::from_str(&run([&base[..], more].concat()).succeeds()).unwrap();
            found[0]["captions"][0]["tokens"].clone()
        };
        let (_, ids) = reference(name, 0, "a photo of");
        assert_eq!(captions(&["--prompt", "a photo of"]), ids, "{name}");
        assert_ne!(captions(&["--prompt", "Question: what is in the picture? Answer:"]), ids);
        for dtype in ["f32", "f16"] {
            // Of weights as small as these, 11 bits are enough for the same tokens.
            assert_eq!(captions(&["--prompt", "a photo of", "--dtype", dtype]), ids, "{name} {dtype}");
        }
        let model = shown(model.path());
        let run = |more: &[&str]| {
            run([&["caption", "--model", &model, "--images", &image("coffee.png")], more].concat())
        };
        run(&["--head", "qformer"]).fails(&["cls.predictions"]);
        run(&["--dtype", "int3"]).misuses(&["int3", "auto, f32, f16 and bf16"]);
    }
}

#[test]
fn new_checkpoints_are_whole_and_speak() {
    for preset in ["tiny-opt", "tiny-t5"] {
        let folder = TempDir::new().unwrap();
        let model = folder.path().join("model");
        let model = shown(&model);
        run(["init", "--preset", preset, "--output", &model]).succeeds();
        let report: Value =
            serde_json::from_str(&run(["inspect", "--json", "--values", &model]).succeeds()).unwrap();
        assert_eq!((&report["faults"], &report["not_finite"]), (&json!([]), &json!({})), "{preset}");
        let uses = report["uses"].as_array().unwrap();
        let tokenizer = LanguageTokenizer::load(model.as_ref()).unwrap();
        let image_token = Config::load(model.as_ref()).unwrap().image_token_index.unwrap();
        assert_eq!(tokenizer.image_token(), Some(image_token as u32));
        let speaks = uses.iter().find(|one| one["name"] == "write texts with a language model").unwrap();
        assert!(speaks["obstacle"].is_null(), "{speaks}");
        let coffee = image("coffee.png");
        let found =
            run(["answer", "--model", &model, "--images", &coffee, "--question", "what is it?", "--json"]);
        let found: Value = serde_json::from_str(&found.succeeds()).unwrap();
        assert!(!found[0]["tokens"].as_array().unwrap().is_empty(), "{found}");
    }
}

/// LAVIS's stage-2 files hold no language model: it is in a folder of its own.
#[test]
fn a_checkpoint_of_lavis_speaks_with_the_language_model_beside_it() {
    let folder = TempDir::new().unwrap();
    let golden = crate::paths::path("tests/golden/stage2-opt");
    let mut config: Value = serde_json::from_slice(&fs::read(golden.join("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("text_config");
    config["vision_config"] = json!({"model_type": "image_features", "image_tokens": 17, "hidden_size": 80, "layer_norm_eps": 1e-5});
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    fs::copy(golden.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    // The newline ends a text, as the file of LAVIS's own OPT says.
    let language = folder.path().join("llm");
    fs::create_dir(&language).unwrap();
    for entry in golden.join("llm").read_dir().unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, language.join(path.file_name().unwrap())).unwrap();
    }
    fs::write(language.join("generation_config.json"), json!({"eos_token_id": 202}).to_string()).unwrap();
    let features = features(folder.path(), &golden.join("batch.safetensors"));
    let model = shown(folder.path());
    let base = ["caption", "--model", &model, "--features", &shown(&features)];
    run(base).fails(&["cls.predictions"]);
    let how = ["--language-model", &shown(&language), "--max-new-tokens", "29", "--json"];
    let found: Value = serde_json::from_str(&run([&base[..], &how].concat()).succeeds()).unwrap();
    let expected: Value = serde_json::from_slice(&fs::read(golden.join("expected.json")).unwrap()).unwrap();
    for (index, found) in found.as_array().unwrap().iter().enumerate() {
        assert_eq!(found["captions"][0]["tokens"], expected["generated"][0]["ids"][index]);
        assert_eq!(found["caption"], expected["generated"][0]["text"][index]);
    }
}

/// The batch's features, under the name that such files have here.
fn features(folder: &Path, batch: &Path) -> PathBuf {
    let bytes = fs::read(batch).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let path = folder.join("features.safetensors");
    let tensor = file.tensor("vision_output").unwrap();
    safetensors::serialize_to_file([("vision_output", tensor)], None, &path).unwrap();
    path
}

/// Writes `change`d values to a file of the checkpoint.
fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(file);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::File::create(path).unwrap().write_all(json.to_string().as_bytes()).unwrap();
}

#[test]
fn what_cannot_be_answered_is_refused_with_the_remedy() {
    let answer = |model: &Path, more: &[&str]| {
        let (model, coffee) = (shown(model), image("coffee.png"));
        run([&["answer", "--model", &model, "--images", &coffee][..], more].concat())
    };
    let model = checkpoint("dialogue-opt");
    answer(model.path(), &["--question", "  "]).fails(&["question 0 is blank"]);
    answer(model.path(), &["--question", "what?", "--prompt", "Answer:"]).misuses(&["--prompt", "{}"]);
    answer(model.path(), &["--question", "what is <image>?"]).fails(&["<image>", "leave it out"]);
    let long = "what is that and ".repeat(40);
    answer(model.path(), &["--question", &long]).misuses(&["160", "--max-new-tokens", "shorten the prompt"]);
    // A model of retrieval has no language model.
    let retrieval = golden().join("model");
    answer(&retrieval, &["--question", "what?"]).fails(&["no language model", "--language-model"]);

    let changed = |file: &str, change: &dyn Fn(&mut Value)| {
        let model = checkpoint("dialogue-opt");
        edit(model.path(), file, change);
        model
    };
    for (file, change, fragments) in [
        (
            "config.json",
            (&|json: &mut Value| json["text_config"]["model_type"] = json!("gpt2")) as &dyn Fn(&mut Value),
            &["text_config.model_type is gpt2", "opt"][..],
        ),
        ("config.json", &|json| json["text_config"]["hidden_size"] = json!(32), &["shape"]),
        (
            "config.json",
            &|json| json["text_config"]["layer_norm_elementwise_affine"] = json!(false),
            &["layer_norm_elementwise_affine"],
        ),
        ("generation_config.json", &|json| json["eos_token_id"] = json!(5000), &["eos_token_id", "395"]),
        ("config.json", &|json| json["text_config"]["vocab_size"] = json!(300), &["391 tokens", "300 rows"]),
        ("tokenizer.json", &|json| json["model"]["type"] = json!("WordLevel"), &["WordLevel", "BPE"]),
    ] {
        answer(changed(file, change).path(), &["--question", "what?"]).fails(fragments);
    }
    // A shard that is not there.
    let sharded = checkpoint("dialogue-opt");
    fs::remove_file(sharded.path().join("model.safetensors")).unwrap();
    let index = json!({"weight_map": {"query_tokens": "model-00001-of-00002.safetensors"}});
    fs::write(sharded.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    answer(sharded.path(), &["--question", "what?"]).fails(&["model-00001-of-00002.safetensors"]);
}
