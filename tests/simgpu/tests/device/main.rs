//! The simulated device through the driver's C interface: kernels with planted mistakes are found out, correct ones are
//! not, and the driver answers as a real one does.

mod allocations;
mod api;
mod graphs;
mod hopper;
mod modules;
mod planted;
mod streams;
