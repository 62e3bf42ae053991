//! What a disk may hold after a loss of power: names and data that were not synchronised are there, or not.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

/// Bytes that a disk writes whole or not at all.
const SECTOR: usize = 512;

/// A file, folder or symbolic link, whatever it is called.
pub(crate) enum Kind {
    Folder,
    File,
    Symlink(String),
}

/// What a program asked of the file system; nodes are by number, the recording's folder is 0.
pub(crate) enum Event {
    /// Names of a folder that come to mean another node, or none; all at once.
    Names(usize, Vec<(String, Option<usize>)>),
    /// Bytes of a file from a place on.
    Data(usize, usize, Vec<u8>),
    SyncFile(usize),
    SyncFolder(usize),
    /// One that is left out.
    Nothing,
}

/// All that a program asked, in order.
pub(crate) struct Recording {
    pub(crate) nodes: Vec<Kind>,
    pub(crate) events: Vec<Event>,
    /// How many events came before a line of the metrics that tells of a checkpoint, and its step.
    pub(crate) told: Vec<(usize, usize)>,
    /// Names and nodes of every checkpoint's files, by step.
    pub(crate) checkpoints: BTreeMap<usize, BTreeMap<String, usize>>,
    /// Number of writes to a node.
    pub(crate) writes: BTreeMap<usize, usize>,
}

/// What a file holds: the first `synchronised` writes to a node, and what became of those after them up to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Contents {
    pub(crate) node: usize,
    synchronised: usize,
    end: usize,
    fate: Fate,
}

/// What became of data that were not synchronised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Fate {
    Written,
    /// The length was written, the bytes were not.
    Zero,
    /// Some sectors were not written.
    Torn(u64),
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Found {
    Folder,
    File(Contents),
    Symlink(String),
}

/// A disk after a crash: paths below the recording's folder.
pub(crate) type State = BTreeMap<String, Found>;

/// Numbers that look random.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % end
    }
}

/// What a crash after some events leaves for certain, and what may be lost.
pub(crate) struct Crash<'a> {
    recording: &'a Recording,
    at: usize,
    /// Events about names that may be lost.
    loose: Vec<usize>,
    /// Writes to each node that were synchronised.
    synchronised: BTreeMap<usize, usize>,
    /// All writes to each node.
    written: BTreeMap<usize, usize>,
}

impl<'a> Crash<'a> {
    /// A crash after `at` events.
    pub(crate) fn after(recording: &'a Recording, at: usize) -> Self {
        let mut safe = HashSet::new();
        let (mut loose, mut synchronised, mut written) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for (index, event) in recording.events[..at].iter().enumerate().rev() {
            match event {
                Event::SyncFile(node) | Event::SyncFolder(node) => drop(safe.insert(*node)),
                Event::Names(folder, _) if !safe.contains(folder) => loose.push(index),
                Event::Data(node, ..) => {
                    *written.entry(*node).or_insert(0) += 1;
                    *synchronised.entry(*node).or_insert(0) += usize::from(safe.contains(node));
                }
                Event::Names(..) | Event::Nothing => {}
            }
        }
        loose.reverse();
        Self { recording, at, loose, synchronised, written }
    }

    /// One of the disks that it may leave.
    pub(crate) fn draw(&self, random: &mut Random) -> State {
        // Names are lost in order, or any of them.
        let order = random.below(4);
        let cut = random.below(self.loose.len() + 1);
        let lost: HashSet<usize> = match order {
            0 => self.loose[cut..].iter().copied().collect(),
            1 => HashSet::new(),
            2 => self.loose.iter().copied().collect(),
            _ => self.loose.iter().copied().filter(|_| random.below(2) == 0).collect(),
        };
        let mut folders: BTreeMap<usize, BTreeMap<&str, usize>> = BTreeMap::new();
        for (index, event) in self.recording.events[..self.at].iter().enumerate() {
            let Event::Names(folder, names) = event else { continue };
            if lost.contains(&index) {
                continue;
            }
            let folder = folders.entry(*folder).or_default();
            for (name, node) in names {
                match node {
                    Some(node) => folder.insert(name, *node),
                    None => folder.remove(&**name),
                };
            }
        }
        let mut state = State::new();
        let mut fates = BTreeMap::new();
        self.walk(0, "", &folders, &mut fates, random, &mut state);
        state
    }

