//! From PTX texts to `libcuda.so`: translate, compile, link, and keep every object in the cache.

use crate::{Unit, translate};
use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

macro_rules! sources {
    ($($name:literal)*) => { [$(($name, include_str!(concat!("../device/", $name)))),*] };
}
/// The device's own sources, by the name they are compiled under.
const DEVICE: [(&str, &str); 27] = sources! {
    "async.h" "driver.h" "fiber.h" "image.h" "kernel.h" "memory.h" "race.h" "settings.h" "tensor_core.h"
    "block.cpp" "bulk.cpp" "copy.cpp" "device.cpp" "fiber.cpp" "image.cpp" "launch.cpp" "mbarrier.cpp"
    "memory.cpp" "module.cpp" "race.cpp" "settings.cpp" "shared_memory.cpp" "stream.cpp" "tensor_core.cpp"
    "tensor_map.cpp" "transfer.cpp" "wgmma.cpp"
};
/// The stand-in for cuBLASLt.
const CUBLASLT: &str = include_str!("../cublaslt/cublaslt.cpp");
const FLAGS: [&str; 4] = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-march=native"];
const DEVICE_FLAGS: [&str; 3] = ["-O3", "-Wall", "-Wextra"];
/// PTX means every operation as it is written: no fusing, and wrapping integers.
const UNIT_FLAGS: [&str; 5] = ["-O1", "-w", "-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing"];

/// Builds the `libcuda.so` that runs `units`, or finds it in `cache` by a hash of the PTX, of this crate's sources and
/// of the compiler's version. Several processes may call it at once: they take turns at a lock file in `cache`.
/// Returns the folder that holds the library.
///
/// # Errors
/// No C++ compiler (`g++`, or `$CXX`), a PTX instruction that is not translated, a file that cannot be written.
pub fn build(units: &[Unit<'_>], cache: &Path) -> Result<PathBuf, String> {
    let compiler = Compiler::find()?;
    let at = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    fs::create_dir_all(cache).map_err(|e| at(cache, e))?;
    let cache = cache.canonicalize().map_err(|e| at(cache, e))?;
    let lock = cache.join("lock");
    let lock_file = fs::File::create(&lock).map_err(|e| at(&lock, e))?;
    lock_file.lock().map_err(|e| at(&lock, e))?;

    let device = hash(&(DEVICE, FLAGS, DEVICE_FLAGS, UNIT_FLAGS, &compiler.version));
    let sources = cache.join(format!("device-{device}"));
    fs::create_dir_all(&sources).map_err(|e| at(&sources, e))?;
    for (name, text) in DEVICE {
        let path = sources.join(name);
        fs::write(&path, text).map_err(|e| at(&path, e))?;
    }
    let mut jobs = vec![];
    for (name, _) in DEVICE.iter().filter(|(name, _)| name.ends_with(".cpp")) {
        jobs.push(Job {
            source: sources.join(name),
            object: sources.join(format!("{name}.o")),
            flags: &DEVICE_FLAGS,
        });
    }
    for unit in units {
        let text = translated(unit)?;
        let stem = format!("{}-{}", unit.name, hash(&(&device, &text)));
        let source = cache.join(format!("{stem}.cpp"));
        fs::write(&source, text).map_err(|e| at(&source, e))?;
        jobs.push(Job { source, object: cache.join(format!("{stem}.o")), flags: &UNIT_FLAGS });
    }
    let folder = cache.join(hash(&jobs.iter().map(|job| &job.object).collect::<Vec<_>>()));
    let library = folder.join("libcuda.so");
    if library.exists() {
        return Ok(folder);
    }
    each_on_its_core(&jobs, |job| job.run(&compiler, &sources))?;
    fs::create_dir_all(&folder).map_err(|e| at(&folder, e))?;
    let unfinished = folder.join("unfinished");
    let mut link = Command::new(&compiler.program);
    link.args(["-shared", "-Wl,-soname,libcuda.so", "-o"]).arg(&unfinished);
    run(link.args(jobs.iter().map(|job| &job.object)).args(["-lpthread", "-ldl"]))?;
    fs::rename(&unfinished, &library).map_err(|e| at(&library, e))?;
    Ok(folder)
}

/// Builds the `libcublasLt.so.12` that computes on the simulated device, or finds it in `cache`. Returns its path. It is
/// not beside `libcuda.so`: who wants it says so by this path.
///
/// # Errors
/// No C++ compiler, or a file that cannot be written.
pub fn build_cublaslt(cache: &Path) -> Result<PathBuf, String> {
    let compiler = Compiler::find()?;
    let at = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    let name = hash(&(CUBLASLT, FLAGS, DEVICE_FLAGS, &compiler.version));
    let folder = cache.join(format!("cublaslt-{name}"));
    fs::create_dir_all(&folder).map_err(|e| at(&folder, e))?;
    let lock = folder.join("lock");
    let lock_file = fs::File::create(&lock).map_err(|e| at(&lock, e))?;
    lock_file.lock().map_err(|e| at(&lock, e))?;
    let library = folder.join("libcublasLt.so.12");
    if library.exists() {
        return Ok(library);
    }
    let (source, unfinished) = (folder.join("cublaslt.cpp"), folder.join("unfinished"));
    fs::write(&source, CUBLASLT).map_err(|e| at(&source, e))?;
    let mut command = Command::new(&compiler.program);
    command.args(FLAGS).args(DEVICE_FLAGS).args(["-shared", "-o"]).arg(&unfinished);
    run(command.arg(&source).arg("-ldl"))?;
    fs::rename(&unfinished, &library).map_err(|e| at(&library, e))?;
    Ok(library)
}

struct Compiler {
    program: String,
    version: String,
}

impl Compiler {
    fn find() -> Result<Self, String> {
        let program = env::var("CXX").unwrap_or_else(|_| "g++".into());
        let output = Command::new(&program).arg("--version").output();
        let output = output
            .map_err(|e| format!("the simulated device needs a C++ compiler: {program}: {e} (set CXX)"))?;
        Ok(Self { program, version: String::from_utf8_lossy(&output.stdout).into_owned() })
    }
}

/// One object file: of the device itself, or of a unit.
struct Job {
    source: PathBuf,
    object: PathBuf,
    flags: &'static [&'static str],
}

impl Job {
    fn run(&self, compiler: &Compiler, sources: &Path) -> Result<(), String> {
        if self.object.exists() {
            return Ok(());
        }
        let unfinished = self.object.with_extension("unfinished");
        let mut command = Command::new(&compiler.program);
        command.args(FLAGS).args(self.flags).arg("-I").arg(sources);
        run(command.arg("-c").arg(&self.source).arg("-o").arg(&unfinished))?;
        fs::rename(&unfinished, &self.object).map_err(|e| format!("{}: {e}", self.object.display()))
    }
}

fn translated(unit: &Unit<'_>) -> Result<String, String> {
    translate(unit.name, unit.ptx).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(|e| format!("{}.ptx: {e}", unit.name)).collect();
        format!("PTX that the simulated device does not know:\n{}", lines.join("\n"))
    })
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

fn hash(value: &impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Runs `work` on every item, on all cores; the first failure wins.
fn each_on_its_core<T: Sync>(
    items: &[T],
    work: impl Fn(&T) -> Result<(), String> + Sync,
) -> Result<(), String> {
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(Ok(())));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(e) = work(item) {
                        *failure.lock().unwrap() = Err(e);
                        return;
                    }
                }
            });
        }
    });
    failure.into_inner().unwrap()
}
