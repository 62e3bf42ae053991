//! Bad input: one line that says what and where, exit code 1 or 2, and no file left behind.

use crate::common::*;
use crate::paths::path;
use qformer::params::safetensors::Dtype;
use qformer::tensor::HostTensor;
use std::fs;

/// `embed` on a golden model changed by `change` fails with these fragments and writes nothing.
#[track_caller]
fn is_refused(fragments: &[&str], change: impl FnOnce(&mut Workplace)) {
    let mut workplace = Workplace::new();
    change(&mut workplace);
    workplace.embed().fails(fragments);
    workplace.has_written_nothing();
}

/// `embed` with these arguments in place of images and texts fails and writes nothing.
#[track_caller]
fn input_is_refused(arguments: &[&str], fragments: &[&str]) {
    let workplace = Workplace::new();
    embed(&workplace, arguments).fails(fragments);
    workplace.has_written_nothing();
}

fn embed(workplace: &Workplace, arguments: &[&str]) -> Run {
    let shared = ["embed", "--model", &shown(&workplace.model()), "--output", &shown(&workplace.output())]
        .map(str::to_owned);
    run(shared.iter().map(String::as_str).chain(arguments.iter().copied()))
}

#[test]
fn a_truncated_checkpoint_is_refused() {
    for length in [0, 7, 8, 100, 50_000, 3_000_000] {
        is_refused(&["model.safetensors"], |workplace| {
            let bytes = fs::read(workplace.weights()).unwrap();
            fs::write(workplace.weights(), &bytes[..length]).unwrap();
        });
    }
}

#[test]
fn a_header_that_lies_about_its_length_is_refused() {
    for length in [0, 7, 1 << 40, u64::MAX] {
        is_refused(&["model.safetensors"], |workplace| {
            let mut bytes = fs::read(workplace.weights()).unwrap();
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            fs::write(workplace.weights(), bytes).unwrap();
        });
    }
}

#[test]
fn a_header_that_lies_about_a_shape_is_refused() {
    is_refused(&["model.safetensors", "itm_head.bias"], |workplace| {
        let bytes = fs::read(workplace.weights()).unwrap();
        let name = b"\"itm_head.bias\"";
        let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
        let shape = at + bytes[at..].windows(3).position(|window| window == b"[2]").unwrap();
        let mut bytes = bytes;
        bytes[shape + 1] = b'9';
        fs::write(workplace.weights(), bytes).unwrap();
    });
}

#[test]
fn a_misshapen_tensor_is_named_with_both_shapes() {
    let what = "tensor \"query_tokens\" has shape [1, 9, 128], expected [1, 8, 128]";
    is_refused(&[what], |workplace| {
        workplace
            .tensors
            .insert("query_tokens".into(), HostTensor::new(&[1, 9, 128], vec![0.0; 9 * 128]).unwrap());
        workplace.save(Dtype::F32);
    });
}

#[test]
fn missing_and_surplus_tensors_are_named() {
    is_refused(&["tensor \"qformer.layernorm.bias\" [128] is missing"], |workplace| {
        workplace.tensors.remove("qformer.layernorm.bias");
        workplace.save(Dtype::F32);
    });
    is_refused(&["tensor \"qformer.surplus\" [2] belongs to no part of this model"], |workplace| {
        workplace.tensors.insert("qformer.surplus".into(), HostTensor::new(&[2], vec![0.0; 2]).unwrap());
        workplace.save(Dtype::F32);
    });
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    is_refused(&["config.json", "qformer_config.num_attention_heads is 0"], |workplace| {
        workplace.configure(|config| config["qformer_config"]["num_attention_heads"] = 0.into());
    });
    is_refused(&["config.json", "cross_attention_frequency is 0"], |workplace| {
        workplace.configure(|config| config["qformer_config"]["cross_attention_frequency"] = 0.into());
    });
    is_refused(&["config.json", "JSON"], |workplace| {
        fs::write(workplace.model().join("config.json"), "{").unwrap();
    });
}

#[test]
fn a_folder_that_is_no_checkpoint_is_refused() {
    for file in ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"] {
        is_refused(&[file], |workplace| fs::remove_file(workplace.model().join(file)).unwrap());
    }
}

