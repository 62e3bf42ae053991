//! The promises that keep the code base simple: which module may use which, where the device's
//! library is named, and how long a file may get.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules of the library, each with those it may name.
const MAY_USE: [(&str, &[&str]); 20] = [
    ("error", &[]),
    ("tensor", &["error"]),
    ("random", &[]),
    ("input", &["error"]),
    ("output", &["error", "input"]),
    ("tokenizer", &["error", "input", "output"]),
    ("config", &["error", "input", "tokenizer"]),
    ("device", &["error", "tensor", "memory"]),
    ("memory", &["error", "tensor", "device"]),
    ("ops", &["error", "tensor", "device", "config", "random"]),
    ("params", &["error", "input", "output", "tensor", "memory", "device", "config"]),
    ("generate", &["error", "input", "random"]),
    ("layers", &["error", "tensor", "memory", "device", "ops", "params"]),
    (
        "models::vision",
        &["error", "input", "tensor", "memory", "device", "config", "ops", "params", "layers"],
    ),
    ("data", &["error", "input", "output", "tensor", "random", "params", "tokenizer", "models::vision"]),
    (
        "train",
        &[
            "error",
            "input",
            "output",
            "tensor",
            "memory",
            "device",
            "config",
            "ops",
            "params",
            "layers",
            "generate",
            "models::qformer",
            "models::vision",
            "tokenizer",
            "data",
        ],
    ),
    (
        "models::qformer",
        &[
            "error",
            "tensor",
            "tokenizer",
            "memory",
            "device",
            "config",
            "ops",
            "params",
            "layers",
            "generate",
        ],
    ),
    (
        "models::language",
        &["error", "tensor", "memory", "device", "config", "ops", "params", "layers", "generate"],
    ),
    (
        "pipeline",
        &[
            "error",
            "tensor",
            "tokenizer",
            "memory",
            "device",
            "config",
            "ops",
            "params",
            "generate",
            "models::language",
            "models::qformer",
            "models::vision",
            "evaluate",
        ],
    ),
    ("evaluate", &["error", "tensor", "params", "ops", "models::qformer"]),
];

/// Longest file, in lines; generated or tabular ones would be named here with a reason.
const LINES: usize = 420;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Rust files below `folder`, with their texts.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path, text));
            }
        }
    }
    assert!(!files.is_empty());
    files.sort();
    files
}

/// The module a file of the library belongs to; of a model its own.
fn module(path: &Path) -> String {
    let below = path.strip_prefix(root().join("src")).unwrap().with_extension("");
    let names: Vec<&str> = below.iter().map(|name| name.to_str().unwrap()).collect();
    let parts = if names[0] == "models" { 2 } else { 1 };
    names[..parts].join("::")
}

#[test]
fn dependencies_run_downward() {
    let mut uses = 0;
    for (path, text) in sources("src")
        .iter()
        .filter(|(path, _)| !["lib", "bin", "architecture", "models::mod"].contains(&&*module(path)))
    {
        let own = module(path);
        let (_, allowed) =
            MAY_USE.iter().find(|(name, _)| *name == own).unwrap_or_else(|| panic!("{own} is not listed"));
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for used in code.flat_map(|line| line.split("crate::").skip(1)) {
            let name: String =
                used.chars().take_while(|c| c.is_alphanumeric() || "_:".contains(*c)).collect();
            let names: Vec<&str> = name.split("::").collect();
            let parts = if names[0] == "models" { 2 } else { 1 };
            let name = names[..parts].join("::");
            // Types that the crate's root exports again.
            if name.starts_with(char::is_uppercase) || name == own {
                continue;
            }
            assert!(allowed.contains(&&*name), "{} names crate::{name}", path.display());
            uses += 1;
        }
    }
    assert!(uses > 100, "only {uses} uses were seen");
}

#[test]
fn cuda_is_named_only_where_it_lives() {
    for (path, text) in sources("src") {
        let below = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let at_home = below.starts_with("src/device/cuda")
            || (below.starts_with("src/ops/") && below.ends_with("/cuda.rs"));
        assert!(at_home || !text.contains("cudarc"), "{below} names cudarc");
    }
}

