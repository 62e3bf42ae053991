//! What is read, and how.

use crate::harness::{Folder, Target, walk};
use crate::pickles;
use image::{DynamicImage, ImageFormat};
use qformer::data::{Dataset, Source};
use qformer::models::vision::image::Rgb;
use qformer::params::safetensors::{Checkpoint, Dtype, NewTensor, write};
use qformer::train::Run;
use qformer::{Config, ImageProcessor, Tokenizer};
use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::sync::LazyLock;

/// Most bytes of memory for a pixel: as it is stored, with 16 bits a channel, and as it is converted.
const PIXEL_BYTES: usize = 9;
/// Most pixels of an image that is decoded.
const PIXELS: u64 = 89_478_485;

const JSON: [&[u8]; 16] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\"",
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"\\ud800",
    b"[[[[[[[[",
    b"{\"a\":",
    b"\"__metadata__\":",
    b"18446744073709551616",
];

pub(crate) const ALL: [Target; 15] = [
    Target {
        name: "pth",
        read: pth,
        seeds: checkpoints,
        dictionary: &[b"PK\x01\x02", b"PK\x03\x04", b"PK\x06\x06"],
        ..PLAIN
    },
    Target {
        name: "pickle",
        read: |folder, input| pth(folder, &pickles::archive(input, &[0; 64])),
        seeds: || vec![pickles::plain()],
        dictionary: &[
            b"h\x00",
            b"h\x01",
            b"h\x02",
            b"t",
            b"(",
            b"R",
            b"Q",
            b"}",
            b"]",
            b"u",
            b"e",
            b"\x85",
            b"b",
            b"0",
            b"\x94",
            b"ctorch\nSize\n",
        ],
        ..PLAIN
    },
    Target {
        name: "safetensors",
        read: |folder, input| checkpoint(&folder.write("x.safetensors", input)),
        seeds: || vec![safetensors("a")],
        dictionary: &JSON,
        ..PLAIN
    },
    Target {
        name: "shard-index",
        read: |folder, input| {
            static SHARDS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| ["a", "b"].map(safetensors));
            folder.write("a.safetensors", &SHARDS[0]);
            folder.write("b.safetensors", &SHARDS[1]);
            folder.write("model.safetensors.index.json", input);
            checkpoint(&folder.path());
        },
        seeds: || {
            vec![br#"{"metadata": {}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}"#.to_vec()]
        },
        dictionary: &JSON,
        ..PLAIN
    },
    Target {
        name: "tar",
        read: tar,
        seeds: tars,
        dictionary: &[b"ustar", b"0000000", b"7777777", b"20 path=", b".json", b".txt"],
        ..PLAIN
    },
    Target {
        name: "image",
        read: |_, input| {
            if let Ok(Rgb { pixels, width, height }) = Rgb::decode("x".as_ref(), input) {
                assert_eq!(pixels.len(), 3 * width * height);
            }
        },
        seeds: images,
        dictionary: &[
            b"IHDR",
            b"IDAT",
            b"IEND",
            b"tRNS",
            b"PLTE",
            b"acTL",
            b"\xff\xda",
            b"\xff\xc2",
            b"\xff\xdd",
            b"VP8X",
            b"VP8L",
            b"ALPH",
            b"ANIM",
        ],
        allowance: image_allowance,
    },
    Target {
        name: "config",
        read: |folder, input| {
            folder.write("config.json", input);
            let _ = Config::load(&folder.path());
        },
        seeds: || {
            let names = ["retrieval/model/config", "config/opt", "config/t5", "config/llama"];
            names.map(|name| fs::read(format!("tests/golden/{name}.json")).unwrap()).into()
        },
        dictionary: &JSON,
        ..PLAIN
    },
    Target {
        name: "preprocessor",
        read: |folder, input| {
            folder.write("preprocessor_config.json", input);
            let _ = ImageProcessor::load(&folder.path());
        },
        seeds: || vec![fs::read("tests/golden/retrieval/model/preprocessor_config.json").unwrap()],
        dictionary: &JSON,
        ..PLAIN
    },
    Target {
        name: "tokenizer",
        read: |folder, input| {
            folder.write("tokenizer.json", input);
            tokenize(&folder.path());
        },
        seeds: || vec![fs::read("tests/golden/retrieval/model/tokenizer.json").unwrap()],
        dictionary: &JSON,
        ..PLAIN
    },
    Target {
        name: "vocabulary",
        read: |folder, input| {
            folder.write("vocab.txt", input);
            tokenize(&folder.path());
        },
        seeds: || vec![fs::read("tests/golden/pth/vocab.txt").unwrap()],
        dictionary: &[
            b"\n",
            b"\r\n",
            b"[UNK]\n",
            b"[CLS]\n",
            b"[SEP]\n",
            b"##",
            "\u{feff}".as_bytes(),
            "\u{301}".as_bytes(),
        ],
        ..PLAIN
    },
    Target {
        name: "tokenizer-config",
        read: |folder, input| {
            folder.write("vocab.txt", fs::read("tests/golden/pth/vocab.txt").unwrap());
            folder.write("tokenizer_config.json", input);
            tokenize(&folder.path());
        },
        seeds: || {
            vec![
                br#"{"bos_token": {"content": "[DEC]"}, "do_lower_case": true, "strip_accents": null}"#
                    .to_vec(),
            ]
        },
        dictionary: &JSON,
        ..PLAIN
    },
    Target {
        name: "text",
        read: |_, input| {
            static TOKENIZER: LazyLock<Tokenizer> =
                LazyLock::new(|| Tokenizer::load("tests/golden/retrieval/model".as_ref()).unwrap());
            for length in [3, 64] {
                if let Ok(ids) = TOKENIZER.encode(&String::from_utf8_lossy(input), length) {
                    assert!(ids.len() <= length);
                }
            }
        },
        seeds: || vec!["A red CAT, caf\u{e9} 猫 [DEC] [SEP] x\u{0}y\u{301}\tz\u{a0}\u{2028}=\u{338}".into()],
        dictionary: &[
            b"[SEP]",
            b"[DEC]",
            b"[",
            "\u{301}".as_bytes(),
            "猫".as_bytes(),
            "。".as_bytes(),
            b"\xff",
            b"  ",
        ],
        ..PLAIN
    },
    Target {
        name: "jsonl",
        read: |folder, input| {
            dataset(&Source::Jsonl(folder.write("x.jsonl", input)));
        },
        seeds: || {
            vec![br#"[{"image": "a.png", "caption": ["a", "b"]}, {"image": "b", "caption": ""}]"#.to_vec(),
            b"{\"image\": \"a.png\", \"caption\": \"a\"}\n{\"image\": \"a.png\", \"x\": [1], \"caption\": [\"b\"]}\n".to_vec()]
        },
        dictionary: &JSON,
        ..PLAIN
    },
    Target {
        name: "coco",
        read: |folder, input| {
            let annotations = folder.write("x.json", input);
            for split in [None, Some("train".to_owned())] {
                dataset(&Source::Coco { annotations: annotations.clone(), images: folder.path(), split });
            }
        },
        seeds: || {
            vec![
            br#"{"images": [{"id": 1, "file_name": "a"}, {"id": "x"}], "annotations": [{"image_id": 1, "caption": "b"}]}"#.to_vec(),
            br#"{"images": [{"filepath": "f", "filename": "a", "split": "restval", "sentences": [{"raw": "a"}]}]}"#.to_vec(),
        ]
        },
        dictionary: &JSON,
        ..PLAIN
    },
    Target {
        name: "run",
        read: run,
        seeds: || {
            vec![
            b"device = \"cpu\"\n[train]\nsteps = 1\n\0{\"global_step\": 1, \"position\": {\"epoch\": 0, \"example\": 0}, \
             \"seed\": 0, \"dataset\": 0, \"unreadable\": [], \"checksums\": {\"../../config.toml\": \"0\"}}".to_vec(),
        ]
        },
        dictionary: &[
            b"\0",
            b"[a]\n",
            b"[[a]]\n",
            b"a.b.c=1\n",
            b"'''",
            b"\"/dev/zero\"",
            b"\"..\"",
            b"{",
            b"}",
        ],
        ..PLAIN
    },
];

