//! Launch of `kernels/adamw.cu`.

use super::{AdamWOp, AdamWStep, CLIP_EPSILON};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, assert_aligned, count};
use crate::error::Result;
use half::bf16;

/// Threads of a block.
const THREADS: u32 = 256;
/// Parameters of a thread: 16 bytes of each vector.
const QUAD: u32 = 4;
/// Blocks that a multiprocessor has room for.
const RESIDENT: u32 = 8;

arguments! {
    struct AdamWArgs("adamw", "adamw_step", 152) {
        /// [1, 3]: η, 1 − β1ᵗ, 1 − β2ᵗ
        schedule: In<'a, f32>,
        /// [1, 1]
        norm: In<'a, f32>,
        /// [1, size]
        gradient: In<'a, f32>,
        /// [1, size]
        parameters: Out<'a, f32>,
        /// [1, size]
        first_moment: Out<'a, f32>,
        /// [1, size]
        second_moment: Out<'a, f32>,
        /// [1, size]; null if absent
        weights: Out<'a, bf16>,
        size: u32,
        /// The first so many decay.
        decayed: u32,
        beta1: f32,
        beta2: f32,
        /// 1 − β1, which has more digits than what is left of it in `beta1`
        rest1: f32,
        /// 1 − β2
        rest2: f32,
        epsilon: f32,
        weight_decay: f32,
        /// Infinite without clipping.
        max_norm: f32,
        clip_epsilon: f32,
    }
}

impl AdamWOp for Cuda {
    fn adamw_step(&self, args: AdamWStep<'_, Self>) -> Result<()> {
        args.check();
        let AdamWStep { constants, decayed, .. } = args;
        let size = count(args.gradient.cols());
        let args = AdamWArgs {
            schedule: In::of(args.schedule),
            norm: In::of(args.norm),
            gradient: In::of(args.gradient),
            parameters: Out::of(args.parameters),
            first_moment: Out::of(args.first_moment),
            second_moment: Out::of(args.second_moment),
            weights: Out::optional(args.weights),
            size,
            decayed: count(decayed),
            beta1: constants.beta1 as f32,
            beta2: constants.beta2 as f32,
            rest1: (1.0 - constants.beta1) as f32,
            rest2: (1.0 - constants.beta2) as f32,
            epsilon: constants.epsilon as f32,
            weight_decay: constants.weight_decay as f32,
            max_norm: constants.max_norm.map_or(f32::INFINITY, |max_norm| max_norm as f32),
            clip_epsilon: CLIP_EPSILON as f32,
        };
        assert_aligned(&[
            args.gradient.extent(),
            args.parameters.extent(),
            args.first_moment.extent(),
            args.second_moment.extent(),
            args.weights.extent(),
        ]);
        let blocks = size.div_ceil(THREADS * QUAD).min(self.multiprocessors() * RESIDENT);
        self.launch(Grid { blocks: [blocks, 1, 1], threads: THREADS, shared_bytes: 0 }, args)
    }
}
