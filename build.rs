//! Compiles `kernels/*.cu` with NVRTC, CUDA's run-time compiler, and embeds the results.
//!
//! Each unit becomes a cubin for every architecture of [`ARCHITECTURES`] that NVRTC knows, and a PTX text for
//! the others. Neither a GPU nor a CUDA toolkit is needed, only libnvrtc (`pip install
//! nvidia-cuda-nvrtc-cu12`). Without it the crate still builds, and `Cuda::open` says what is missing.
//! Everything is written to OUT_DIR; what has not changed is not compiled again.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Cubins run on their own architecture and on later ones of the same generation; the PTX of
/// `compute_80` is compiled by the driver for all that come after.
const ARCHITECTURES: &str = "compute_80,sm_80,sm_86,sm_89,sm_90a,sm_100,sm_120";

/// A unit of this ending uses what only Hopper has, and is compiled for nothing else.
const HOPPER: &str = "_sm90a";

/// The PTX says that it needs this driver's version of the language, the oldest that has all we use;
/// NVRTC would ask for the one it came with.
const PTX_VERSION: &str = "8.0";

/// How the generated text begins to declare the files of kernels …
const UNITS: &str = "/// The files of `kernels/`, compiled.\npub static UNITS: &[Unit] = ";
/// … and what compiled them.
const COMPILER: &str =
    "/// What compiled the kernels, or why nothing did.\npub const COMPILER: Result<&str, &str> = ";

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    for name in ["QFORMER_NVRTC", "QFORMER_CUDA_ARCHITECTURES", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    name_commit(&root);
    name_compiler();
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    // Where the tests' set-up puts NVRTC.
    let fetched = target_folder(&out).join("nvrtc");

    let sources = Sources::read(&root.join("kernels"));
    let generated = match nvrtc::Nvrtc::find(&fetched) {
        Ok(compiler) => compile(&sources, &compiler, &out),
        Err(why) => {
            println!("cargo::warning=built without CUDA kernels: {why}");
            format!("{UNITS}&[];\n{COMPILER}Err({why:?});\n")
        }
    };
    fs::write(out.join("kernels.rs"), generated).expect("OUT_DIR can be written");
}

/// Lets `option_env!("QFORMER_COMMIT")` be the commit that is checked out in `root`, unless the environment
/// says another. Where `root` is no work tree of its own, or git is not there, it is nothing.
fn name_commit(root: &Path) {
    println!("cargo::rerun-if-env-changed=QFORMER_COMMIT");
    if env::var_os("QFORMER_COMMIT").is_some() || !root.join(".git").exists() {
        return;
    }
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").arg("-C").arg(root).env_remove("GIT_DIR").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "HEAD"]) else { return };
    println!("cargo::rustc-env=QFORMER_COMMIT={commit}");
    // The branch's own file may be packed away; the log has a line for every change of HEAD.
    let branch = git(&["rev-parse", "--symbolic-full-name", "HEAD"]).unwrap_or_default();
    for name in ["HEAD", "logs/HEAD", &branch] {
        // Cargo takes a file that is not there for one that changes all the time.
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| root.join(path).is_file()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}

/// Says which compiler the crate is built by.
fn name_compiler() {
    let rustc = env::var_os("RUSTC").expect("set by cargo");
    let version = Command::new(rustc).arg("--version").output().ok();
    if let Some(version) = version.and_then(|output| String::from_utf8(output.stdout).ok()) {
        println!("cargo::rustc-env=QFORMER_RUSTC={}", version.trim());
    }
}

/// Cargo's target folder: OUT_DIR is `target/…/build/qformer-hash/out`, the profile's name between them,
/// and perhaps an architecture's.
fn target_folder(out: &Path) -> PathBuf {
    let has_nvrtc = |folder: &&Path| folder.join("nvrtc").exists();
    out.ancestors().skip(4).take(2).find(has_nvrtc).unwrap_or(out).to_path_buf()
}

/// The texts in `kernels/`.
struct Sources {
    /// Name without its ending, text.
    units: Vec<(String, String)>,
    /// Name, text.
    headers: Vec<(String, String)>,
}

impl Sources {
    fn read(folder: &Path) -> Self {
        let mut sources = Self { units: Vec::new(), headers: Vec::new() };
        for entry in fs::read_dir(folder).expect("the crate has a folder `kernels`") {
            let path = entry.expect("`kernels` can be listed").path();
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            let read = || fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            if let Some(unit) = name.strip_suffix(".cu") {
                sources.units.push((unit.to_owned(), read()));
            } else if name.ends_with(".cuh") {
                sources.headers.push((name, read()));
            }
        }
        sources.units.sort();
        sources.headers.sort();
        sources
    }
}

/// One unit for one architecture.
struct Task<'a> {
    unit: &'a str,
    source: &'a str,
    architecture: String,
}