const PLAIN: Target =
    Target { name: "", read: |_, _| {}, seeds: Vec::new, dictionary: &[], allowance: |_| 0 };

fn checkpoint(path: &Path) {
    let Ok(checkpoint) = Checkpoint::open(path) else { return };
    for name in checkpoint.names() {
        let mut count = 0;
        if checkpoint.read_f32(name, |first, block| count = first + block.len()).is_ok() {
            assert_eq!(count, checkpoint.get(name).unwrap().elements());
        }
    }
}

fn pth(folder: &Folder, input: &[u8]) {
    checkpoint(&folder.write("x.pth", input));
}

fn tar(folder: &Folder, input: &[u8]) {
    dataset(&Source::WebDataset(vec![folder.write("x.tar", input)]));
}

fn dataset(source: &Source) {
    let Ok(dataset) = Dataset::open(source) else { return };
    for image in 0..dataset.images().min(4) {
        dataset.name(image);
        let _ = dataset.picture(image);
    }
    for caption in 0..dataset.captions().len() {
        assert!((dataset.captions().image(caption) as usize) < dataset.images());
        dataset.text(caption);
    }
}

fn tokenize(folder: &Path) {
    let Ok(tokenizer) = Tokenizer::load(folder) else { return };
    for text in ["a cat [SEP] sits", "Caf\u{e9} \u{0}猫\u{301}"] {
        if let Ok(ids) = tokenizer.encode(text, 8) {
            assert!(ids.len() <= 8);
            let _ = tokenizer.decode(&ids);
        }
    }
}