#[test]
fn an_image_processor_of_another_size_is_refused() {
    is_refused(&["makes images of 60x60 pixels", "reads 56x56"], |workplace| {
        let path = workplace.model().join("preprocessor_config.json");
        let settings = fs::read_to_string(&path).unwrap().replace("56", "60");
        fs::write(path, settings).unwrap();
    });
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let workplace = Workplace::new();
    let [good, text, empty, cut] =
        ["good.png", "text.jpg", "empty.png", "cut.png"].map(|name| shown(&workplace.path().join(name)));
    let bytes = fs::read(&images()[0]).unwrap();
    fs::write(&good, &bytes).unwrap();
    fs::write(&text, "no image").unwrap();
    fs::write(&empty, "").unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    for (bad, fragment) in [
        (&text, "text.jpg: is neither JPEG, PNG nor WebP"),
        (&empty, "empty.png: is empty"),
        (&cut, "cut.png: cannot be decoded"),
    ] {
        for images in [[bad, &good], [&good, bad]] {
            embed(&workplace, &["--batch-size", "1", "--images", images[0], images[1]]).fails(&[fragment]);
            workplace.has_written_nothing();
        }
    }
}

#[test]
fn of_many_bad_images_the_first_is_named() {
    let workplace = Workplace::new();
    let files: Vec<String> = (0..8).map(|i| shown(&workplace.path().join(format!("{i}.png")))).collect();
    files.iter().for_each(|file| fs::write(file, "no image").unwrap());
    let arguments: Vec<&str> = ["--images"].into_iter().chain(files.iter().map(String::as_str)).collect();
    embed(&workplace, &arguments).fails(&["0.png: is neither"]);
}

