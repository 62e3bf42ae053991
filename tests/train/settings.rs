//! Settings: defaults, what is refused, and what a run keeps of them.

use crate::common::*;
use serde_json::{Value, json};
use std::fs;

#[test]
fn settings_are_kept_and_may_not_be_contradicted() {
    let place = Workplace::new();
    run(&mut place.train("run", 3, &["--wd", "0.1"])).with(0, &[]);
    let config: toml::Table = fs::read_to_string(place.path("run/config.toml")).unwrap().parse().unwrap();
    let train = &config["train"];
    assert_eq!((train["wd"].as_float(), train["beta2"].as_float()), (Some(0.1), Some(0.98)));
    assert_eq!((train["steps"].as_integer(), train["seed"].as_integer()), (Some(3), Some(42)));
    assert_eq!(config["model"]["preset"].as_str(), Some("tiny"));
    assert_eq!(config["provenance"]["version"].as_str(), Some(env!("CARGO_PKG_VERSION")));
    let commit = config["provenance"].get("commit").and_then(toml::Value::as_str);
    assert_eq!(commit, option_env!("QFORMER_COMMIT"));
    assert!(config["provenance"]["rustc"].as_str().unwrap().starts_with("rustc 1."));
    let start = &lines(&place.path("run/metrics.jsonl"))[0];
    assert_eq!((&start["event"], &start["device"]), (&json!("run_start"), &json!("cpu")));
    assert_eq!((&start["world_size"], &start["schema"]), (&json!(1), &json!(1)));
    let card = fs::read_to_string(place.checkpoint("run", 3).join("README.md")).unwrap();
    let loss = place.steps("run")[2]["loss"].as_f64().unwrap();
    for told in ["---\nlibrary_name: transformers\n", "after step 3 of 3", &format!("| loss | {loss:.4} |")] {
        assert!(card.contains(told), "{told:?} is not in\n{card}");
    }
    let json = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(place.checkpoint("run", 3).join(name)).unwrap()).unwrap()
    };
    assert!(json("processor_config.json").as_object().unwrap()["num_query_tokens"].is_null());
    let captions = json("generation_config.json");
    assert_eq!((&captions["max_new_tokens"], &captions["min_new_tokens"]), (&json!(29), &json!(9)));
    assert_eq!((&captions["num_beams"], &captions["do_sample"]), (&json!(3), &json!(false)));
    for (flags, told) in [
        (["--lr", "0.01"], "--lr 0.01 contradicts the run in"),
        (["--seed", "7"], "--seed 7 contradicts"),
        (["--preset", "blip2-vit-g"], "--preset \"blip2-vit-g\" contradicts"),
        (["--bert", "x"], "begun without it; leave the flag away"),
        (["--device", "auto"], ""),
        (["--device", "cuda"], "--device \"cuda\" contradicts"),
        (["--wd", "0.1"], ""),
    ] {
        let code = if told.is_empty() { 0 } else { 2 };
        run(place.resume("run").args(flags)).with(code, &[told]);
    }
}

#[test]
fn a_run_goes_on_where_it_was_begun_whatever_the_environment_says() {
    let place = Workplace::new();
    run(&mut place.train("run", 3, &[])).with(0, &[]);
    let told = "computing on cpu, where the run was begun, whatever QFORMER_DEVICE says";
    run(place.resume("run").env("QFORMER_DEVICE", "cuda")).with(0, &[told]);
    for says_nothing in ["cpu", "auto"] {
        let ended = run(place.resume("run").env("QFORMER_DEVICE", says_nothing)).with(0, &[]);
        assert!(!ended.stderr.contains("QFORMER_DEVICE"), "{}", ended.stderr);
    }
    let told = "QFORMER_DEVICE is \"gpu\"; it has to be auto, cpu, cuda or cuda:N";
    run(place.train("other", 3, &[]).env("QFORMER_DEVICE", "gpu")).with(2, &[told]);
    run(place.train("other", 3, &["--device", "cpu"]).env("QFORMER_DEVICE", "gpu")).with(0, &[]);
}

#[test]
fn a_folder_that_is_not_empty_is_left_alone() {
    let place = Workplace::new();
    fs::create_dir(place.path("run")).unwrap();
    fs::write(place.path("run/notes.txt"), "mine").unwrap();
    run(&mut place.train("run", 3, &[])).with(2, &["is not empty; give another --output"]);
    assert_eq!(place.path("run").read_dir().unwrap().count(), 1);
}

#[test]
fn settings_out_of_bounds_are_named() {
    let place = Workplace::new();
    for (flags, told) in [
        (["--lr", "0"], "--lr is 0; it has to be above 0"),
        (["--dropout", "1"], "--dropout is 1; it has to be from 0 to below 1"),
        (["--text-length", "65"], "--text-length is 65; the model reads texts of 3 to 64 tokens"),
        (["--warmup", "9"], "--warmup is 9; the run has 3 steps"),
        (["--loss-weights", "1,2"], "--loss-weights takes three numbers"),
        (["--keep", "0"], "--keep is 0; it has to be 1 or more"),
    ] {
        run(&mut place.train(&flags[0][2..], 3, &flags)).with(2, &[told]);
        // Nothing is left that a run with other flags would stumble over.
        let left = place.path(&flags[0][2..]).read_dir().map_or(0, Iterator::count);
        assert_eq!(left, 0, "{flags:?}");
    }
}

#[test]
fn epochs_are_counted_in_captions_and_curves_are_drawn() {
    let place = Workplace::new();
    let mut command = command();
    command.args(["train", "stage1", "--preset", "tiny", "--batch-size", "8", "--epochs", "2"]);
    command.arg("--features").arg(place.path("features.safetensors"));
    command.arg("--captions").arg(place.path("captions.jsonl"));
    // Twice 20 captions are 5 batches of 8.
    run(command.arg("--output").arg(place.path("run"))).with(0, &["step 5/5", "s left"]);
    let steps = place.steps("run");
    assert_eq!(steps.len(), 5);
    for (name, value) in [("step", 5.0), ("samples_seen", 40.0), ("epoch", 1.0), ("lr", 1e-5)] {
        assert_eq!(steps[4][name].as_f64().unwrap(), value, "{name}");
    }
    for name in ["loss", "loss_itc", "loss_itm", "loss_lm", "temp", "grad_norm", "mem_peak_gib"] {
        assert!(steps[0][name].as_f64().unwrap() > 0.0, "{name}");
    }
    for name in ["itm_accuracy", "itc_recall1"] {
        assert!((0.0..=1.0).contains(&steps[0][name].as_f64().unwrap()), "{name}");
    }
    let svg = fs::read_to_string(place.path("run/curves.svg")).unwrap();
    let texts = ["step 5 of 5", "Gradient norm", "ITM accuracy", "Learning rate", "1e−5"];
    assert!(texts.iter().all(|text| svg.contains(text)) && !svg.contains("script"), "{svg}");
}