#[test]
fn features_choose_modules_not_lines() {
    let mut seen = 0;
    for (path, text) in sources("src") {
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("feature = ")) {
            // Where the crate as a whole is told what is dead.
            if path.ends_with("src/lib.rs")
                && line.starts_with("#![cfg_attr(not(feature = \"engine\"), allow(")
            {
                continue;
            }
            let next = lines[i + 1].trim_start();
            let chosen = ["mod ", "pub mod ", "pub(crate) mod ", "use ", "pub use ", "pub(crate) use "];
            let is_chosen = line.starts_with("#[cfg(") && chosen.iter().any(|c| next.starts_with(c));
            assert!(is_chosen, "{}:{}", path.display(), i + 1);
            seen += 1;
        }
    }
    assert!(seen > 0, "no feature was seen");
}

/// A run trains whatever it is given: the losses' names are the objective's.
#[test]
fn runs_know_no_loss_by_name() {
    let of_losses =
        ["itc", "itm", "itg", "lm", "contrastive", "matching", "captioning", "stage1", "stage2", "stage"];
    for (path, text) in sources("src/train/run") {
        let words = text.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase);
        let found = words.into_iter().find(|word| of_losses.contains(&&**word));
        assert_eq!(found, None, "{}", path.display());
    }
}

/// A caller of the library, or another program on top of it, has no flags: `Error` carries the settings' names, and the
/// command line translates them.
#[test]
fn messages_of_the_library_name_no_flags() {
    for (path, text) in sources("src").iter().filter(|(path, _)| module(path) != "bin") {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            let mut parts = line.split("--").skip(1);
            let flag = parts.find(|part| part.starts_with(|c: char| c.is_ascii_lowercase()));
            assert_eq!(flag, None, "{}: {line}", path.display());
        }
    }
}

/// `print!`, `eprintln!` and their like panic if a stream cannot be written: it would be told as a fault, or hang the program.
#[test]
fn lines_are_written_where_a_closed_stream_is_thought_of() {
    for (path, text) in sources("src") {
        let macros = ["print!(", "println!("];
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let found = code.flat_map(str::split_whitespace).find(|word| macros.iter().any(|m| word.contains(m)));
        assert_eq!(found, None, "{}", path.display());
        let at_home = path.ends_with("src/bin/qformer/streams.rs");
        assert!(at_home || !text.contains("stdout()"), "{} writes to the standard output", path.display());
    }
}

/// Names of the packages that are built with `features`.
fn packages(features: &[&str]) -> Vec<String> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["tree", "-p", "qformer", "-e", "normal", "--prefix", "none", "--locked", "--offline"]);
    let output = command.args(features).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn the_library_alone_has_none_of_the_programs_packages() {
    let (programs, library) = (packages(&[]), packages(&["--no-default-features"]));
    for name in ["clap", "ctrlc", "indicatif", "cudarc"] {
        assert!(programs.iter().any(|package| package == name), "{name} is not seen");
        assert!(!library.iter().any(|package| package == name), "{name} comes with the library");
    }
    assert!(library.iter().any(|package| package == "safetensors"));
}

#[test]
fn no_file_is_too_long_to_read() {
    for (path, text) in ["src", "tests", "benches"].iter().flat_map(|folder| sources(folder)) {
        let lines = text.lines().count();
        assert!(lines <= LINES, "{} has {lines} lines", path.display());
    }
}

/// A folder of many files wants sub-folders that say what belongs together.
#[test]
fn no_folder_is_too_full_to_survey() {
    let mut files: std::collections::BTreeMap<PathBuf, usize> = Default::default();
    for (path, _) in sources("src") {
        *files.entry(path.parent().unwrap().to_owned()).or_default() += 1;
    }
    for (folder, count) in files {
        assert!(count <= 12, "{} has {count} files", folder.display());
    }
}

#[test]
fn inline_ptx_stands_in_its_own_headers() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("kernels")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().map(|line| line.split("//").next().unwrap());
        let words = code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'));
        let statements = words.filter(|word| ["asm", "__asm__"].contains(word)).count();
        assert!(
            statements == 0 || (name.starts_with("ptx") && name.ends_with(".cuh")),
            "{name} has inline PTX"
        );
        seen += statements;
    }
    assert!(seen > 0, "no inline PTX was seen");
}

