//! The image processor against transformers and Pillow, and against hostile files.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::codecs::jpeg::{JpegDecoder, JpegEncoder};
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::metadata::Orientation;
use image::{ExtendedColorType, ImageDecoder, ImageEncoder};
use qformer::error::Kind;
use qformer::models::vision::image::ImageProcessor;
use serde_json::{Value, json};
use tempfile::TempDir;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// A folder that holds one file.
fn folder_with(name: &str, bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// The processor of `settings`, or its message of error.
fn processor(settings: &Value) -> Result<ImageProcessor, String> {
    let (folder, _) = folder_with("preprocessor_config.json", settings.to_string().as_bytes());
    ImageProcessor::load(folder.path()).map_err(|error| error.to_string())
}

/// A processor whose pixel values are the resized bytes themselves.
fn bytes_processor(width: usize, height: usize, resample: u8) -> ImageProcessor {
    let size = json!({ "height": height, "width": width });
    processor(&json!({ "size": size, "resample": resample, "do_rescale": false, "do_normalize": false }))
        .unwrap()
}

/// Message of the error that `bytes`, as the file "image.png", must give.
fn refusal(bytes: &[u8]) -> String {
    let (_folder, path) = folder_with("image.png", bytes);
    let error = ImageProcessor::blip2(8).read(&path).unwrap_err();
    assert_eq!(error.kind(), Kind::Input);
    let message = error.to_string();
    assert!(message.contains("image.png"), "{message}");
    message
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&kind[..], data].concat();
    [&(data.len() as u32).to_be_bytes()[..], &body, &crc32(&body).to_be_bytes()].concat()
}

/// The zlib stream that stores `bytes` as they are.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len() as u16;
    let (a, b) = bytes
        .iter()
        .fold((1, 0), |(a, b), &byte| ((a + u32::from(byte)) % 65521, (b + a + u32::from(byte)) % 65521));
    let header = [&[0x78, 0x01, 0x01][..], &length.to_le_bytes(), &(!length).to_le_bytes()].concat();
    [&header, bytes, &((b << 16) | a).to_be_bytes()].concat()
}

/// A PNG of one colour type and bit depth; `rows` has a filter byte before every row, `extra`
/// goes between header and data.
fn png(width: u32, height: u32, depth: u8, color_type: u8, extra: &[u8], rows: &[u8]) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[depth, color_type, 0, 0, 0]].concat();
    [
        b"\x89PNG\r\n\x1a\n",
        &chunk(b"IHDR", &header)[..],
        extra,
        &chunk(b"IDAT", &stored(rows)),
        &chunk(b"IEND", &[]),
    ]
    .concat()
}

/// The RGB bytes that a PNG of two pixels side by side is read as.
fn two_pixels(depth: u8, color_type: u8, extra: &[u8], samples: &[u8]) -> [[f32; 3]; 2] {
    let file = png(2, 1, depth, color_type, extra, &[&[0], samples].concat());
    let (_folder, path) = folder_with("two.png", &file);
    let values = bytes_processor(2, 1, 3).read(&path).unwrap();
    [[values[0], values[2], values[4]], [values[1], values[3], values[5]]]
}

/// A JPEG, 16 wide and 8 high, black on the left and white on the right.
fn jpeg() -> Vec<u8> {
    let rgb: Vec<u8> = (0..16 * 8 * 3).map(|i| if i / 3 % 16 < 8 { 0 } else { 255 }).collect();
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, 95).encode(&rgb, 16, 8, ExtendedColorType::Rgb8).unwrap();
    file
}

