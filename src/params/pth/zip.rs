//! The zip archive that a `.pth` file is: stored entries only, every fact told by two places of the
//! file equal in both, no byte belonging to two entries.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use crate::error::{Error, Result};
use crate::input::printable;
use crate::params::bounds::read_exact_at;

/// Most entries of an archive: a storage each for as many tensors as are read, and a few more.
const ENTRIES: u64 = (1 << 16) + 64;
/// Longest central directory read, in bytes.
const DIRECTORY_BYTES: u64 = 64 << 20;
/// Longest name of an entry, in bytes.
const NAME_BYTES: usize = 512;

/// Bytes of the record that ends an archive.
const END_BYTES: u64 = 22;
/// Bytes of the record that tells where the 64-bit end record is.
const LOCATOR_BYTES: u64 = 20;
/// Bytes of the 64-bit end record.
const WIDE_END_BYTES: u64 = 56;
/// Bytes of an entry's header before its name, in the central directory and where the entry is.
const CENTRAL_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;
/// Bytes that may follow an entry whose header was written before its size was known: with and without
/// signature, in 32 and 64 bits.
const DESCRIPTOR_BYTES: [u64; 4] = [12, 16, 20, 24];

/// The entry is encrypted.
const ENCRYPTED: u16 = 1;
/// Size and checksum follow the entry, and its own header has zeros for them.
const DESCRIBED_AFTER: u16 = 1 << 3;

/// A file within an archive.
pub(super) struct Entry {
    /// Where its bytes begin in the archive.
    pub(super) begin: u64,
    pub(super) bytes: u64,
    /// CRC-32 of its bytes.
    pub(super) crc: u32,
}

/// An entry as the central directory tells it.
struct Listed {
    name: String,
    flags: u16,
    header: u64,
    bytes: u64,
    crc: u32,
}

/// The entries of the archive `file` of `length` bytes by their names.
pub(super) fn entries(path: &Path, file: &File, length: u64) -> Result<BTreeMap<String, Entry>> {
    let archive = Archive { path, file, length };
    let (directory, count) = archive.directory()?;
    let mut listed = archive.listed(&directory, count)?;
    listed.sort_by_key(|entry| entry.header);
    let ends = listed.iter().skip(1).map(|next| next.header).chain([directory.begin]);
    let ends: Vec<u64> = ends.collect();
    if listed.first().is_some_and(|first| first.header != 0) {
        return Err(archive.wrong("does not begin with the archive's first entry"));
    }
    let mut entries = BTreeMap::new();
    for (entry, end) in listed.iter().zip(ends) {
        let found = archive.locate(entry, end)?;
        if entries.insert(entry.name.clone(), found).is_some() {
            return Err(archive.wrong_of(&entry.name, "comes twice"));
        }
    }
    Ok(entries)
}

/// The central directory's bytes and where they begin.
struct Directory {
    begin: u64,
    bytes: Vec<u8>,
}

struct Archive<'a> {
    path: &'a Path,
    file: &'a File,
    length: u64,
}