/// Compiles what has changed; returns the Rust text that embeds everything.
fn compile(sources: &Sources, compiler: &nvrtc::Nvrtc, out: &Path) -> String {
    let chosen = env::var("QFORMER_CUDA_ARCHITECTURES").unwrap_or_else(|_| ARCHITECTURES.to_owned());
    let (major, minor) = compiler.version;
    let (mut tasks, mut unknown) = (Vec::new(), Vec::new());
    for (unit, source) in &sources.units {
        for architecture in chosen.split(',') {
            let architecture = match architecture {
                "compute_80" if unit.ends_with(HOPPER) => "compute_90a",
                other if unit.ends_with(HOPPER) && other != "sm_90a" => continue,
                other => other,
            };
            if !compiler.knows(architecture) {
                unknown.push(architecture);
                continue;
            }
            tasks.push(Task { unit, source, architecture: architecture.to_owned() });
        }
    }
    if !unknown.is_empty() {
        unknown.sort_unstable();
        unknown.dedup();
        let unknown = unknown.join(", ");
        println!(
            "cargo::warning=NVRTC {major}.{minor} does not know {unknown}: nothing was compiled for that"
        );
    }
    let next = AtomicUsize::new(0);
    let embedded = Mutex::new(vec![String::new(); tasks.len()]);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(tasks.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((index, task)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    tasks.get(index).map(|task| (index, task))
                } {
                    let image = task.run(sources, compiler, out);
                    embedded.lock().expect("no task panicked")[index] = image;
                }
            });
        }
    });
    let embedded = embedded.into_inner().expect("no task panicked");
    let mut text = format!("{COMPILER}Ok(\"NVRTC {major}.{minor}\");\n{UNITS}&[\n");
    for (unit, _) in &sources.units {
        text += &format!("    Unit {{ name: {unit:?}, images: &[\n");
        for (task, image) in tasks.iter().zip(&embedded).filter(|(task, _)| task.unit == unit) {
            text += &format!(
                "        Image {{ architecture: {:?}, code: include_bytes!({image:?}) }},\n",
                task.architecture
            );
        }
        text += "    ] },\n";
    }
    text + "];\n"
}

impl Task<'_> {
    /// Path of the image, compiled if it is not there yet.
    fn run(&self, sources: &Sources, compiler: &nvrtc::Nvrtc, out: &Path) -> String {
        let options = [
            format!("--gpu-architecture={}", self.architecture),
            "--std=c++20".to_owned(),
            "--generate-line-info".to_owned(),
            "--ptxas-options=-v".to_owned(),
        ];
        let mut hasher = DefaultHasher::new();
        (self.source, &sources.headers, &options, compiler.version, PTX_VERSION).hash(&mut hasher);
        let name = format!("{}.{}.{:016x}", self.unit, self.architecture, hasher.finish());
        let (image, log) = (out.join(&name), out.join(format!("{name}.log")));
        if !image.exists() {
            let file = format!("{}.cu", self.unit);
            let compiled = compiler
                .compile(&file, self.source, &sources.headers, &options)
                .unwrap_or_else(|log| panic!("kernels/{file} for {}:\n{log}", self.architecture));
            let code = if self.architecture.starts_with("sm_") {
                compiled.cubin
            } else {
                lower_version(&compiled.ptx).into_bytes()
            };
            fs::write(&log, compiled.log).expect("OUT_DIR can be written");
            fs::write(&image, code).expect("OUT_DIR can be written");
        }
        let log = fs::read_to_string(&log).expect("written with the image");
        for line in
            log.lines().filter(|line| line.contains("bytes spill") && !line.contains(" 0 bytes spill"))
        {
            println!("cargo::warning=kernels/{}.cu for {}: {}", self.unit, self.architecture, line.trim());
        }
        image.to_str().expect("OUT_DIR is a path in Unicode").to_owned()
    }
}