#[test]
fn pixel_values_equal_those_of_transformers() {
    let file = fs::read(golden("retrieval/expected.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let expected = tensors.tensor("pixel_values").unwrap();
    assert_eq!(expected.shape(), [3, 3, 56, 56]);
    let (expected, _) = expected.data().as_chunks::<4>();

    let processor = ImageProcessor::load(&golden("retrieval/model")).unwrap();
    assert_eq!(processor.size(), (56, 56));
    let names = ["astronaut", "chelsea", "coffee"];
    for (name, expected) in names.iter().zip(expected.chunks_exact(3 * 56 * 56)) {
        let values = processor.read(&golden(&format!("retrieval/images/{name}.png"))).unwrap();
        assert_eq!(values.len(), expected.len());
        for (i, (&value, &bytes)) in values.iter().zip(expected).enumerate() {
            let expected = f32::from_le_bytes(bytes);
            assert!((value - expected).abs() <= 1e-6, "{name}, value {i}: {value}, not {expected}");
        }
    }
}

#[test]
fn settings_that_no_file_gives_are_those_of_a_checkpoint_of_blip2() {
    let file = fs::read(golden("retrieval/model/preprocessor_config.json")).unwrap();
    let checkpoint: Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(ImageProcessor::blip2(56).to_json(), checkpoint);
    assert_eq!(processor(&json!({ "size": checkpoint["size"] })).unwrap().to_json(), checkpoint);
}

/// The generator of `golden/resize/make.py`.
fn pseudo_random(count: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let level = (state >> 33) % 384;
        if level < 256 { level as u8 } else { 255 * (level & 1) as u8 }
    };
    (0..count).map(next).collect()
}

#[test]
fn resized_images_equal_those_of_pillow_12_byte_for_byte() {
    let cases = fs::read_to_string(golden("resize/cases.txt")).unwrap();
    assert_eq!(cases.lines().count(), 26);
    for case in cases.lines() {
        let fields: Vec<&str> = case.split(' ').collect();
        let resample = if fields[0] == "bicubic" { 3 } else { 2 };
        let [width, height, to_width, to_height] = [1, 2, 3, 4].map(|i| fields[i].parse().unwrap());
        let resized = bytes_processor(to_width, to_height, resample)
            .process(&pseudo_random(width * height * 3), width, height)
            .unwrap();
        assert_eq!(resized.len(), to_width * to_height * 3);
        let hash = resized.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ byte as u64).wrapping_mul(0x0100_0000_01b3)
        });
        assert_eq!(format!("{hash:016x}"), fields[5], "{case}");
    }
}

#[test]
fn every_kind_of_png_becomes_rgb_as_in_pillow() {
    let grey_and_white = [[128.0; 3], [255.0; 3]];
    assert_eq!(two_pixels(1, 0, &[], &[0b0100_0000]), [[0.0; 3], [255.0; 3]], "black and white");
    assert_eq!(two_pixels(8, 0, &[], &[128, 255]), grey_and_white, "greyscale");
    assert_eq!(two_pixels(16, 0, &[], &[128, 255, 255, 0]), grey_and_white, "16-bit greyscale");
    assert_eq!(two_pixels(8, 4, &[], &[128, 0, 255, 7]), grey_and_white, "greyscale with alpha");
    let colors = [[200.0, 100.0, 50.0], [1.0, 2.0, 3.0]];
    assert_eq!(two_pixels(8, 6, &[], &[200, 100, 50, 0, 1, 2, 3, 128]), colors, "alpha");
    assert_eq!(two_pixels(16, 2, &[], &[200, 255, 100, 255, 50, 255, 1, 0, 2, 0, 3, 0]), colors, "16 bits");
    let palette = [chunk(b"PLTE", &[1, 2, 3, 200, 100, 50]), chunk(b"tRNS", &[0, 0])].concat();
    assert_eq!(two_pixels(1, 3, &palette, &[0b1000_0000]), colors, "palette");
}

#[test]
fn a_jpeg_named_png_is_read_as_the_jpeg_it_is() {
    let (_folder, path) = folder_with("image.png", &jpeg());
    let values = bytes_processor(16, 8, 3).read(&path).unwrap();
    for (i, value) in values.iter().enumerate() {
        let expected = if i % 16 < 8 { 0.0 } else { 255.0 };
        assert!((value - expected).abs() <= 3.0, "value {i}: {value}, not {expected}");
    }
}

#[test]
fn the_exif_orientation_is_not_applied() {
    let mut file = jpeg();
    let exif = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    file.splice(2..2, exif.iter().copied());
    let mut decoder = JpegDecoder::new(Cursor::new(&file)).unwrap();
    assert_eq!(decoder.orientation().unwrap(), Orientation::Rotate90);

    let (_plain_folder, plain) = folder_with("plain.jpg", &jpeg());
    let (_turned_folder, turned) = folder_with("turned.jpg", &file);
    let processor = processor(&json!({ "size": { "height": 8, "width": 16 }, "do_resize": false })).unwrap();
    assert_eq!(processor.read(&turned).unwrap(), processor.read(&plain).unwrap());
}

#[test]
fn truncated_images_are_refused() {
    let file = fs::read(golden("retrieval/images/coffee.png")).unwrap();
    for length in [9, 30, 60, file.len() / 2, file.len() - 100] {
        assert!(refusal(&file[..length]).contains("cannot be decoded"), "first {length} bytes");
    }
    let file = jpeg();
    for length in [3, 20, file.len() - 40, file.len() - 1] {
        assert!(refusal(&file[..length]).contains("truncated"), "first {length} bytes");
    }
}

#[test]
fn files_that_are_no_images_are_refused() {
    assert!(refusal(b"This is text.\n").contains("neither JPEG, PNG nor WebP"));
    assert!(refusal(b"RIFF\x04\0\0\0WAVE").contains("neither JPEG, PNG nor WebP"));
    assert!(refusal(b"").contains("empty"));
}

