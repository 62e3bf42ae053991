//! What a run was begun by and on.

use qformer::device::Device;
use std::ffi::OsString;
use std::fs;
use toml::{Table, Value};

/// The table of `config.toml`; what cannot be told is left away.
pub(super) fn provenance(device: &impl Device) -> Table {
    // For people to read: what is not UTF-8 is shown as well as it can be.
    let shown = |argument: OsString| Value::String(argument.to_string_lossy().into_owned());
    let command = std::env::args_os().map(shown).collect();
    let entries = [
        ("version", Some(env!("CARGO_PKG_VERSION").into())),
        ("commit", option_env!("QFORMER_COMMIT").map(Value::from)),
        ("rustc", option_env!("QFORMER_RUSTC").map(Value::from)),
        ("command", Some(Value::Array(command))),
        ("cpu", processor().map(Value::from)),
        ("gpu", device.gpu_name().map(Value::from)),
        ("threads", Some(Value::Integer(rayon::current_num_threads() as i64))),
    ];
    entries.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// The processor's name, where Linux tells it.
fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    name.split_once(':').map(|(_, name)| name.trim().to_owned())
}
