//! The simulated device through the driver's C interface: kernels with planted mistakes are found out, correct ones are
//! not, and the driver answers as a real one does.
//!
//! Where `SIMGPU` is `off`, those tests of `hopper` that plant nothing run on the machine's own GPU.

mod allocations;
mod api;
#[path = "../support/driver.rs"]
mod driver;
mod graphs;
mod hopper;
mod modules;
mod planted;
mod streams;
