//! Where tests find files: below the folder they run in. cargo makes that the package's own, and
//! benches/gpu/run the folder that was brought to another machine.

use std::path::{Path, PathBuf};

/// The absolute path of a file of the package, given by a path in it or by what it was when built.
pub(crate) fn path(of: &str) -> PathBuf {
    let of = Path::new(of);
    std::path::absolute(of.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(of)).unwrap()
}
