//! Runs a target on its corpus and on a walk of inputs made of it.

use crate::memory::{alone, peak_of};
use crate::mutation::{Draws, mutated};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant, UNIX_EPOCH};
use tempfile::TempDir;

/// Inputs tried after the corpus.
const EXECUTIONS: u64 = 1500;

/// What makes a walk of so many seconds in place of [`EXECUTIONS`] inputs.
const SECONDS: &str = "QFORMER_FUZZ_SECONDS";

/// Longest time that an input may take: far more than any does, and less than for ever.
const HANG: Duration = Duration::from_secs(60);

/// A parser, and what it is fed with.
pub(crate) struct Target {
    /// Name of its folder in the corpus.
    pub(crate) name: &'static str,
    /// Reads `input`, which it may write to files in the folder, and uses what was read.
    pub(crate) read: fn(folder: &Folder, input: &[u8]),
    /// Inputs beside those of the corpus.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// What its inputs are made of.
    pub(crate) dictionary: &'static [&'static [u8]],
    /// Bytes allowed beyond four times the input's and 64 MiB.
    pub(crate) allowance: fn(&[u8]) -> usize,
}

/// A folder for files that are read.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    /// Writes a file, and gives its path.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        if !path.parent().unwrap().exists() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// Reads `input` once; the error tells what was wrong with that.
pub(crate) fn execute(target: &Target, folder: &Folder, input: &[u8]) -> Result<(), String> {
    let limit = (target.allowance)(input) + 4 * input.len() + (64 << 20);
    let start = Instant::now();
    let (ending, peak) = peak_of(|| catch_unwind(AssertUnwindSafe(|| (target.read)(folder, input))));
    if ending.is_err() {
        return Err("panics".into());
    }
    if peak > limit {
        return Err(format!("allocates {peak} bytes; {limit} are allowed"));
    }
    if start.elapsed() > HANG {
        return Err(format!("takes {} s", start.elapsed().as_secs()));
    }
    Ok(())
}

/// Runs the corpus and the walk.
///
/// # Panics
/// Panics at the first input that is not borne, which is left in a file.
pub(crate) fn walk(target: &Target) {
    let _alone = alone();
    let folder = Folder::new();
    let stored = fs::read_dir(format!("tests/fuzz/corpus/{}", target.name));
    let mut paths: Vec<PathBuf> = stored.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    seeds.extend((target.seeds)());
    assert!(!seeds.is_empty(), "{} has no corpus", target.name);
    seeds.iter().for_each(|input| run(target, &folder, input));
    match std::env::var(SECONDS) {
        Err(_) => {
            (0..EXECUTIONS).for_each(|seed| step(target, &folder, &seeds, seed));
        }
        Ok(seconds) => {
            let length = Duration::from_secs(seconds.parse().expect("a number of seconds"));
            let start = Instant::now();
            // Another walk each time.
            let first = UNIX_EPOCH.elapsed().unwrap().as_micros() as u64;
            let ran = (0..).take_while(|_| start.elapsed() < length);
            let count = ran.inspect(|seed| step(target, &folder, &seeds, first + seed)).count();
            println!("{}: {count} inputs", target.name);
        }
    }
}

fn step(target: &Target, folder: &Folder, seeds: &[Vec<u8>], seed: u64) {
    run(target, folder, &mutated(seeds, target.dictionary, &mut Draws::new(target.name, seed)));
}

fn run(target: &Target, folder: &Folder, input: &[u8]) {
    if let Err(what) = execute(target, folder, input) {
        let name = target.name;
        let path = std::env::temp_dir().join(format!("qformer-fuzz-{name}-{:08x}", crc32fast::hash(input)));
        fs::write(&path, input).unwrap();
        panic!(
            "{name} {what}. The input is {}; to repeat it, copy it to tests/fuzz/corpus/{name} and run \
             cargo test --release --test fuzz {name}",
            path.display()
        );
    }
}

fn canary(read: fn(&Folder, &[u8])) -> Target {
    Target {
        name: "canary",
        read,
        seeds: || vec![b"seed".to_vec()],
        dictionary: &[b"panic"],
        allowance: |_| 0,
    }
}

#[test]
fn a_planted_panic_and_a_planted_blow_up_are_seen() {
    let _alone = alone();
    let folder = Folder::new();
    let target = canary(|_, input| assert!(!input.windows(5).any(|part| part == b"panic"), "planted"));
    let seeds = (target.seeds)();
    assert_eq!(execute(&target, &folder, &seeds[0]), Ok(()));
    let found = (0..EXECUTIONS).find_map(|seed| {
        let input = mutated(&seeds, target.dictionary, &mut Draws::new(target.name, seed));
        execute(&target, &folder, &input).err()
    });
    assert_eq!(found.as_deref(), Some("panics"));

    let target = canary(|_, input| drop(vec![1_u8; (64 << 20) + 4 * input.len() + 1]));
    let what = execute(&target, &folder, &seeds[0]).unwrap_err();
    assert!(what.contains("allocates"), "{what}");
}

#[test]
fn a_folder_of_the_corpus_belongs_to_a_target() {
    let known: Vec<&str> = crate::targets::ALL.iter().map(|target| target.name).collect();
    for entry in fs::read_dir("tests/fuzz/corpus").unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&&*name), "{name}");
    }
}