/// A run's folder: what comes before the first zero byte is its settings, the rest where it stands.
fn run(folder: &Folder, input: &[u8]) {
    let mut parts = input.splitn(2, |&byte| byte == 0);
    folder.write("run/config.toml", parts.next().unwrap_or_default());
    folder.write("run/checkpoints/step-00000001/trainer_state.json", parts.next().unwrap_or_default());
    let path = folder.path().join("run");
    let _ = Run::config(&path);
    let _ = Run::reopen(&path, &mut |_| {});
}

fn image_allowance(input: &[u8]) -> usize {
    let reader = image::ImageReader::new(Cursor::new(input)).with_guessed_format();
    let pixels = reader
        .ok()
        .and_then(|reader| reader.into_dimensions().ok())
        .map_or(0, |(width, height)| u64::from(width) * u64::from(height));
    PIXEL_BYTES * pixels.min(PIXELS) as usize
}

fn checkpoints() -> Vec<Vec<u8>> {
    vec![pickles::archive(&pickles::plain(), &[0; 64]), fs::read("tests/golden/pth/lavis.pth").unwrap()]
}

/// A file with a tensor of two numbers.
fn safetensors(name: &str) -> Vec<u8> {
    let folder = Folder::new();
    let path = folder.path().join("x.safetensors");
    write(&path, &BTreeMap::new(), vec![NewTensor::from_slice(name, Dtype::F32, &[1, 2], &[1.0, 2.0])])
        .unwrap();
    fs::read(path).unwrap()
}

/// A picture in each format.
fn images() -> Vec<Vec<u8>> {
    let pixels = |x: u32, y: u32| image::Rgb([x as u8 * 20, y as u8 * 30, (x * y) as u8]);
    let picture = DynamicImage::from(image::RgbImage::from_fn(12, 8, pixels));
    let pictures = [picture.clone(), picture.to_rgba8().into(), picture.to_luma16().into()];
    let encoded = |picture: &DynamicImage, format| {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).ok().map(|()| bytes.into_inner())
    };
    let formats = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];
    let all: Vec<Vec<u8>> = pictures
        .iter()
        .flat_map(|picture| formats.map(|format| encoded(picture, format)))
        .flatten()
        .collect();
    assert!(all.len() >= 5);
    all
}

fn tars() -> Vec<Vec<u8>> {
    let picture = images().swap_remove(0);
    let mut builder = tar::Builder::new(Vec::new());
    let entries: [(&str, &[u8]); 4] = [
        ("0.png", &picture),
        ("0.txt", b"zero"),
        ("folder/1.json", br#"{"caption": ["one", "two"]}"#),
        (&"long".repeat(40), b""),
    ];
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
    }
    vec![builder.into_inner().unwrap()]
}

macro_rules! walks {
    ($($test:ident = $target:literal;)*) => {
        $(#[test]
        fn $test() {
            walk(ALL.iter().find(|target| target.name == $target).unwrap());
        })*

        #[test]
        fn every_target_is_walked() {
            let mut walked = [$($target),*];
            let mut known = ALL.map(|target| target.name);
            walked.sort_unstable();
            known.sort_unstable();
            assert_eq!(walked, known);
        }
    };
}

walks! {
    pth_files_are_read_or_refused = "pth";
    pickle_programs_are_read_or_refused = "pickle";
    safetensors_files_are_read_or_refused = "safetensors";
    shard_index_files_are_read_or_refused = "shard-index";
    tar_shards_are_read_or_refused = "tar";
    image_files_are_read_or_refused = "image";
    config_files_are_read_or_refused = "config";
    preprocessor_files_are_read_or_refused = "preprocessor";
    tokenizer_files_are_read_or_refused = "tokenizer";
    vocabulary_files_are_read_or_refused = "vocabulary";
    tokenizer_config_files_are_read_or_refused = "tokenizer-config";
    text_of_any_kind_is_tokenized = "text";
    jsonl_lists_are_read_or_refused = "jsonl";
    coco_lists_are_read_or_refused = "coco";
    run_folders_are_read_or_refused = "run";
}
