//! The three objectives of stage 1, each forward and backward: what their heads work in, and what they read.

pub(super) mod itc;
pub(super) mod itg;
pub(super) mod itm;
pub(super) mod picked;
