//! Recording what the program asks of the file system, by a library that it is started with.

use super::disk::{Event, Kind, Recording};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Kinds of records, as in recorder.cpp.
const CREATE: u8 = 1;
const WRITE: u8 = 2;
const TRUNCATE: u8 = 3;
const SYNC_FILE: u8 = 4;
const SYNC_FOLDER: u8 = 5;
const RENAME: u8 = 6;
const LINK: u8 = 7;
const UNLINK: u8 = 8;
const MAKE_FOLDER: u8 = 9;
const SYMLINK: u8 = 10;

/// A record as it stands in the log.
struct Record<'a> {
    kind: u8,
    /// The file's inode and the place in it.
    numbers: [u64; 2],
    texts: [&'a [u8]; 2],
}

fn records(log: &[u8]) -> Vec<Record<'_>> {
    let mut rest = log;
    let mut take = |count: usize| {
        let (taken, after) = rest.split_at_checked(count)?;
        rest = after;
        Some(taken)
    };
    let mut next = || {
        let kind = take(1)?[0];
        let mut number = || Some(u64::from_le_bytes(take(8)?.try_into().unwrap()));
        let numbers = [number()?, number()?];
        let mut text = || {
            let length = u32::from_le_bytes(take(4)?.try_into().unwrap());
            take(length as usize)
        };
        Some(Record { kind, numbers, texts: [text()?, text()?] })
    };
    std::iter::from_fn(&mut next).collect()
}

/// Runs `command`, which writes below `root`, and returns what it asked for; `work` is a folder for the recorder.
pub(super) fn record(command: &mut Command, root: &Path, work: &Path) -> Recording {
    let (library, log) = (work.join("recorder.so"), work.join("log"));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let source = crate::paths::path("tests/train/crash/recorder.cpp");
    let mut build = Command::new(compiler);
    build.args(["-std=c++17", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl");
    assert!(build.status().unwrap().success());
    command.env("LD_PRELOAD", &library).env("RECORD_ROOT", root).env("RECORD_LOG", &log);
    crate::common::run(command).with(0, &[]);
    replay(root, &fs::read(log).unwrap())
}

/// The file system while the program runs.
struct Live<'a> {
    root: &'a str,
    recording: Recording,
    folders: BTreeMap<usize, BTreeMap<String, usize>>,
    /// Nodes by inode.
    numbers: BTreeMap<u64, usize>,
}

/// What the recorder wrote to its log about `root`.
pub(super) fn replay(root: &Path, log: &[u8]) -> Recording {
    let recording = Recording {
        nodes: vec![Kind::Folder],
        events: Vec::new(),
        told: Vec::new(),
        checkpoints: BTreeMap::new(),
        writes: BTreeMap::new(),
    };
    let root = root.to_str().unwrap();
    let mut live = Live { root, recording, folders: BTreeMap::new(), numbers: BTreeMap::new() };
    records(log).iter().for_each(|record| live.apply(record));
    live.recording
}

impl Live<'_> {
    fn apply(&mut self, record: &Record<'_>) {
        let [first, second] = record.texts.map(String::from_utf8_lossy);
        match record.kind {
            CREATE => {
                let node = self.node(Kind::File);
                self.numbers.insert(record.numbers[0], node);
                self.name(&first, Some(node));
            }
            WRITE => {
                let node = self.numbers[&record.numbers[0]];
                let event = serde_json::from_slice::<serde_json::Value>(record.texts[1]).unwrap_or_default();
                *self.recording.writes.entry(node).or_insert(0) += 1;
                let data = record.texts[1].to_vec();
                self.recording.events.push(Event::Data(node, record.numbers[1] as usize, data));
                if event["event"] == "checkpoint" {
                    let step = event["step"].as_u64().unwrap() as usize;
                    self.recording.told.push((self.recording.events.len(), step));
                }
            }
            SYNC_FILE => self.recording.events.push(Event::SyncFile(self.numbers[&record.numbers[0]])),
            SYNC_FOLDER if first.starts_with(self.root) => {
                let (folder, name) = self.place(&first);
                let node = if name.is_empty() { folder } else { self.folders[&folder][&name] };
                self.recording.events.push(Event::SyncFolder(node));
            }
            SYNC_FOLDER => {}
            RENAME => {
                let ((folder, from), (same, to)) = (self.place(&first), self.place(&second));
                assert_eq!(folder, same, "renamed from one folder to another: {first} to {second}");
                let node = self.folders[&folder][&from];
                if let Some(step) = to.strip_prefix("step-") {
                    let files = self.folders[&node].clone();
                    self.recording.checkpoints.insert(step.parse().unwrap(), files);
                }
                self.names(folder, vec![(from, None), (to, Some(node))]);
            }
            LINK => {
                let (folder, name) = self.place(&first);
                self.name(&second, Some(self.folders[&folder][&name]));
            }
            UNLINK => self.name(&first, None),
            MAKE_FOLDER => {
                let node = self.node(Kind::Folder);
                self.folders.insert(node, BTreeMap::new());
                self.name(&first, Some(node));
            }
            SYMLINK => {
                let node = self.node(Kind::Symlink(first.into_owned()));
                self.name(&second, Some(node));
            }
            TRUNCATE | 0 | 11.. => panic!("the simulation knows nothing of kind {} on {first}", record.kind),
        }
    }

    fn node(&mut self, kind: Kind) -> usize {
        self.recording.nodes.push(kind);
        self.recording.nodes.len() - 1
    }

    /// The folder that a path is in, and its name there; nothing is the root's name.
    fn place(&self, path: &str) -> (usize, String) {
        let below = path.strip_prefix(self.root).unwrap_or_else(|| panic!("{path} is elsewhere"));
        let mut parts: Vec<&str> = below.split('/').filter(|part| !part.is_empty()).collect();
        let name = parts.pop().unwrap_or_default();
        (parts.into_iter().fold(0, |folder, part| self.folders[&folder][part]), name.to_owned())
    }

    fn name(&mut self, path: &str, node: Option<usize>) {
        let (folder, name) = self.place(path);
        self.names(folder, vec![(name, node)]);
    }

    fn names(&mut self, folder: usize, names: Vec<(String, Option<usize>)>) {
        let live = self.folders.entry(folder).or_default();
        for (name, node) in &names {
            match node {
                Some(node) => live.insert(name.clone(), *node),
                None => live.remove(name),
            };
        }
        self.recording.events.push(Event::Names(folder, names));
    }
}
