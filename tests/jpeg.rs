//! JPEG: the pixels that Pillow makes, byte for byte (`tests/golden/jpeg`).

#[path = "support/paths.rs"]
mod paths;

use qformer::models::vision::image::Rgb;
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::path::Path;

fn decoded(name: &str, bytes: &[u8]) -> Result<Rgb, String> {
    Rgb::decode(Path::new(name), bytes).map_err(|error| error.to_string())
}

/// Sizes, samplings, quality, progressive, arithmetic, restart markers, grey, CMYK, YCCK, EXIF: `make.py` says how.
#[test]
fn pixels_are_those_of_pillow() {
    let folder = paths::path("tests/golden/jpeg");
    let expected: Value = serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let mut files = tar::Archive::new(fs::File::open(folder.join("sweep.tar")).unwrap());
    let (mut compared, mut wrong) = (0, Vec::new());
    for entry in files.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let found = decoded(&name, &bytes)
            .map(|rgb| [rgb.width as u64, rgb.height as u64, crc32fast::hash(&rgb.pixels).into()]);
        let pillow = [0, 1, 2].map(|i| expected[&name][i].as_u64().unwrap());
        if found != Ok(pillow) {
            wrong.push(format!("{name}: {found:?}, not {pillow:?}"));
        }
        compared += 1;
    }
    assert!(wrong.is_empty(), "{} of {compared}: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
    assert_eq!(compared, 7 * (8 * 12 + 7));
}

/// Files of cameras and old programs that other decoders read wrongly, without a word.
#[test]
fn unusual_files_are_read_as_pillow_reads_them() {
    let folder = paths::path("tests/golden/jpeg");
    let names = [
        "sequential-scans-420",
        "scans-restart-444",
        "chroma-scan-first",
        "restart-marker-lost",
        "webcam-frame-without-tables",
        "jfif-with-adobe-0",
    ];
    for name in names {
        let read = |end: &str| Rgb::read(&folder.join(format!("{name}.{end}"))).unwrap();
        assert!(read("jpg") == read("png"), "{name}");
    }
}

/// A picture of the golden folder.
fn picture() -> Vec<u8> {
    fs::read(paths::path("tests/golden/jpeg/sequential-scans-420.jpg")).unwrap()
}

#[test]
fn damaged_files_are_decoded_or_named() {
    let whole = picture();
    let mut refused = 0;
    for at in (2..whole.len() - 2).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        if let Err(error) = decoded("damaged.jpg", &damaged) {
            assert!(error.starts_with("damaged.jpg: "), "{error}");
            refused += 1;
        }
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn a_file_of_very_many_scans_is_refused_before_it_is_decoded() {
    let whole = picture();
    let scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00";
    let end = whole.len() - 2;
    let many = [&whole[..end], &scan.repeat(1000), &whole[end..]].concat();
    let error = decoded("many.jpg", &many).unwrap_err();
    assert!(error.contains("1003 scans") && error.contains("500"), "{error}");
}