#[test]
fn every_operation_has_its_files_and_its_test() {
    let mut count = 0;
    for entry in fs::read_dir(root().join("src/ops")).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        let stem = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(["mod.rs", "cpu.rs", "cuda.rs"].iter().all(|file| path.join(file).exists()), "{stem}");
        let tests = [format!("tests/ops/{stem}.rs"), format!("tests/ops/{stem}/mod.rs")];
        assert!(tests.iter().any(|test| root().join(test).exists()), "{stem} has no test");
        count += 1;
    }
    assert!(count >= 16);
}

/// The file that a path of names, from the crate's root on, leads to: the longest part of it that is one.
fn file_of(root: &Path, names: &[String]) -> Option<PathBuf> {
    (1..=names.len()).rev().find_map(|count| {
        let path = names[..count].iter().fold(root.to_owned(), |path, name| path.join(name));
        [path.with_extension("rs"), path.join("mod.rs")].into_iter().find(|file| file.exists())
    })
}

/// The paths that a `use` statement names, from the crate's root on, of a file in the module `own`.
fn paths_of(statement: &str, own: &[String]) -> Vec<Vec<String>> {
    let text: String = statement.split_whitespace().collect::<Vec<_>>().join(" ");
    let (head, tail) = text.split_once('{').unwrap_or((&text, ""));
    let mut base: Vec<String> = head.split("::").map(|name| name.trim().to_owned()).collect();
    let items: Vec<String> = match tail {
        "" => vec![base.pop().unwrap_or_default()],
        // Names within further braces are taken for names of the outer ones: their module is found all the same.
        _ => tail.split([',', '{', '}']).map(|item| item.trim().to_owned()).collect(),
    };
    let mut from = match base.first().map(|name| &**name) {
        Some("crate") => Vec::new(),
        Some("super") => own.to_vec(),
        _ => return Vec::new(),
    };
    for name in &base {
        match &**name {
            "super" => drop(from.pop()),
            "crate" | "" => {}
            name => from.push(name.to_owned()),
        }
    }
    let path = |item: String| from.iter().cloned().chain(item.split("::").map(str::to_owned)).collect();
    items.into_iter().filter(|item| !item.is_empty()).map(path).collect()
}

/// Files that import each other cannot be read one after the other. What a folder's `mod.rs` shares with the files in
/// it is theirs.
#[test]
fn files_do_not_import_in_circles() {
    for (folder, home) in
        [("src", "src"), ("src/bin/qformer", "main.rs"), ("src/bin/qformer-bench", "main.rs")]
    {
        let top = root().join(folder);
        let files = sources(folder);
        let files = files.iter().filter(|(path, _)| home != "src" || module(path) != "bin");
        let mut uses: Vec<(PathBuf, Vec<PathBuf>)> = Vec::new();
        for (path, text) in files {
            let below = path.strip_prefix(&top).unwrap().with_extension("");
            let mut own: Vec<String> = below.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
            if own.last().is_some_and(|name| name == "mod") {
                own.pop();
            }
            let code = text.split("#[cfg(test)]").next().unwrap();
            let statements = code.split("\nuse ").skip(1).map(|rest| rest.split(';').next().unwrap());
            let named = statements.flat_map(|statement| paths_of(statement, &own));
            let found = named.filter_map(|names| file_of(&top, &names));
            let is_other = |other: &PathBuf| {
                let is_within =
                    |a: &Path, b: &Path| a.ends_with("mod.rs") && b.starts_with(a.parent().unwrap());
                other != path && !is_within(other, path) && !is_within(path, other)
            };
            uses.push((path.clone(), found.filter(is_other).collect()));
        }
        assert!(uses.iter().map(|(_, used)| used.len()).sum::<usize>() > 20, "{folder}: no imports are seen");
        // Take away files that use no other until none is left.
        while let Some(last) = uses.iter().position(|(_, used)| used.is_empty()) {
            let (done, _) = uses.swap_remove(last);
            uses.iter_mut().for_each(|(_, used)| used.retain(|file| *file != done));
        }
        // What is left also holds files that only lead to a circle.
        let names: Vec<String> = uses.iter().map(|(file, used)| format!("{file:?} uses {used:?}")).collect();
        assert!(uses.is_empty(), "a circle of imports is among these:\n{}", names.join("\n"));
    }
}
