//! Every instruction that the translator knows, against the PTX ISA's definition of it written a second time in Rust.
//! All kernels are one PTX text, so the C++ compiler runs once.

mod asynchronous;
mod bits;
mod compare;
mod control;
mod convert;
mod device;
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
        wgmma::ptx(),
        asynchronous::PTX.to_owned(),
    ];
    format!(".version 8.0\n.target sm_90a\n.address_size 64\n{}", kernels.concat())
}
