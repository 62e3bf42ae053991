//! Language models that soft prompts speak to, against transformers and LAVIS (tests/golden/{opt,t5,dialogue-*,stage2-*}).

#[path = "language/checkpoint.rs"]
mod checkpoint;
#[path = "support/cuda.rs"]
mod cuda;
#[path = "language/dialogue.rs"]
mod dialogue;
#[path = "language/gpu.rs"]
mod gpu;
#[path = "language/lavis.rs"]
mod lavis;
#[path = "language/logits.rs"]
mod logits;
#[path = "support/paths.rs"]
mod paths;
#[path = "language/tokens.rs"]
mod tokens;
