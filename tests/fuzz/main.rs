//! Every parser of strangers' bytes, given bytes that no one meant to be read: nothing may panic, and memory
//! stays within four times the bytes and 64 MiB.
//!
//! `targets` says what is read and how, `mutation` makes inputs of the corpus's, `harness` runs them, `memory`
//! counts what is allocated, and `large` holds files whose memory would grow with their size.

mod harness;
mod large;
mod memory;
mod mutation;
mod pickles;
mod targets;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;