impl Archive<'_> {
    fn wrong(&self, what: &str) -> Error {
        Error::input(self.path, format_args!("{what}; only archives as torch.save writes them are read"))
    }

    fn wrong_of(&self, name: &str, what: &str) -> Error {
        self.wrong(&format!("entry \"{}\" {what}", printable(name)))
    }

    /// `bytes` bytes of the file from `begin` on, which have to be there.
    fn read(&self, begin: u64, bytes: u64) -> Result<Vec<u8>> {
        if begin.checked_add(bytes).is_none_or(|end| end > self.length) {
            return Err(self.wrong("points past its end"));
        }
        let mut read = vec![0; usize::try_from(bytes).expect("within the limits of a directory")];
        read_exact_at(self.file, &mut read, begin).map_err(|error| Error::io(self.path, "read", error))?;
        Ok(read)
    }

    /// The central directory and how many entries it lists.
    fn directory(&self) -> Result<(Directory, u64)> {
        let no_end = || self.wrong("does not end with an archive's end record (is it cut short?)");
        let end_begin = self.length.checked_sub(END_BYTES).ok_or_else(no_end)?;
        let end = self.read(end_begin, END_BYTES)?;
        if !end.starts_with(b"PK\x05\x06") {
            return Err(no_end());
        }
        let narrow = [u64::from(u16_at(&end, 10)), u64::from(u32_at(&end, 12)), u64::from(u32_at(&end, 16))];
        let (disks, here, comment) = (u32_at(&end, 4), u64::from(u16_at(&end, 8)), u16_at(&end, 20));
        if disks != 0 || here != narrow[0] || comment != 0 {
            return Err(self.wrong("has several disks or a comment"));
        }
        let wide = self.wide_end(end_begin)?;
        let saturated = [u64::from(u16::MAX), u64::from(u32::MAX), u64::from(u32::MAX)];
        let ([count, bytes, begin], directory_end) = match wide {
            Some((wide, wide_begin)) => {
                let agree = (0..3).all(|i| narrow[i] == wide[i] || narrow[i] == saturated[i]);
                if !agree {
                    return Err(self.wrong("has two end records that differ"));
                }
                (wide, wide_begin)
            }
            None => (narrow, end_begin),
        };
        if begin.checked_add(bytes) != Some(directory_end) {
            return Err(self.wrong("has a central directory that does not end where the end record begins"));
        }
        if count > ENTRIES || bytes > DIRECTORY_BYTES {
            return Err(self.wrong(&format!("has {count} entries in {bytes} bytes of directory")));
        }
        Ok((Directory { begin, bytes: self.read(begin, bytes)? }, count))
    }

    /// Count of entries, bytes and begin of the directory by the 64-bit end record, and where that is;
    /// `None` if the file has none before its end record.
    fn wide_end(&self, end_begin: u64) -> Result<Option<([u64; 3], u64)>> {
        let Some(locator_begin) = end_begin.checked_sub(LOCATOR_BYTES) else { return Ok(None) };
        let locator = self.read(locator_begin, LOCATOR_BYTES)?;
        if !locator.starts_with(b"PK\x06\x07") {
            return Ok(None);
        }
        let wrong = || self.wrong("has a broken 64-bit end record");
        let begin = u64_at(&locator, 8);
        if locator_begin.checked_sub(WIDE_END_BYTES) != Some(begin) {
            return Err(wrong());
        }
        let wide = self.read(begin, WIDE_END_BYTES)?;
        let one_disk = u32_at(&wide, 16) == 0 && u32_at(&wide, 20) == 0;
        let [here, count] = [u64_at(&wide, 24), u64_at(&wide, 32)];
        // The record's own size does not count its first 12 bytes.
        if !wide.starts_with(b"PK\x06\x06") || u64_at(&wide, 4) != 44 || !one_disk || here != count {
            return Err(wrong());
        }
        Ok(Some(([count, u64_at(&wide, 40), u64_at(&wide, 48)], begin)))
    }

    /// The entries that the central directory lists.
    fn listed(&self, directory: &Directory, count: u64) -> Result<Vec<Listed>> {
        let cut_short = || self.wrong("has a broken central directory");
        let mut rest = &directory.bytes[..];
        let mut listed = Vec::new();
        for _ in 0..count {
            let header = rest.get(..CENTRAL_BYTES).ok_or_else(cut_short)?;
            if !header.starts_with(b"PK\x01\x02") {
                return Err(cut_short());
            }
            let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(header, at)));
            let end = CENTRAL_BYTES + name + extra + comment;
            let (name, extra) = rest.get(CENTRAL_BYTES..end - comment).ok_or_else(cut_short)?.split_at(name);
            let name = match std::str::from_utf8(name) {
                Ok(plain) if plain.len() <= NAME_BYTES => plain.to_owned(),
                _ => return Err(self.wrong("has an entry whose name is too long or not UTF-8")),
            };
            let (flags, method) = (u16_at(header, 8), u16_at(header, 10));
            if method != 0 || flags & ENCRYPTED != 0 {
                return Err(self.wrong_of(&name, "is compressed or encrypted"));
            }
            let narrow = [24, 20, 42].map(|at| u32_at(header, at));
            let [bytes, packed, offset] =
                widened(narrow, extra).ok_or_else(|| self.wrong_of(&name, "has a broken size"))?;
            if bytes != packed || u16_at(header, 34) != 0 {
                return Err(self.wrong_of(&name, "is stored, but in another size or on another disk"));
            }
            listed.push(Listed { name, flags, header: offset, bytes, crc: u32_at(header, 16) });
            rest = rest.get(end..).ok_or_else(cut_short)?;
        }
        if rest.is_empty() { Ok(listed) } else { Err(cut_short()) }
    }

    /// Where the bytes of `entry` are, which has to fill the file up to `end`.
    fn locate(&self, entry: &Listed, end: u64) -> Result<Entry> {
        let wrong = |what| self.wrong_of(&entry.name, what);
        let header = self.read(entry.header, LOCAL_BYTES as u64)?;
        if !header.starts_with(b"PK\x03\x04") {
            return Err(wrong("is not where the directory says"));
        }
        let [name_bytes, extra_bytes] = [26, 28].map(|at| u64::from(u16_at(&header, at)));
        let names = self.read(entry.header + LOCAL_BYTES as u64, name_bytes + extra_bytes)?;
        let (name, extra) = names.split_at(usize::try_from(name_bytes).expect("16 bits"));
        let narrow = [22, 18].map(|at| u32_at(&header, at));
        let sizes = widened([narrow[0], narrow[1], 0], extra);
        let stated = (u32_at(&header, 14), sizes);
        let same = stated == (entry.crc, Some([entry.bytes, entry.bytes, 0]));
        let later = entry.flags & DESCRIBED_AFTER != 0 && stated == (0, Some([0; 3]));
        let flags = u16_at(&header, 6);
        if name != entry.name.as_bytes()
            || flags != entry.flags
            || u16_at(&header, 8) != 0
            || !(same || later)
        {
            return Err(wrong("is described otherwise where it is than in the directory"));
        }
        let begin = entry.header + LOCAL_BYTES as u64 + name_bytes + extra_bytes;
        let after = begin.checked_add(entry.bytes).and_then(|used| end.checked_sub(used));
        let described = entry.flags & DESCRIBED_AFTER != 0;
        match after {
            Some(0) => {}
            Some(after) if described && DESCRIPTOR_BYTES.contains(&after) => {}
            _ => return Err(wrong("leaves a gap or overlaps what follows it")),
        }
        Ok(Entry { begin, bytes: entry.bytes, crc: entry.crc })
    }
}

/// Numbers of 32 bits, those that are all ones replaced by the 64-bit ones of the `extra` field, which
/// follow in the same order; `None` if one is missing.
fn widened(narrow: [u32; 3], extra: &[u8]) -> Option<[u64; 3]> {
    let mut wide = wide_field(extra);
    let mut numbers = [0; 3];
    for (number, narrow) in numbers.iter_mut().zip(narrow) {
        *number = match narrow {
            u32::MAX => {
                let (first, rest) = wide.split_at_checked(8)?;
                wide = rest;
                u64_at(first, 0)
            }
            narrow => narrow.into(),
        };
    }
    Some(numbers)
}

/// The field of 64-bit numbers within `extra`, empty if there is none.
fn wide_field(mut extra: &[u8]) -> &[u8] {
    while let Some((head, rest)) = extra.split_at_checked(4) {
        let Some((field, rest)) = rest.split_at_checked(usize::from(u16_at(head, 2))) else { break };
        if u16_at(head, 0) == 1 {
            return field;
        }
        extra = rest;
    }
    &[]
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
