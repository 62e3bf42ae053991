//! Archives that are not what they seem.

use super::archive::*;
use crate::paths::path;
use qformer::params::init::{key, uniform};
use qformer::params::safetensors::{Checkpoint, Dtype};

#[test]
fn other_formats_are_refused_by_name() {
    assert_refused(
        b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 \x6a\xa8\x50\x19.",
        "the format of PyTorch before 1.6",
    );
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    assert_refused(&tar, "a tar archive");
    for bytes in [&b""[..], b"P", b"PK\x05\x06", b"\x08\0\0\0\0\0\0\0{}      ", b"\x1f\x8b"] {
        assert_refused(bytes, "not a zip archive");
    }
}

#[test]
fn an_archive_cut_short_anywhere_is_refused() {
    let bytes = four().bytes;
    for length in 4..bytes.len() {
        refusal(&bytes[..length]);
    }
}

#[test]
fn prefixes_suffixes_and_comments_are_refused() {
    let bytes = four().bytes;
    assert_refused(&[&b"#!/bin/sh\n"[..], &bytes].concat(), "not a zip archive");
    assert_refused(&[&bytes[..], b"\0"].concat(), "end record");
    assert_refused(&[&bytes[..], &bytes].concat(), "a central directory that does not end where");
    let mut archive = four();
    let comment = b"PK\x05\x06 in a comment, 22 bytes";
    archive.put(archive.end + 20, &(comment.len() as u16).to_le_bytes());
    assert_refused(&[&archive.bytes[..], comment].concat(), "end record");
}

/// Bytes to put so many bytes after a record's begin.
type Patch<'a> = (usize, &'a [u8]);