/// The PTX with [`PTX_VERSION`], and without the zero at its end.
fn lower_version(ptx: &[u8]) -> String {
    let text = String::from_utf8_lossy(ptx);
    let lines = text.trim_end_matches('\0').lines();
    let lines = lines.map(|line| match line.strip_prefix(".version ") {
        Some(_) => format!(".version {PTX_VERSION}\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

/// NVRTC, loaded at run time.
mod nvrtc {
    use libloading::Library;
    use std::env;
    use std::ffi::{CStr, CString, c_char, c_int, c_void};
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::ptr;

    const NAMES: [&str; 3] = ["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"];

    pub(crate) struct Nvrtc {
        library: Library,
        pub(crate) version: (c_int, c_int),
        /// Numbers of the architectures that it compiles for, such as 90; none if it does not tell.
        architectures: Vec<c_int>,
    }

    pub(crate) struct Compiled {
        pub(crate) ptx: Vec<u8>,
        /// Empty for a virtual architecture (`compute_…`).
        pub(crate) cubin: Vec<u8>,
        pub(crate) log: String,
    }

    impl Nvrtc {
        /// Looks where QFORMER_NVRTC says (a file or folder), then where the tests' set-up puts it, in
        /// a CUDA toolkit, among pip's packages, and where the system's loader looks.
        pub(crate) fn find(fetched: &Path) -> Result<Self, String> {
            let mut candidates = Vec::new();
            let mut folders = Vec::new();
            if let Some(path) = env::var_os("QFORMER_NVRTC").map(PathBuf::from) {
                if path.is_dir() { folders.push(path) } else { candidates.push(path) }
            }
            folders.push(fetched.to_path_buf());
            let toolkits = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(PathBuf::from);
            folders.extend(toolkits.chain([PathBuf::from("/usr/local/cuda")]).map(|cuda| cuda.join("lib64")));
            folders.extend(python_packages());
            for folder in folders {
                for below in ["", "nvidia/cuda_nvrtc/lib", "nvidia/cu13/lib"] {
                    candidates.extend(
                        NAMES.iter().map(|name| folder.join(below).join(name)).filter(|p| p.exists()),
                    );
                }
            }
            candidates.extend(NAMES.iter().map(PathBuf::from));
            let mut why = String::new();
            for candidate in candidates {
                match Self::open(&candidate) {
                    Ok(nvrtc) => return Ok(nvrtc),
                    Err(error) => why = error,
                }
            }
            Err(format!(
                "libnvrtc, CUDA's run-time compiler, is not there ({why}); install it with `pip install nvidia-cuda-nvrtc-cu12` or set QFORMER_NVRTC to its folder"
            ))
        }

        fn open(path: &Path) -> Result<Self, String> {
            // NVRTC 13 does not find its builtins beside itself; once they are loaded it takes those.
            for entry in
                path.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten()
            {
                if entry.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so.") {
                    // SAFETY: NVIDIA's library; loading it runs only its own initialisation.
                    if let Ok(builtins) = unsafe { Library::new(entry.path()) } {
                        std::mem::forget(builtins);
                    }
                }
            }
            // SAFETY: as above.
            let library = unsafe { Library::new(path) }.map_err(|e| e.to_string())?;
            let mut nvrtc = Self { library, version: (0, 0), architectures: Vec::new() };
            let (mut major, mut minor) = (0, 0);
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int =
                nvrtc.function("nvrtcVersion")?;
            // SAFETY: as NVRTC documents it.
            unsafe { version(&mut major, &mut minor) };
            nvrtc.version = (major, minor);
            nvrtc.architectures = nvrtc.supported().unwrap_or_default();
            Ok(nvrtc)
        }

        fn supported(&self) -> Result<Vec<c_int>, String> {
            let count: unsafe extern "C" fn(*mut c_int) -> c_int =
                self.function("nvrtcGetNumSupportedArchs")?;
            let list: unsafe extern "C" fn(*mut c_int) -> c_int = self.function("nvrtcGetSupportedArchs")?;
            let mut number = 0;
            // SAFETY: the list has as many elements as NVRTC says.
            unsafe {
                count(&mut number);
                let mut supported = vec![0; usize::try_from(number).unwrap_or(0)];
                list(supported.as_mut_ptr());
                Ok(supported)
            }
        }

        /// Whether it compiles for an architecture such as "sm_90a". Of what has no number it complains itself.
        pub(crate) fn knows(&self, architecture: &str) -> bool {
            let number = architecture.trim_matches(|c: char| !c.is_ascii_digit()).parse();
            number.map_or(true, |n| self.architectures.is_empty() || self.architectures.contains(&n))
        }

        fn function<F: Copy>(&self, name: &str) -> Result<F, String> {
            // SAFETY: every caller asks for the type that NVRTC documents.
            unsafe { self.library.get::<F>(name.as_bytes()) }.map(|f| *f).map_err(|e| e.to_string())
        }

        /// Compiles a text that includes `headers` by their names; the error is NVRTC's log.
        pub(crate) fn compile(
            &self,
            name: &str,
            source: &str,
            headers: &[(String, String)],
            options: &[String],
        ) -> Result<Compiled, String> {
            type Program = *mut c_void;
            type Texts = *const *const c_char;
            type Create = unsafe extern "C" fn(
                *mut Program,
                *const c_char,
                *const c_char,
                c_int,
                Texts,
                Texts,
            ) -> c_int;
            let create: Create = self.function("nvrtcCreateProgram")?;
            let run: unsafe extern "C" fn(Program, c_int, Texts) -> c_int =
                self.function("nvrtcCompileProgram")?;
            let destroy: unsafe extern "C" fn(*mut Program) -> c_int =
                self.function("nvrtcDestroyProgram")?;
            let error_string: unsafe extern "C" fn(c_int) -> *const c_char =
                self.function("nvrtcGetErrorString")?;
            let c = |text: &str| CString::new(text).expect("sources have no zero bytes");
            let pointers = |texts: &[CString]| texts.iter().map(|t| t.as_ptr()).collect::<Vec<_>>();
            let names: Vec<CString> = headers.iter().map(|(name, _)| c(name)).collect();
            let texts: Vec<CString> = headers.iter().map(|(_, text)| c(text)).collect();
            let options: Vec<CString> = options.iter().map(|option| c(option)).collect();
            let (name, source) = (c(name), c(source));
            let mut program = ptr::null_mut();
            let count = |n: usize| c_int::try_from(n).expect("few");
            // SAFETY: all texts outlive the calls, and there are as many as said.
            let (created, compiled) = unsafe {
                let (texts, names) = (pointers(&texts), pointers(&names));
                let created = create(
                    &mut program,
                    source.as_ptr(),
                    name.as_ptr(),
                    count(texts.len()),
                    texts.as_ptr(),
                    names.as_ptr(),
                );
                (created, run(program, count(options.len()), pointers(&options).as_ptr()))
            };
            let log = String::from_utf8_lossy(&self.output(program, "ProgramLog")?)
                .trim_end_matches('\0')
                .to_owned();
            let result = if created == 0 && compiled == 0 {
                Ok(Compiled { ptx: self.output(program, "PTX")?, cubin: self.output(program, "CUBIN")?, log })
            } else {
                // SAFETY: NVRTC returns a text that lives for ever.
                let error = unsafe { CStr::from_ptr(error_string(created.max(compiled))) };
                Err(format!("{}\n{log}", error.to_string_lossy()))
            };
            // SAFETY: created above and used no more.
            unsafe { destroy(&mut program) };
            result
        }

        /// One of a program's outputs; empty if it has none of that kind.
        fn output(&self, program: *mut c_void, kind: &str) -> Result<Vec<u8>, String> {
            let size: unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int =
                self.function(&format!("nvrtcGet{kind}Size"))?;
            let get: unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int =
                self.function(&format!("nvrtcGet{kind}"))?;
            let mut bytes = 0;
            // SAFETY: the buffer is as large as NVRTC says.
            unsafe {
                if size(program, &mut bytes) != 0 {
                    return Ok(Vec::new());
                }
                let mut output = vec![0u8; bytes];
                get(program, output.as_mut_ptr().cast());
                Ok(output)
            }
        }
    }

    /// Folders of the packages of the Python that is on the path or active.
    fn python_packages() -> Vec<PathBuf> {
        let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(env::var_os).map(PathBuf::from);
        let user = env::var_os("HOME").map(|home| PathBuf::from(home).join(".local"));
        let on_path =
            env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
        let on_path = on_path.filter(|folder| folder.join("python3").exists());
        let prefixes =
            active.chain(user).chain(on_path.filter_map(|folder| folder.parent().map(Path::to_path_buf)));
        let mut packages = Vec::new();
        for prefix in prefixes {
            for entry in fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with("python3") {
                    packages.extend(["site-packages", "dist-packages"].map(|name| entry.path().join(name)));
                }
            }
        }
        packages
    }
}
