//! Files of strangers.

use crate::{Random, file_of, on_disk, refusal};
use qformer::params::safetensors::Checkpoint;
use safetensors::SafeTensors;

fn assert_refused(header: &str, data: &[u8], fragment: &str) {
    let (_folder, path) = on_disk(&file_of(header, data));
    let message = refusal(&path);
    let shown: String = header.chars().take(100).collect();
    assert!(message.contains(fragment), "{shown}: \"{message}\" does not say \"{fragment}\"");
    assert!(message.len() < 1000, "a message of {} bytes", message.len());
    assert!(
        !message.contains(|character: char| character.is_control() || character == '\u{202e}'),
        "{message:?}"
    );
}

#[test]
fn lengths_of_headers_that_lie_are_refused() {
    let lengths =
        [0, 1, 2, 7, 8, 9, 15, 1 << 20, 99_999_999, 100_000_000, 100_000_001, 1 << 31, 1 << 32, 1 << 53];
    let beyond = [(1 << 63) - 8, 1 << 63, u64::MAX - 16, u64::MAX - 8, u64::MAX - 7, u64::MAX - 1, u64::MAX];
    for size in [8, 9, 4096] {
        for length in lengths.into_iter().chain(beyond) {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.resize(size, b' ');
            let (_folder, path) = on_disk(&bytes);
            let message = refusal(&path);
            let is_long = length > size as u64 - 8;
            assert_eq!(message.contains("states a header of"), is_long, "{length} in {size}: {message}");
        }
    }
    for size in 0..8 {
        let (_folder, path) = on_disk(&vec![0; size]);
        assert!(refusal(&path).contains("has at least 8"));
    }
}

#[test]
fn sizes_that_overflow_are_refused() {
    let edges: Vec<u64> = [31, 32, 53, 63]
        .into_iter()
        .flat_map(|power| [(1 << power) - 1, 1 << power, (1 << power) + 1])
        .chain([u64::MAX - 1, u64::MAX])
        .collect();
    for dtype in ["U8", "F16", "F32", "F64", "F4", "F6_E2M3"] {
        for &rows in &edges {
            for &columns in edges.iter().chain(&[1]) {
                let header = format!(
                    r#"{{"a":{{"dtype":"{dtype}","shape":[{rows},{columns}],"data_offsets":[0,16]}}}}"#
                );
                assert_refused(&header, &[0; 16], "tensor \"a\"");
            }
        }
    }
}

#[test]
fn tensors_that_sum_to_the_whole_of_memory_are_refused() {
    let eighth = 1_u64 << 61;
    let tensors: Vec<String> = (0..8)
        .map(|index| {
            let begin = index * eighth;
            let end = if index == 7 { u64::MAX } else { begin + eighth };
            let length = end - begin;
            format!(r#""t{index}":{{"dtype":"U8","shape":[{length}],"data_offsets":[{begin},{end}]}}"#)
        })
        .collect();
    assert_refused(&format!("{{{}}}", tensors.join(",")), &[0; 64], "tensor \"t0\"");
}

#[test]
fn layouts_with_gaps_overlaps_or_loose_ends_are_refused() {
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{first}}},"b":{{"dtype":"F32","shape":[2],"data_offsets":{second}}}}}"#
        )
    };
    let cases = [
        (two("[0,8]", "[4,12]"), 16, "tensor \"b\": data_offsets 4..12"),
        (two("[0,8]", "[12,20]"), 20, "next in the file is at 8..16"),
        (two("[4,12]", "[12,20]"), 20, "next in the file is at 0..8"),
        (two("[8,0]", "[8,16]"), 16, "data_offsets 8..0"),
        (two("[0,8]", "[0,8]"), 8, "ends past the end"),
        (two("[0,8]", "[0,8]"), 16, "data_offsets 0..8"),
        (two("[0,4]", "[4,8]"), 8, "data_offsets 0..4"),
        (two("[0,8]", "[8,16]"), 15, "ends past the end"),
        (two("[0,8]", "[8,16]"), 17, "1 bytes after the last tensor, from byte"),
        (two("[0,8]", "[8,18446744073709551615]"), 16, "data_offsets 8..18446744073709551615"),
        (two("[18446744073709551615,7]", "[0,8]"), 16, "data_offsets 18446744073709551615..7"),
        ("{}".to_owned(), 1, "1 bytes after the last tensor, from byte 10"),
    ];
    for (header, length, fragment) in cases {
        assert_refused(&header, &vec![0; length], fragment);
    }
}

#[test]
fn another_file_appended_or_put_inside_is_refused() {
    let whole = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    for stranger in [&b"PK\x05\x06"[..], b"\x89PNG\r\n", b"\x7fELF"] {
        assert_refused(whole, &[&[0; 4], stranger].concat(), "after the last tensor");
        let (_folder, path) = on_disk(stranger);
        refusal(&path);
    }
}