#[test]
fn what_two_places_tell_differently_is_refused() {
    let local = "described otherwise where it is";
    // Of the entry's own header: flags, method, checksum, sizes, lengths, name.
    let locals: [(Patch<'_>, &str); 9] = [
        ((0, b"PK\x03\x05"), "not where the directory says"),
        ((6, b"\x08"), local),
        ((8, b"\x08"), local),
        ((14, b"\x01\x02\x03\x04"), local),
        ((18, b"\x05"), local),
        ((22, b"\xff\xff\xff\xff"), local),
        ((26, b"\x05"), local),
        ((28, b"\x04"), "a gap or overlaps"),
        ((30, b"b"), local),
    ];
    for ((at, bytes), fragment) in locals {
        let mut archive = four();
        archive.put(archive.locals[1] + at, bytes);
        assert_refused(&archive.bytes, fragment);
    }
    // Of the directory: signature, flags, method, checksum, sizes, lengths, disk, offset.
    let centrals: [(Patch<'_>, &str); 13] = [
        ((0, b"PK\x01\x03"), "a broken central directory"),
        ((8, b"\x01"), "compressed or encrypted"),
        ((8, b"\x08"), local),
        ((10, b"\x08"), "compressed or encrypted"),
        ((16, b"\x01\x02\x03\x04"), local),
        ((20, b"\x05"), "in another size"),
        ((20, b"\x05\0\0\0\x05"), local),
        ((20, b"\xff\xff\xff\xff\xff\xff\xff\xff"), "a broken size"),
        ((28, b"\xff\xff"), "a broken central directory"),
        ((30, b"\x04"), "a broken central directory"),
        ((34, b"\x01"), "another disk"),
        ((42, b"\0\0"), "a gap or overlaps"),
        ((42, b"\xff\xff\xff\x7f"), "a gap or overlaps"),
    ];
    for ((at, bytes), fragment) in centrals {
        let mut archive = four();
        archive.put(archive.centrals[1] + at, bytes);
        assert_refused(&archive.bytes, fragment);
    }
    // Of the end record: disks, counts, size and begin of the directory.
    let ends: [Patch<'_>; 9] = [
        (0, b"PK\x05\x07"),
        (4, b"\x01"),
        (6, b"\x01"),
        (8, b"\x01"),
        (8, b"\x01\0\x01\0"),
        (8, b"\x03\0\x03\0"),
        (12, b"\0\0\0\0"),
        (16, b"\0\0\0\0"),
        (8, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
    ];
    for (at, bytes) in ends {
        let mut archive = four();
        archive.put(archive.end + at, bytes);
        refusal(&archive.bytes);
    }
}

#[test]
fn names_that_come_twice_and_entries_that_overlap_are_refused() {
    let pickle = || state_dict(&[FOUR]);
    let twice = [("a/data.pkl", pickle()), ("a/data/0", counted(4)), ("a/data/0", counted(4))];
    assert_refused(&Archive::of(&twice).bytes, "entry \"a/data/0\" comes twice");
    let two = [("a/data.pkl", pickle()), ("a/data/0", counted(4)), ("b/data.pkl", pickle())];
    assert_refused(&Archive::of(&two).bytes, "holds 2 pickles");
    assert_refused(&Archive::of(&[("data.pkl", pickle())]).bytes, "holds 0 pickles");
    // Two entries of the directory for one of the archive.
    let three = [("a/data.pkl", pickle()), ("a/data/0", counted(4)), ("a/data/1", counted(4))];
    let mut archive = Archive::of(&three);
    let first: Vec<u8> = archive.bytes[archive.centrals[1]..archive.centrals[2]].to_vec();
    archive.put(archive.centrals[2], &first);
    assert_refused(&archive.bytes, "a gap or overlaps");
}

#[test]
fn numbers_of_the_other_byte_order_are_refused() {
    let with = |order: &[u8]| {
        Archive::of(&[
            ("a/data.pkl", state_dict(&[FOUR])),
            ("a/byteorder", order.to_vec()),
            ("a/data/0", counted(4)),
        ])
    };
    let (_folder, path) = on_disk(&with(b"little").bytes);
    assert_eq!(values(&Checkpoint::open(&path).unwrap(), "x"), [0.0, 1.0, 2.0, 3.0]);
    assert_refused(&with(b"big").bytes, "not little-endian");
    assert_refused(&with(&[b'l'; 17]).bytes, "at most 16 are read");
}

#[test]
fn a_pickle_without_its_checksum_is_refused() {
    let mut archive = four();
    let at = archive.locals[0] + 30 + "archive/data.pkl".len() + 3;
    archive.bytes[at] ^= 1;
    assert_refused(&archive.bytes, "data.pkl does not have its checksum");
}

/// Changed files are refused, or read like any other.
#[test]
fn files_of_torch_with_changed_bytes_do_no_harm() {
    let golden = std::fs::read(path("tests/golden/pth/lavis.pth")).unwrap();
    let find = |needle: &[u8]| golden.windows(needle.len()).position(|window| window == needle).unwrap();
    let pickle = find(b"FB")..find(b"lavis/.format_version");
    let directory = find(b"PK\x01\x02")..golden.len();
    let below = |place, limit: usize| (uniform(key(1, "changes"), place) * limit as f64) as usize;
    let (_folder, path) = on_disk(&golden);
    let (mut accepted, mut refused) = (0, 0);
    for case in 0..2000 {
        let mut bytes = golden.clone();
        let mut random = (0..).map(|turn| 64 * case + turn).map(|place| move |limit| below(place, limit));
        let mut next = |limit| random.next().unwrap()(limit);
        for _ in 0..1 + next(2) {
            let range = if next(2) == 0 { pickle.clone() } else { directory.clone() };
            let at = range.start + next(range.len());
            bytes[at] = match next(3) {
                0 => next(256) as u8,
                1 => bytes[at] ^ (1 << next(8)),
                _ => [0, 1, 0x7f, 0x80, 0xff, b'(', b'R', b'Q', b'.', b'u', b'h'][next(11)],
            };
        }
        // The pickle's checksum is 0, which is none: all changes are seen by its reader.
        bytes[find(b"PK\x07\x08") + 4..][..4].fill(0);
        let central = find(b"PK\x01\x02");
        bytes[central + 16..central + 20].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        let Ok(checkpoint) = Checkpoint::open(&path) else {
            refused += 1;
            continue;
        };
        accepted += 1;
        for name in checkpoint.names() {
            if checkpoint.get(name).unwrap().dtype != Dtype::I64 {
                let _ = checkpoint.read_f32(name, |_, _| ());
            }
        }
    }
    assert!(accepted > 100 && refused > 300, "{accepted} accepted, {refused} refused");
}
