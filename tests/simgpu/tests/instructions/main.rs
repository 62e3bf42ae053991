//! Every instruction that the translator knows, against the PTX ISA's definition of it written a second time in Rust.
//! All kernels are one PTX text, so the C++ compiler runs once.
//!
//! Where `SIMGPU` is `off`, the machine's own GPU carries them out: those whose fragments, layouts and descriptors this
//! repository's kernels rely on, by the tests of `tensor`, `asynchronous` and, of `wgmma`, products. The GPU then
//! shows whether the definitions are right.

mod asynchronous;
mod bits;
mod compare;
mod control;
mod convert;
mod device;
#[path = "../support/driver.rs"]
mod driver;
mod exact;
mod float;
mod half;
mod integer;
mod memory;
mod rows;
mod tensor;
mod translate;
mod warp;
mod wgmma;

/// The PTX text of all modules.
fn ptx() -> String {
    let rows = [
        integer::rows(),
        bits::rows(),
        compare::rows(),
        float::rows(),
        float::directed_rows(),
        half::rows(),
        convert::rows(),
    ];
    let kernels = [
        rows.iter().map(rows::Rows::kernel).collect(),
        memory::PTX.to_owned(),
        control::PTX.to_owned(),
        warp::ptx(),
        tensor::ptx(),
        tensor::HOPPER.to_owned(),
        wgmma::ptx(),
        wgmma::misused(),
        asynchronous::PTX.to_owned(),
        asynchronous::HOPPER.to_owned(),
    ];
    for_target("sm_90a", &kernels)
}

/// The PTX text of what a GPU of any compute capability from 8.0 on carries out, or Hopper.
fn ptx_of_gpu(is_hopper: bool) -> String {
    let common = [tensor::ptx(), asynchronous::PTX.to_owned()].concat();
    if is_hopper {
        let hopper = [tensor::HOPPER, asynchronous::HOPPER].concat();
        for_target("sm_90a", &[common, wgmma::ptx(), hopper])
    } else {
        for_target("sm_80", &[common])
    }
}

fn for_target(target: &str, kernels: &[String]) -> String {
    format!(".version 8.0\n.target {target}\n.address_size 64\n{}", kernels.concat())
}
