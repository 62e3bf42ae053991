//! Runs that are asked to end, or whose terminal is gone: they save, and they end.

use crate::common::*;
use std::ffi::{CStr, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// More steps than a test has time for.
const ENDLESS: usize = 100_000;

/// Lets a run hear that its terminal is closed, also where the tests themselves were begun by `nohup`.
fn hears_hangups(command: &mut Command) -> &mut Command {
    let listen = || {
        // SAFETY: it touches no memory.
        let before = unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
        if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: it is a system call, which may stand between fork and exec.
    unsafe { command.pre_exec(listen) }
}

/// A run that was stopped by a signal: it ends by itself, and its last step is saved.
#[track_caller]
fn is_saved(child: Child, place: &Workplace, output: &str) {
    let ended = end(child);
    assert_eq!(ended.status.code(), Some(75), "{ended:?}");
    let steps = place.steps(output).len();
    assert!(place.checkpoint(output, steps).join("trainer_state.json").exists(), "step {steps}");
    let events = lines(&place.path(output).join("metrics.jsonl"));
    assert_eq!(events.last().unwrap()["reason"], "stopped");
}

#[test]
fn a_run_ends_with_its_model_though_nothing_it_tells_can_be_written() {
    let place = Workplace::new();
    let (_, closed) = io::pipe().unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    for (output, stderr) in [("full", Stdio::from(full)), ("closed", closed.into())] {
        let child = place.train(output, 7, &[]).stderr(stderr).spawn().unwrap();
        assert_eq!(end(child).status.code(), Some(0), "{output}");
        assert_eq!(place.steps(output).len(), 7);
        assert_eq!(place.checkpoints(output), ["latest", "step-00000006", "step-00000007"]);
    }
}

#[test]
fn every_signal_saves_though_nothing_the_run_tells_can_be_written() {
    let place = Workplace::new();
    for name in ["-TERM", "-INT", "-HUP"] {
        let (_, closed) = io::pipe().unwrap();
        let (output, folder) = (&name[1..], place.path(&name[1..]));
        let mut command = place.train(output, ENDLESS, &[]);
        let mut child = hears_hangups(&mut command).stderr(closed).spawn().unwrap();
        await_lines(&mut child, &folder, 5);
        signal(&child, name);
        is_saved(child, &place, output);
    }
}

/// A terminal: the side of who sits before it, and the side of processes.
fn terminal() -> (File, File) {
    let open = |path: &OsStr| {
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap()
    };
    let outside = open("/dev/ptmx".as_ref());
    let mut name = [0; 64];
    // SAFETY: the descriptor is open, and the name's length is told.
    let result = unsafe {
        libc::unlockpt(outside.as_raw_fd())
            | libc::ptsname_r(outside.as_raw_fd(), name.as_mut_ptr().cast(), name.len())
    };
    assert_eq!(result, 0);
    let inside = open(OsStr::from_bytes(CStr::from_bytes_until_nul(&name).unwrap().to_bytes()));
    (outside, inside)
}

#[test]
fn a_run_whose_terminal_is_closed_saves() {
    let place = Workplace::new();
    let (outside, inside) = terminal();
    let mut command = place.train("run", ENDLESS, &[]);
    command.stdin(inside.try_clone().unwrap()).stdout(inside.try_clone().unwrap()).stderr(inside);
    let lead_a_session = || {
        // SAFETY: neither call touches memory; the terminal is the standard input.
        let result = unsafe { libc::setsid().min(libc::ioctl(0, libc::TIOCSCTTY, 0)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: these are system calls, which may stand between fork and exec.
    unsafe { command.pre_exec(lead_a_session) };
    let mut child = hears_hangups(&mut command).spawn().unwrap();
    drop(command);
    await_lines(&mut child, &place.path("run"), 5);
    drop(outside);
    is_saved(child, &place, "run");
}

#[test]
fn a_run_begun_by_nohup_goes_on_when_its_terminal_is_closed() {
    const STEPS: usize = 60;
    let place = Workplace::new();
    let train = place.train("run", STEPS, &[]);
    let mut command = Command::new("nohup");
    command.arg(train.get_program()).args(train.get_args()).env("QFORMER_DEVICE", "cpu");
    let child = start(&mut command, &place.path("run"), 5);
    signal(&child, "-HUP");
    let ended = end(child);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(place.steps("run").len(), STEPS);
}

/// A pipe that is full is not closed: whoever writes to it waits.
#[test]
fn a_second_signal_ends_a_run_whose_remarks_nobody_reads() {
    let place = Workplace::new();
    let (reader, mut writer) = io::pipe().unwrap();
    let stderr = writer.try_clone().unwrap();
    let filling = thread::spawn(move || while writer.write_all(&[b' '; 4096]).is_ok() {});
    let mut child = place.train("run", ENDLESS, &["--quiet"]).stderr(stderr).spawn().unwrap();
    await_lines(&mut child, &place.path("run"), 5);
    let begun = Instant::now();
    let status = loop {
        signal(&child, "-TERM");
        sleep(Duration::from_millis(20));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("it does not end");
        }
    };
    assert_eq!(status.code(), Some(130));
    drop(reader);
    filling.join().unwrap();
    assert!(fs::exists(place.path("run/config.toml")).unwrap());
}