#[test]
fn a_decompression_bomb_is_refused_by_its_header() {
    let crc32 = |bytes: &[u8]| {
        let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
    };
    let workplace = Workplace::new();
    let bomb = workplace.path().join("bomb.png");
    let header =
        [b"IHDR", &30_000_u32.to_be_bytes()[..], &30_000_u32.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let png = [b"\x89PNG\r\n\x1a\n\0\0\0\x0d", &header[..], &crc32(&header).to_be_bytes(), b"\0\0\0\0IDAT"];
    fs::write(&bomb, [&png.concat()[..], &crc32(b"IDAT").to_be_bytes()].concat()).unwrap();
    embed(&workplace, &["--images", &shown(&bomb)]).fails(&["bomb.png: has 30000x30000 pixels"]);
    workplace.has_written_nothing();
}

#[test]
fn texts_without_content_are_refused() {
    for text in ["", "  \t", "\u{0}\u{1}"] {
        // A null byte cannot stand in an argument.
        let workplace = Workplace::new();
        let file = workplace.path().join("texts.txt");
        fs::write(&file, format!("a cat\n{text}\na dog\n")).unwrap();
        let run = embed(&workplace, &["--texts-file", &shown(&file)]);
        run.fails(&["blank"]);
        workplace.has_written_nothing();
    }
    input_is_refused(&["--text", "a cat", ""], &["text 1 is blank"]);
}

#[test]
fn files_of_texts_that_cannot_be_read_are_refused() {
    let workplace = Workplace::new();
    let file = workplace.path().join("texts.txt");
    for (bytes, fragment) in [(&b"caf\xe9\n"[..], "not UTF-8 at byte 3"), (b"", "holds no text")] {
        fs::write(&file, bytes).unwrap();
        embed(&workplace, &["--texts-file", &shown(&file)]).fails(&["texts.txt", fragment]);
    }
    fs::remove_file(&file).unwrap();
    embed(&workplace, &["--texts-file", &shown(&file)]).fails(&["cannot read", "texts.txt"]);
    workplace.has_written_nothing();
}

#[test]
fn files_that_are_not_there_are_named() {
    input_is_refused(&["--images", "gone.png"], &["gone.png: is not there or is not a file"]);
    input_is_refused(&["--image-dir", "gone"], &["cannot list gone"]);
    input_is_refused(&["--features", "gone.safetensors"], &["cannot open gone.safetensors"]);
    let folder = shown(&path("tests/golden/stage1"));
    input_is_refused(&["--image-dir", &folder], &["holds no .jpg, .jpeg, .png or .webp file"]);
    let workplace = Workplace::new();
    let gone = shown(&workplace.path().join("gone"));
    run(["inspect", &gone]).fails(&["cannot open", "gone"]);
    run(["score", "--model", &gone, "--text", "a", "--images", &shown(&images()[0])])
        .fails(&["cannot open", "gone"]);
}

#[test]
fn features_of_another_model_are_refused_with_both_shapes() {
    let results = shown(&golden().join("expected.safetensors"));
    input_is_refused(&["--features", &results], &["has no tensor \"vision_output\"", "--save-vision-output"]);
    let workplace = Workplace::new();
    let features = shown(&workplace.path().join("vision.safetensors"));
    let image = shown(&images()[0]);
    embed(&workplace, &["--images", &image, "--save-vision-output", &features]).succeeds();
    fs::remove_file(workplace.output()).unwrap();
    workplace.configure(|config| config["vision_config"]["image_size"] = 112.into());
    embed(&workplace, &["--features", &features]).fails(&["has shape [1, 17, 64]", "[images, 65, 64]"]);
    workplace.has_written_nothing();
}

#[test]
fn an_output_that_cannot_be_written_fails_before_the_work() {
    let workplace = Workplace::new();
    let file = workplace.path().join("file");
    fs::write(&file, "kept").unwrap();
    let below_file = shown(&file.join("output"));
    let missing_folder = shown(&workplace.path().join("missing/output"));
    let folder = shown(workplace.path());
    // Had the work begun, the model that is not there would be complained of.
    for output in [&below_file, &missing_folder, &folder] {
        run(["embed", "--model", "gone", "--text", "a", "--output", output]).fails(&[output]);
        let image = shown(&images()[0]);
        run(["score", "--model", "gone", "--text", "a", "--images", &image, "--output", output])
            .fails(&[output]);
    }
    let run = embed(&workplace, &["--images", &shown(&images()[0]), "--save-vision-output", &below_file]);
    run.fails(&["cannot write", &below_file]);
    workplace.has_written_nothing();
    assert_eq!(fs::read_to_string(file).unwrap(), "kept");
}

#[cfg(unix)]
#[test]
fn a_device_is_not_replaced_by_a_file() {
    run(["embed", "--model", &shown(&model()), "--text", "a", "--output", "/dev/null"])
        .fails(&["/dev/null", "not a regular file"]);
}

#[test]
fn one_file_for_two_results_is_refused() {
    let workplace = Workplace::new();
    let (image, output) = (shown(&images()[0]), shown(&workplace.output()));
    embed(&workplace, &["--images", &image, "--save-vision-output", &output]).misuses(&["the same file"]);
    workplace.has_written_nothing();
}

#[test]
fn what_was_there_stays_if_a_run_fails() {
    let workplace = Workplace::new();
    fs::write(workplace.output(), "earlier").unwrap();
    embed(&workplace, &["--text", ""]).fails(&["blank"]);
    assert_eq!(fs::read_to_string(workplace.output()).unwrap(), "earlier");
}

#[test]
fn calls_that_make_no_sense_are_told_the_usage() {
    let workplace = Workplace::new();
    let image = shown(&images()[0]);
    for (arguments, fragment) in [
        (&[][..], "--images"),
        (&["--images", &image, "--features", "x"], "cannot be used with"),
        (&["--text", "a", "--texts-file", "x"], "cannot be used with"),
        (&["--features", "x", "--save-vision-output", "y"], "cannot be used with"),
        (&["--text", "a", "--batch-size", "0"], "--batch-size"),
        (&["--text", "a", "--threads", "0"], "--threads"),
        (&["--text", "a", "--threads", "100000"], "--threads"),
        (&["--text", "a", "--device", "tpu"], "auto, cpu, cuda"),
    ] {
        embed(&workplace, arguments).misuses(&[fragment, "--help"]);
    }
    run(["score", "--model", "x", "--text", "a"]).misuses(&["--images"]);
    run(["score", "--model", "x", "--images", &image]).misuses(&["--text"]);
    run(["caption"]).misuses(&["caption"]);
    workplace.has_written_nothing();
}

#[test]
fn a_name_that_promises_another_format_is_refused() {
    let workplace = Workplace::new();
    let (model, images) = (shown(&workplace.model()), shown(&golden().join("images")));
    let output = |name: &str| shown(&workplace.path().join("output").join(name));
    let of_images = ["--model", &model, "--image-dir", &images];
    let embed = |more: &[&str]| run([&["embed"], &of_images[..], more].concat());
    embed(&["--output", &output("f.npy")]).misuses(&[
        "f.npy",
        ".npy is not written",
        ".safetensors, which is",
    ]);
    let [file, saved] = ["f.safetensors", "v.pt"].map(output);
    embed(&["--output", &file, "--save-vision-output", &saved]).misuses(&["v.pt", ".safetensors, which is"]);
    let json = |command: &str, name: &str, more: &[&str]| {
        let told = [name, "is not written", ".json, which is"];
        run([&[command, "--output", &output(name), "--model", &model], more].concat()).misuses(&told);
    };
    json("score", "x.csv", &["--image-dir", &images, "--text", "a cat"]);
    json("caption", "x.txt", &["--image-dir", &images]);
    json("evaluate", "x.JSONL", &["--data", &images]);
    let folder = |command: &[&str], name: &str| {
        run([command, &["--output", &output(name)]].concat()).misuses(&[name, "a folder is written"]);
    };
    folder(&["init", "--preset", "tiny"], "model.safetensors");
    folder(&["encode", "--model", &model, "--data", &images], "features.npy");
    folder(&["demo"], "demo.json");
    workplace.has_written_nothing();
    // A folder's name may have a dot, and a format's be in capitals.
    run(["init", "--preset", "tiny", "--output", &output("v1.5")]).succeeds();
    embed(&["--output", &output("F.SAFETENSORS")]).succeeds();
}