    fn walk(
        &self,
        folder: usize,
        path: &str,
        folders: &BTreeMap<usize, BTreeMap<&str, usize>>,
        fates: &mut BTreeMap<usize, Contents>,
        random: &mut Random,
        state: &mut State,
    ) {
        for (name, &node) in folders.get(&folder).into_iter().flatten() {
            let path = if path.is_empty() { (*name).to_owned() } else { format!("{path}/{name}") };
            let found = match &self.recording.nodes[node] {
                Kind::Folder => {
                    self.walk(node, &path, folders, fates, random, state);
                    Found::Folder
                }
                Kind::Symlink(target) => Found::Symlink(target.clone()),
                // A file with two names has one fate.
                Kind::File => Found::File(*fates.entry(node).or_insert_with(|| self.contents(node, random))),
            };
            state.insert(path, found);
        }
    }

    fn contents(&self, node: usize, random: &mut Random) -> Contents {
        let count = |of: &BTreeMap<usize, usize>| of.get(&node).copied().unwrap_or(0);
        let (synchronised, end) = (count(&self.synchronised), count(&self.written));
        let whole = |end| Contents { node, synchronised: end, end, fate: Fate::Written };
        if synchronised == end {
            return whole(end);
        }
        match random.below(5) {
            0 => whole(synchronised),
            1 => whole(end),
            2 => whole(synchronised + random.below(end - synchronised + 1)),
            3 => Contents { node, synchronised, end, fate: Fate::Zero },
            _ => Contents { node, synchronised, end, fate: Fate::Torn(random.below(1 << 16) as u64) },
        }
    }
}

impl Recording {
    /// Whether a file holds all that was ever written to its node.
    pub(crate) fn is_whole(&self, contents: Contents) -> bool {
        let all = self.writes.get(&contents.node).copied().unwrap_or(0);
        contents.end == all && contents.fate == Fate::Written
    }

    fn bytes(&self, contents: Contents) -> Vec<u8> {
        let mut bytes = Vec::new();
        let data = self.events.iter().filter_map(|event| match event {
            Event::Data(node, at, data) if *node == contents.node => Some((*at, data)),
            _ => None,
        });
        let mut random = Random(contents.end as u64);
        for (index, (at, data)) in data.take(contents.end).enumerate() {
            bytes.resize(bytes.len().max(at + data.len()), 0);
            let place = &mut bytes[at..at + data.len()];
            match contents.fate {
                Fate::Zero if index >= contents.synchronised => {}
                Fate::Torn(seed) if index >= contents.synchronised => {
                    random.0 ^= seed;
                    let sectors = place.chunks_mut(SECTOR).zip(data.chunks(SECTOR));
                    for (place, data) in sectors.filter(|_| random.below(2) == 0) {
                        place.copy_from_slice(data);
                    }
                }
                _ => place.copy_from_slice(data),
            }
        }
        bytes
    }

    /// Puts `state` into the empty folder `folder`. Files that nobody writes to come from `store`, where each is kept
    /// once it was made.
    pub(crate) fn put(&self, state: &State, folder: &Path, store: &Path) {
        for (path, found) in state {
            let target = folder.join(path);
            match found {
                Found::Folder => fs::create_dir(target).unwrap(),
                Found::Symlink(to) => std::os::unix::fs::symlink(to, target).unwrap(),
                Found::File(contents) if path.contains("/step-") => {
                    let kept =
                        store.join(format!("{contents:?}").replace(|c: char| !c.is_alphanumeric(), "-"));
                    if !kept.exists() {
                        fs::write(&kept, self.bytes(*contents)).unwrap();
                    }
                    fs::hard_link(&kept, &target).or_else(|_| fs::copy(&kept, &target).map(drop)).unwrap();
                }
                Found::File(contents) => fs::write(target, self.bytes(*contents)).unwrap(),
            }
        }
    }
}
