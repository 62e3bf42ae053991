//! Checkpoints of `torch.save`: what is read, and what is refused.

#[path = "support/paths.rs"]
mod paths;

mod pth {
    mod archive;
    mod hostile_pickles;
    mod hostile_zips;
    mod read;
}