#[test]
fn headers_that_are_not_plain_json_are_refused() {
    let tensor = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let digits = format!("{{\"a\":{{\"shape\":[{}]}}}}", "9".repeat(100_000));
    let cases = [
        ("\u{feff}{}".to_owned(), "does not start with '{'"),
        (" {}".to_owned(), "does not start with '{'"),
        ("[]".to_owned(), "does not start with '{'"),
        ("{}\0".to_owned(), "trailing characters"),
        ("{} {}".to_owned(), "trailing characters"),
        ("{".to_owned(), "EOF"),
        (deep, "expected value"),
        (digits, "number out of range"),
        (format!(r#"{{"a":{tensor},"a":{tensor}}}"#), "\"a\" comes twice"),
        (format!(r#"{{"a":{tensor},"\u0061":{tensor}}}"#), "comes twice"),
        (r#"{"__metadata__":{},"__metadata__":{}}"#.into(), "comes twice"),
        (r#"{"__metadata__":{"x":"1","x":"2"}}"#.into(), "comes twice"),
        (format!(r#"{{"__metadata__":{tensor}}}"#), "expected a string"),
        (r#"{"__metadata__":{"x":1}}"#.into(), "expected a string"),
        (format!(r#"{{"__metadata__":{{"x":"{}"}}}}"#, "y".repeat(32 << 20)), "bytes of metadata"),
        (format!(r#"{{"{}":{tensor}}}"#, "n".repeat(513)), "longer than 512 bytes"),
        (r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}}"#.into(), "unknown field"),
        (r#"{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#.into(), "duplicate field"),
        (r#"{"a":{"dtype":"U8","shape":[0]}}"#.into(), "missing field"),
        (r#"{"a":{"dtype":"F128","shape":[0],"data_offsets":[0,0]}}"#.into(), "unknown variant"),
        (
            r#"{"\u001b[2J\u202e":{"dtype":"\u001b[2J\u202e","shape":[0],"data_offsets":[0,0]}}"#.into(),
            "unknown variant",
        ),
        (
            r#"{"\u001b[2J\u202e":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.into(),
            "\\u{1b}[2J\\u{202e}",
        ),
        (r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}}"#.into(), "invalid value"),
        (r#"{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}"#.into(), "invalid type"),
        (r#"{"a":{"dtype":"U8","shape":[1e308],"data_offsets":[0,1]}}"#.into(), "invalid type"),
        (
            r#"{"a":{"dtype":"U8","shape":[0,0,0,0,0,0,0,0,0],"data_offsets":[0,0]}}"#.into(),
            "more than 8 dimensions",
        ),
        (r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0,0]}}"#.into(), "trailing characters"),
        (r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#.into(), "not a whole number of bytes"),
    ];
    for (header, fragment) in cases {
        assert_refused(&header, &[], fragment);
    }
    let (_folder, path) = on_disk(&[&2_u64.to_le_bytes()[..], b"{\xff"].concat());
    assert!(refusal(&path).contains("not UTF-8 at byte 9"));
}

#[test]
fn more_tensors_than_any_model_has_are_refused() {
    let entries: Vec<String> = (0..=1 << 16)
        .map(|index| format!(r#""{index}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
        .collect();
    assert_refused(&format!("{{{}}}", entries.join(",")), &[], "more than 65536 tensors");
    let (_folder, path) = on_disk(&file_of(&format!("{{{}}}", entries[1..].join(",")), &[]));
    assert_eq!(Checkpoint::open(&path).unwrap().names().count(), 1 << 16);
}

/// A header and data of up to five small tensors.
fn random_file(random: &mut Random) -> Vec<u8> {
    let mut data = Vec::new();
    let mut entries = Vec::new();
    for index in 0..random.below(6) {
        let (dtype, bytes) = [("U8", 1), ("BF16", 2), ("F32", 4), ("I64", 8)][random.below(4)];
        let shape: Vec<usize> = (0..random.below(4)).map(|_| random.below(4)).collect();
        let begin = data.len();
        data.resize(begin + shape.iter().product::<usize>() * bytes, random.next() as u8);
        let end = data.len();
        entries.push(format!(
            r#""t{index}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        ));
    }
    file_of(&format!("{{{}}}", entries.join(",")), &data)
}

#[test]
fn what_is_accepted_is_what_the_formats_own_library_accepts() {
    let mut random = Random(1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut accepted = 0;
    for case in 0..6000 {
        let mut bytes = random_file(&mut random);
        // A third as they are, a third with a byte changed, a third with a digit of the header changed.
        let digits: Vec<usize> = (8..bytes.len()).filter(|&place| bytes[place].is_ascii_digit()).collect();
        match case % 3 {
            1 => {
                let place = random.below(bytes.len() as u64);
                bytes[place] = b"0123456789{}[]\":, ~"[random.below(19)];
            }
            2 if !digits.is_empty() => {
                let place = digits[random.below(digits.len() as u64)];
                bytes[place] = b'0' + random.below(10) as u8;
            }
            _ => {}
        }
        std::fs::write(&path, &bytes).unwrap();
        let theirs = SafeTensors::deserialize(&bytes);
        let ours = Checkpoint::open(&path);
        let shown = String::from_utf8_lossy(&bytes);
        // The library lets the last of two equal keys win where it leaves no gap: if the other is empty.
        let repeats_a_key = matches!(&ours, Err(error) if error.to_string().contains("comes twice"));
        assert!(ours.is_ok() == theirs.is_ok() || repeats_a_key, "{shown}: {ours:?}, {:?}", theirs.err());
        let (Ok(ours), Ok(theirs)) = (ours, theirs) else { continue };
        accepted += 1;
        assert_eq!(ours.names().count(), theirs.len());
        for (name, tensor) in theirs.tensors() {
            let info = ours.get(&name).unwrap();
            assert_eq!((info.dtype, &info.shape[..]), (tensor.dtype(), tensor.shape()));
        }
    }
    assert!(accepted > 2000, "only {accepted} files were accepted by both");
}