/// An image of 8-bit samples, 31 wide and 17 high, as a PNG and as a lossless WebP.
fn png_and_webp(color: ExtendedColorType) -> [Vec<u8>; 2] {
    let [mut png, mut webp] = [Vec::new(), Vec::new()];
    let samples = pseudo_random(31 * 17 * usize::from(color.channel_count()));
    PngEncoder::new(&mut png).write_image(&samples, 31, 17, color).unwrap();
    WebPEncoder::new_lossless(&mut webp).write_image(&samples, 31, 17, color).unwrap();
    [png, webp]
}

#[test]
fn a_lossless_webp_is_read_as_its_png_is() {
    for color in [ExtendedColorType::L8, ExtendedColorType::Rgb8, ExtendedColorType::Rgba8] {
        let values = png_and_webp(color).map(|file| {
            let (_folder, path) = folder_with("image.webp", &file);
            bytes_processor(31, 17, 3).read(&path).unwrap()
        });
        assert!(values[0] == values[1] && values[0].iter().any(|&x| x != values[0][0]), "{color:?}");
    }
}

#[test]
fn broken_webps_are_refused() {
    let [_, webp] = png_and_webp(ExtendedColorType::Rgb8);
    for length in [12, 16, 25, 30, webp.len() / 2, webp.len() - 2] {
        assert!(refusal(&webp[..length]).contains("cannot be decoded"), "{length} bytes");
    }
    // Sides of 16383, each less one in 14 bits of the header: more pixels than are read.
    let mut large = webp;
    large[21..25].copy_from_slice(&(16_382_u32 << 14 | 16_382).to_le_bytes());
    assert!(refusal(&large).contains("16383x16383"));
}

#[test]
fn images_of_extreme_sizes_are_refused_by_their_header() {
    let bomb = |width, height| refusal(&png(width, height, 16, 6, &[], &[0; 64]));
    assert!(bomb(65_535, 65_535).contains("65535x65535"));
    assert!(bomb(32_768, 32_768).contains("89478485"));
    assert!(bomb(1, i32::MAX as u32).contains("32768"));
    assert!(bomb(i32::MAX as u32, 1).contains("too large"));
    assert!(bomb(0, 5).contains("cannot be decoded"));
}

#[test]
fn a_file_above_the_limit_is_refused() {
    let (_folder, path) = folder_with("large.png", b"");
    fs::File::options().write(true).open(&path).unwrap().set_len((64 << 20) + 1).unwrap();
    let message = ImageProcessor::blip2(8).read(&path).unwrap_err().to_string();
    assert!(message.contains("large.png") && message.contains("67108864 bytes"), "{message}");
}

#[test]
fn what_is_not_a_regular_file_is_refused_without_waiting() {
    let folder = TempDir::new().unwrap();
    let processor = ImageProcessor::blip2(8);
    let missing = processor.read(&folder.path().join("missing.png")).unwrap_err();
    assert_eq!(missing.kind(), Kind::Io);
    assert!(missing.to_string().contains("missing.png"), "{missing}");
    let directory = processor.read(folder.path()).unwrap_err().to_string();
    assert!(directory.contains("not a regular file"), "{directory}");
    #[cfg(unix)]
    {
        let fifo = folder.path().join("fifo.png");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let message = processor.read(&fifo).unwrap_err().to_string();
        assert!(message.contains("fifo.png: is not a regular file"), "{message}");
    }
}

#[test]
fn images_that_are_not_rgb_are_refused_without_do_convert_rgb() {
    let processor = processor(&json!({ "size": 2, "do_convert_rgb": false })).unwrap();
    let (_grey_folder, grey) = folder_with("grey.png", &png(2, 1, 8, 0, &[], &[0, 1, 2]));
    let message = processor.read(&grey).unwrap_err().to_string();
    assert!(message.contains("grey.png") && message.contains("do_convert_rgb"), "{message}");
    let (_rgb_folder, rgb) = folder_with("rgb.png", &png(2, 1, 8, 2, &[], &[0, 1, 2, 3, 4, 5, 6]));
    assert_eq!(processor.read(&rgb).unwrap().len(), 3 * 2 * 2);
}

#[test]
fn rescaling_and_normalising_can_be_chosen() {
    let values = |rescale: bool, normalize: bool| {
        let settings = json!({
            "size": 1, "do_rescale": rescale, "do_normalize": normalize,
            "rescale_factor": 0.5, "image_mean": [1, 2, 3], "image_std": [1, 2, 4],
        });
        processor(&settings).unwrap().process(&[10, 20, 30], 1, 1).unwrap()
    };
    assert_eq!(values(false, false), [10.0, 20.0, 30.0]);
    assert_eq!(values(true, false), [5.0, 10.0, 15.0]);
    assert_eq!(values(false, true), [9.0, 9.0, 6.75]);
    assert_eq!(values(true, true), [4.0, 4.0, 3.0]);
}

