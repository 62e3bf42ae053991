//! No loss of power, at whatever moment, costs a checkpoint that was told as written.
//!
//! What a run asks of the file system is recorded. After every one of these calls the power may fail; then names and
//! data that were not synchronised may be lost, and of such disks some are drawn.

mod disk;
mod record;

use crate::common::*;
use disk::{Crash, Event, Found, Random, Recording, State};
use qformer::train::Run;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Steps of the run, a checkpoint every second one.
const STEPS: usize = 8;
/// Different disks that are looked at.
const DISKS: usize = 10_000;
/// Disks that the program's own reader is shown.
const SHOWN: usize = 1000;
/// Disks from which the run is continued to its end.
const CONTINUED: usize = 4;

/// The step that a run on this disk goes on from, by the rule: the newest checkpoint that has all its files, whole.
/// Fails if what is there is no run and not nearly empty either, if no checkpoint of some is whole, and if one that was
/// told is lost.
fn judge(recording: &Recording, state: &State, told: Option<usize>) -> Result<Option<usize>, String> {
    let is_whole = |found: &Found| matches!(found, Found::File(file) if recording.is_whole(*file));
    if !state.get("run/config.toml").is_some_and(is_whole) {
        let is_ours = |path: &String| {
            let name = path.strip_prefix("run/").unwrap_or_default();
            path == "run" || name == ".lock" || name.starts_with(".qformer-")
        };
        return match (told, state.keys().find(|path| !is_ours(path))) {
            (None, None) => Ok(None),
            (_, other) => Err(format!("no settings, but {told:?} was told and {other:?} is there")),
        };
    }
    let there = recording.checkpoints.keys().rev().filter(|step| state.contains_key(&path_of(**step)));
    let whole = |step: &&usize| {
        let files = &recording.checkpoints[*step];
        files.iter().all(|(name, node)| match state.get(&format!("{}/{name}", path_of(**step))) {
            Some(Found::File(file)) => file.node == *node && recording.is_whole(*file),
            _ => false,
        })
    };
    let found = there.clone().find(whole).copied();
    if found.is_none() && there.count() > 0 {
        return Err("no checkpoint is whole".into());
    }
    if found < told { Err(format!("{told:?} was told, but {found:?} is there")) } else { Ok(found) }
}

fn path_of(step: usize) -> String {
    format!("run/checkpoints/step-{step:08}")
}

/// Disks after a crash at any moment, with the step of the last checkpoint told before it; all are different.
struct Disks(Vec<(State, Option<usize>)>);

impl Disks {
    /// Draws one at every moment, then again, until there are `count`.
    fn of(recording: &Recording, count: usize) -> Self {
        let mut random = Random(1);
        let (mut states, mut seen) = (Vec::new(), HashSet::new());
        while states.len() < count {
            for at in 0..=recording.events.len() {
                let told = recording.told.iter().rev().find(|(after, _)| *after <= at).map(|(_, step)| *step);
                let state = Crash::after(recording, at).draw(&mut random);
                if seen.insert((state.clone(), told)) {
                    states.push((state, told));
                }
            }
        }
        Self(states)
    }

    /// How many break the promise.
    fn bad(&self, recording: &Recording) -> usize {
        self.0.iter().filter(|(state, told)| judge(recording, state, *told).is_err()).count()
    }
}

/// The recording without synchronising what `is_left_out` says.
fn without(mut recording: Recording, is_left_out: impl Fn(&Event) -> bool) -> Recording {
    for event in &mut recording.events {
        if is_left_out(event) {
            *event = Event::Nothing;
        }
    }
    recording
}

fn record(place: &Workplace) -> (Recording, PathBuf) {
    let root = place.path("recorded");
    fs::create_dir(&root).unwrap();
    // As the program names it.
    let root = root.canonicalize().unwrap();
    let mut command = place.train("recorded/run", STEPS, &["--save-frequency", "2"]);
    (record::record(command.args(["--keep", "2"]), &root, &place.path("")), root)
}

/// A folder in memory, if there is such a file system.
fn fast_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    TempDir::new_in(memory).or_else(|_| TempDir::new()).unwrap()
}

/// What the program's reader takes from the disk in `folder`, which it may change.
fn read(folder: &Path) -> Result<Option<usize>, String> {
    let run = folder.join("run");
    let mut warnings = Vec::new();
    let opened = match Run::exists(&run) {
        true => Run::reopen(&run, &mut |warning| warnings.push(warning)),
        false => Run::create(&run, &toml::Table::new()),
    };
    let run = opened.map_err(|error| error.to_string())?;
    Ok(run.saved().map(|saved| saved.state.global_step))
}

#[test]
fn a_loss_of_power_at_any_moment_loses_no_checkpoint_that_was_told() {
    let place = Workplace::new();
    let (recording, _) = record(&place);
    assert_eq!(recording.told.iter().map(|(_, step)| *step).collect::<Vec<_>>(), [2, 4, 6, 8]);
    let Disks(disks) = Disks::of(&recording, DISKS);
    for (state, told) in &disks {
        if let Err(fault) = judge(&recording, state, *told) {
            panic!("{fault}: {state:#?}");
        }
    }
    // The rule is the program's.
    let (work, store) = (fast_folder(), fast_folder());
    for (number, (state, told)) in disks.iter().step_by(disks.len().div_ceil(SHOWN)).enumerate() {
        let folder = work.path().join(number.to_string());
        fs::create_dir(&folder).unwrap();
        recording.put(state, &folder, store.path());
        assert_eq!(read(&folder), judge(&recording, state, *told), "{state:#?}");
        fs::remove_dir_all(&folder).unwrap();
    }
    // And what it goes on from ends as if nothing had happened.
    let begun: Vec<_> = disks.iter().filter(|(state, _)| state.contains_key("run/config.toml")).collect();
    for number in 0..CONTINUED {
        let (state, _) = begun[(2 * number + 1) * begun.len() / (2 * CONTINUED)];
        let name = format!("continued-{number}");
        fs::create_dir(place.path(&name)).unwrap();
        recording.put(state, &place.path(&name), store.path());
        run(&mut place.resume(&format!("{name}/run"))).with(0, &[]);
        let (found, expected) =
            (place.result(&format!("{name}/run"), STEPS), place.result("recorded/run", STEPS));
        assert!(found == expected, "{state:#?}");
    }
}

#[test]
fn disks_of_a_run_that_synchronises_less_lose_checkpoints() {
    let place = Workplace::new();
    let (recording, root) = record(&place);
    let node_of = |name: &str| {
        let of_event = |event: &Event| match event {
            Event::Names(_, names) => {
                names.iter().find(|(found, _)| found == name).and_then(|(_, node)| *node)
            }
            _ => None,
        };
        recording.events.iter().find_map(of_event).unwrap()
    };
    let [run, checkpoints, partial] = ["run", "checkpoints", ".step-00000004.partial"].map(node_of);
    let log = fs::read(place.path("log")).unwrap();
    // Files, the run's name, what is in its folder, the checkpoints' names, and what is in one of them.
    let bad = [None, Some(0), Some(run), Some(checkpoints), Some(partial)].map(|folder| {
        let less = without(record::replay(&root, &log), |event| match event {
            Event::SyncFile(_) => folder.is_none(),
            Event::SyncFolder(of) => folder == Some(*of),
            _ => false,
        });
        Disks::of(&less, 500).bad(&less)
    });
    println!("{bad:?} disks break the promise");
    assert!(bad.iter().all(|&bad| bad > 0), "{bad:?}");
}
