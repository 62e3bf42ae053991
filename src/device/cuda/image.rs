//! What `build.rs` made of `kernels/`.

/// A file of kernels, compiled.
pub struct Unit {
    /// Its name without the ending, such as "attention".
    pub name: &'static str,
    /// For each architecture.
    pub images: &'static [Image],
}

/// A unit for one architecture.
pub struct Image {
    /// "sm_80" for machine code (a cubin), "compute_80" for PTX.
    pub architecture: &'static str,
    /// The cubin, or the text.
    pub code: &'static [u8],
}

// `UNITS`, the files of kernels, and `COMPILER`: what compiled them, or why nothing did.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

impl Unit {
    /// The unit of this name.
    pub(super) fn named(name: &str) -> &'static Self {
        UNITS.iter().find(|unit| unit.name == name).expect("kernels/ has a file of this name")
    }

    /// The best image for a GPU: machine code for it or for an earlier one of its generation, else PTX.
    pub(super) fn image(&self, (major, minor): (u32, u32)) -> Option<&'static Image> {
        let of = |architecture: String| self.images.iter().find(|i| i.architecture == architecture);
        of(format!("sm_{major}{minor}a"))
            .or_else(|| (0..=minor).rev().find_map(|minor| of(format!("sm_{major}{minor}"))))
            .or_else(|| of("compute_80".to_owned()))
            .or_else(|| if (major, minor) == (9, 0) { of("compute_90a".to_owned()) } else { None })
    }
}

impl Image {
    /// Whether it is a PTX text.
    pub fn is_ptx(&self) -> bool {
        self.architecture.starts_with("compute_")
    }
}
