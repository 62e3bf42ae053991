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

/// Ends the name of a unit that only GPUs of compute capability 9.0, Hopper, use.
const HOPPER: &str = "_sm90a";

// `UNITS`, the files of kernels, and `COMPILER`: what compiled them, or why nothing did.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

impl Unit {
    /// The unit of this name.
    pub(super) fn named(name: &str) -> &'static Self {
        UNITS.iter().find(|unit| unit.name == name).expect("kernels/ has a file of this name")
    }

    /// Whether a GPU of this compute capability uses it.
    fn is_used(&self, capability: (u32, u32)) -> bool {
        capability == (9, 0) || !self.name.ends_with(HOPPER)
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

/// Whether each of the `units` that a GPU of this compute capability uses has an image for it.
pub(super) fn all_have_images(units: &[Unit], capability: (u32, u32)) -> bool {
    units.iter().all(|unit| !unit.is_used(capability) || unit.image(capability).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SM_80: Image = Image { architecture: "sm_80", code: &[] };
    const SM_90A: Image = Image { architecture: "sm_90a", code: &[] };
    const COMPUTE_80: Image = Image { architecture: "compute_80", code: &[] };
    const HOPPERS: Unit = Unit { name: "gemm_sm90a", images: &[SM_90A] };

    #[test]
    fn gpus_without_machine_code_or_ptx_are_known() {
        let served = |units: &[Unit]| {
            [(8, 0), (8, 6), (9, 0), (12, 0)].map(|capability| all_have_images(units, capability))
        };
        let unit = |images| Unit { name: "gemm", images };
        assert_eq!(served(&[unit(&[SM_80])]), [true, true, false, false]);
        assert_eq!(served(&[unit(&[SM_80, SM_90A]), HOPPERS]), [true, true, true, false]);
        assert_eq!(served(&[unit(&[SM_80, COMPUTE_80]), HOPPERS]), [true; 4]);
        let without_hoppers = Unit { images: &[], ..HOPPERS };
        assert_eq!(served(&[unit(&[COMPUTE_80]), without_hoppers]), [true, true, false, true]);
        assert_eq!(served(&[unit(&[])]), [false; 4]);
    }
}
