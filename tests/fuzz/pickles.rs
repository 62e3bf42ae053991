//! Checkpoints of `torch.save`, made by hand.

/// A `.pth` file of a pickle and of a storage "0" with these values; without checksums, so that any change of
/// its bytes is read.
pub(crate) fn archive(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let entries: [(&[u8], &[u8]); 3] =
        [(b"a/data.pkl", pickle), (b"a/data/0", storage), (b"a/version", b"3\n")];
    for (name, bytes) in entries {
        let begin = file.len() as u32;
        // Version 2.0, no flags, stored, no time, no checksum, size, size, length of the name, nothing extra.
        let mut header = [20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
        header.extend([(bytes.len() as u32).to_le_bytes(), (bytes.len() as u32).to_le_bytes()].concat());
        header.extend([name.len() as u8, 0, 0, 0]);
        file.extend([b"PK\x03\x04", &*header, name, bytes].concat());
        // Made by version 2.0; no comment, first disk, no attributes.
        directory.extend([b"PK\x01\x02\x14\x00", &*header, &[0; 10], &begin.to_le_bytes(), name].concat());
    }
    let (begin, length) = (file.len() as u32, directory.len() as u32);
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0\x03\0\x03\0");
    file.extend([length.to_le_bytes(), begin.to_le_bytes()].concat());
    file.extend([0, 0]);
    file
}

/// The operation that names a global.
pub(crate) fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

/// The operation that pushes a text.
pub(crate) fn text(text: &str) -> Vec<u8> {
    [b"X" as &[u8], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// The beginning of a pickle: memo 0 is the call that builds a tensor, 1 a storage of 16 floats, 2 the number
/// 0, 5 what tells the storage.
pub(crate) fn beginning() -> Vec<u8> {
    [
        b"\x80\x02",
        &*global("torch._utils", "_rebuild_tensor_v2"),
        b"q\x00(",
        &text("storage"),
        &global("torch", "FloatStorage"),
        &text("0"),
        &text("cpu"),
        b"K\x10tq\x05Qq\x01K\x00q\x02",
    ]
    .concat()
}

/// A pickle of a state dict with a tensor "w" [4, 4].
pub(crate) fn plain() -> Vec<u8> {
    let tensor = b"h\x00(h\x01K\x00(K\x04K\x04t(K\x04K\x01t\x89}tR";
    // What the beginning pushed becomes a tuple beside the tensor.
    let start = beginning();
    [&start[..2], b"}(", &text("x"), b"(", &start[2..], b"t", &text("w"), tensor, b"u."].concat()
}
