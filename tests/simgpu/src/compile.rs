//! From PTX texts to `libcuda.so`: translate, compile, link, and keep every object in the cache.

use crate::Unit;
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

/// The device's own sources, by the name they are compiled under.
const DEVICE: [(&str, &str); 5] = [
    ("sim.h", include_str!("../device/sim.h")),
    ("sim_api.h", include_str!("../device/sim_api.h")),
    ("sim.cpp", include_str!("../device/sim.cpp")),
    ("fakecuda.cpp", include_str!("../device/fakecuda.cpp")),
    ("ptx2cpp.py", include_str!("../device/ptx2cpp.py")),
];

const FLAGS: [&str; 8] =
    ["-std=c++20", "-O2", "-g1", "-fPIC", "-w", "-march=native", "-DSIM_HOOKS", "-DSIM_PTX"];

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

    let device = hash(&(DEVICE, FLAGS, &compiler.version));
    let sources = cache.join(format!("device-{device}"));
    fs::create_dir_all(&sources).map_err(|e| at(&sources, e))?;
    for (name, text) in DEVICE {
        let path = sources.join(name);
        fs::write(&path, text).map_err(|e| at(&path, e))?;
    }
    let mut jobs = vec![];
    for (name, _) in DEVICE.iter().filter(|(name, _)| name.ends_with(".cpp")) {
        jobs.push(Job { source: sources.join(name), object: sources.join(format!("{name}.o")), unit: None });
    }
    for unit in units {
        let stem = format!("{}-{}", unit.name, hash(&(&device, unit.ptx)));
        let source = cache.join(format!("{stem}.cpp"));
        jobs.push(Job { source, object: cache.join(format!("{stem}.o")), unit: Some(unit) });
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

/// One object file: of the device itself, or of a unit, whose C++ is first made from its PTX.
struct Job<'a> {
    source: PathBuf,
    object: PathBuf,
    unit: Option<&'a Unit<'a>>,
}

impl Job<'_> {
    fn run(&self, compiler: &Compiler, sources: &Path) -> Result<(), String> {
        if self.object.exists() {
            return Ok(());
        }
        if let Some(unit) = self.unit {
            let text = translate(unit, &self.source.with_extension("ptx"), sources)?;
            fs::write(&self.source, text).map_err(|e| format!("{}: {e}", self.source.display()))?;
        }
        let unfinished = self.object.with_extension("unfinished");
        let mut command = Command::new(&compiler.program);
        command.args(FLAGS).arg("-I").arg(sources).arg("-c").arg(&self.source).arg("-o").arg(&unfinished);
        run(&mut command)?;
        fs::rename(&unfinished, &self.object).map_err(|e| format!("{}: {e}", self.object.display()))
    }
}

fn translate(unit: &Unit<'_>, ptx: &Path, sources: &Path) -> Result<Vec<u8>, String> {
    fs::write(ptx, unit.ptx).map_err(|e| format!("{}: {e}", ptx.display()))?;
    let output = Command::new("python3").arg(sources.join("ptx2cpp.py")).arg(ptx).output();
    let output = output.map_err(|e| format!("python3: {e}"))?;
    let log = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || log.contains("NOT TRANSLATED") {
        return Err(format!("{}: {log}", unit.name));
    }
    Ok(output.stdout)
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