#[test]
fn pixels_that_do_not_fit_the_call_are_refused() {
    let processor = ImageProcessor::blip2(8);
    for (bytes, width, height) in [(11, 2, 2), (13, 2, 2), (0, 0, 2), (0, 2, 0), (3, usize::MAX, usize::MAX)]
    {
        assert!(
            processor.process(&vec![0; bytes], width, height).is_err(),
            "{bytes} bytes, {width}x{height}"
        );
    }
    assert!(ImageProcessor::blip2(0).process(&[0; 12], 2, 2).is_err());
}

#[test]
fn without_do_resize_only_images_of_the_size_are_taken() {
    let processor = processor(&json!({ "size": 2, "do_resize": false })).unwrap();
    assert_eq!(processor.process(&[0; 12], 2, 2).unwrap().len(), 12);
    let message = processor.process(&[0; 18], 3, 2).unwrap_err().to_string();
    assert!(message.contains("3x2") && message.contains("2x2"), "{message}");
}

#[test]
fn settings_come_from_either_file_and_survive_being_written() {
    let settings = json!({
        "image_processor_type": "BlipImageProcessor", "do_convert_rgb": false, "do_resize": false,
        "size": { "height": 30, "width": 40 }, "resample": 2, "do_rescale": false, "rescale_factor": 0.25,
        "do_normalize": false, "image_mean": [0.5, 0.25, 0.125], "image_std": [1.0, 2.0, 4.0],
    });
    let flat = processor(&settings).unwrap();
    assert_eq!(flat.size(), (30, 40));
    assert_eq!(flat.to_json(), settings);

    let (folder, _) = folder_with("preprocessor_config.json", b"{}");
    let nested = folder.path().join("processor_config.json");
    fs::write(&nested, json!({ "image_processor": settings }).to_string()).unwrap();
    assert_eq!(ImageProcessor::load(folder.path()).unwrap(), flat);

    fs::write(&nested, json!({ "num_query_tokens": 32 }).to_string()).unwrap();
    assert_eq!(ImageProcessor::load(folder.path()).unwrap(), ImageProcessor::blip2(384));
    assert_eq!(processor(&json!({ "size": null, "crop_size": null })).unwrap(), ImageProcessor::blip2(384));
}

#[test]
fn a_folder_without_settings_is_told_both_names() {
    let folder = TempDir::new().unwrap();
    let message = ImageProcessor::load(folder.path()).unwrap_err().to_string();
    assert!(message.contains(" preprocessor_config.json"), "{message}");
    assert!(message.contains(" processor_config.json"), "{message}");
}

#[test]
fn settings_that_make_no_sense_are_refused_by_name() {
    for (settings, fault) in [
        (json!({ "image_mean": [0.5, 0.5] }), "image_mean"),
        (json!({ "image_mean": [0.5, 0.5, "0.5"] }), "image_mean"),
        (json!({ "image_std": [0.5, 0.5, 0.0] }), "image_std holds a zero"),
        (json!({ "image_std": [0.5, 0.5, 1e-300] }), "not finite"),
        (json!({ "rescale_factor": 0 }), "rescale_factor"),
        (json!({ "rescale_factor": "1/255" }), "rescale_factor"),
        (json!({ "size": 0 }), "size 0x0"),
        (json!({ "size": { "height": 224, "width": 1_000_000_000 } }), "size 224x1000000000"),
        (json!({ "size": { "height": 224.5, "width": 224 } }), "size"),
        (json!({ "size": { "shortest_edge": 224 } }), "size"),
        (json!({ "size": -1 }), "size"),
        (json!({ "resample": 1 }), "Lanczos"),
        (json!({ "resample": 17 }), "resample is 17"),
        (json!({ "resample": "bicubic" }), "resample"),
        (json!({ "do_resize": 1 }), "do_resize"),
        (json!({ "do_center_crop": true }), "do_center_crop"),
        (json!({ "crop_size": { "height": 224, "width": 224 } }), "crop_size"),
        (json!({ "image_processor_type": "CLIPImageProcessor" }), "CLIPImageProcessor"),
        (json!([1, 2]), "not a JSON object"),
    ] {
        let message = processor(&settings).expect_err(&settings.to_string());
        assert!(message.contains("preprocessor_config.json: ") && message.contains(fault), "{message}");
    }
    for text in ["", "{", "{\"size\": 1e999}", "{\"size\": NaN}"] {
        let (folder, _) = folder_with("processor_config.json", text.as_bytes());
        let message = ImageProcessor::load(folder.path()).unwrap_err().to_string();
        assert!(message.contains("processor_config.json: is not valid JSON"), "{message}");
    }
}
