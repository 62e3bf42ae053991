//! Counts instructions of a GPU's machine code by their opcodes.
//!
//! NVIDIA does not document the encoding; what is here was read off `nvdisasm -hex` of 13.2 for compute
//! capabilities 8.0 to 12.0. An instruction has 128 bits, of which the lowest 9 are the opcode and the next 3
//! say what its operands are.

/// How often each kind of instruction that tells a kernel's speed stands in its code.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Counts {
    /// HMMA: `mma.sync` of half-precision numbers.
    pub(crate) mma: usize,
    /// HGMMA: `wgmma`.
    pub(crate) wgmma: usize,
    /// LDSM: `ldmatrix`.
    pub(crate) ldmatrix: usize,
    /// LDGSTS.BYPASS: `cp.async.cg`, always of 16 bytes.
    pub(crate) async_copies: usize,
    /// UTMALDG: a tensor map's tile.
    pub(crate) tma_loads: usize,
    /// LDG.128: 16 bytes of global memory.
    pub(crate) vector_loads: usize,
    /// STG.128.
    pub(crate) vector_stores: usize,
    /// LDL and STL: what does not fit in registers.
    pub(crate) local: usize,
    /// BAR: a block waits for its threads.
    pub(crate) barriers: usize,
    /// MUFU: powers, roots and reciprocals.
    pub(crate) special: usize,
}

const OPCODE: u128 = 0x1ff;
/// Where loads and stores say how much they move.
const SIZE_SHIFT: u32 = 73;
const SIZE: u128 = 7;
const SIXTEEN_BYTES: u128 = 6;
/// Set in a copy to shared memory that goes through the first cache, and may be of 4 or 8 bytes.
const THROUGH_CACHE: u128 = 1 << 81;

impl Counts {
    pub(crate) fn of(code: &[u8]) -> Self {
        let (instructions, rest) = code.as_chunks::<16>();
        assert!(rest.is_empty(), "instructions have 16 bytes");
        let mut counts = Self::default();
        for bytes in instructions {
            counts.add(u128::from_le_bytes(*bytes));
        }
        counts
    }

    fn add(&mut self, instruction: u128) {
        let moves_16_bytes = (instruction >> SIZE_SHIFT) & SIZE == SIXTEEN_BYTES;
        let counted = match instruction & OPCODE {
            0x03c => &mut self.mma,
            0x1f0 => &mut self.wgmma,
            0x03b => &mut self.ldmatrix,
            0x1ae if instruction & THROUGH_CACHE == 0 => &mut self.async_copies,
            0x1b4 => &mut self.tma_loads,
            0x181 if moves_16_bytes => &mut self.vector_loads,
            0x186 if moves_16_bytes => &mut self.vector_stores,
            0x183 | 0x187 => &mut self.local,
            0x11d => &mut self.barriers,
            0x108 => &mut self.special,
            _ => return,
        };
        *counted += 1;
    }
}

#[test]
fn instructions_are_counted_as_the_disassembler_names_them() {
    // Low and high 8 bytes, and what nvdisasm calls them.
    let instructions: &[(u64, u64, &str)] = &[
        (0x0000_00ac_a0b4_723c, 0x022f_f000_0004_18ff, "HMMA.16816.F32.BF16"),
        (0x01e0_0000_0c18_79f0, 0x000f_e200_0870_1818, "HGMMA.64x128x16.F32.BF16"),
        (0x0000_0000_c1ac_783b, 0x000e_6200_0000_0200, "LDSM.16.M88.4"),
        (0x0000_0000_0c17_7fae, 0x0003_e400_0b90_1c4a, "LDGSTS.E.BYPASS.128"),
        (0x0000_0000_0e2f_7fae, 0x0009_e200_099c_1808, "LDGSTS.E.BYPASS.128.ZFILL"),
        (0x0000_0000_0205_7fae, 0x0003_e800_0b92_1844, "LDGSTS.E"),
        (0x0040_0020_0207_7fae, 0x000f_e800_0b9a_1806, "LDGSTS.E.128"),
        (0x0000_000c_0400_75b4, 0x0005_f400_0800_8000, "UTMALDG.2D"),
        (0x0000_0008_0808_7981, 0x000e_a200_0c1e_1d00, "LDG.E.128"),
        (0x0000_0008_0404_7981, 0x000e_a200_0c1e_1d00, "LDG.E.128"),
        (0x0000_0008_040a_7981, 0x000e_a200_0c1e_1b00, "LDG.E.64"),
        (0x0000_000a_0200_7981, 0x000e_a800_0c1e_1900, "LDG.E"),
        (0x0000_0008_1200_7986, 0x0001_e200_0c10_1d08, "STG.E.128"),
        (0x0000_0014_0a00_7986, 0x0001_e800_0c10_1b08, "STG.E.64"),
        (0x0000_0000_1012_7983, 0x000f_2200_0010_0800, "LDL"),
        (0x0000_0004_0100_7387, 0x0045_e800_0010_0c00, "STL.128"),
        (0x0000_1000_070c_7984, 0x000f_e600_0000_4c00, "LDS.128"),
        (0x0000_0010_1700_7388, 0x0003_e200_0000_0c00, "STS.128"),
        (0x0000_0000_0000_7b1d, 0x000f_e200_0001_0000, "BAR.SYNC.DEFER_BLOCKING"),
        (0x0000_00b2_00b3_a308, 0x000e_6200_0000_0800, "MUFU.EX2"),
        (0x0000_00ef_000c_7308, 0x000e_a400_0000_1000, "MUFU.RCP"),
        (0x0000_000b_160a_7223, 0x000f_c800_0000_000a, "FFMA"),
        (0x0000_0004_0302_7825, 0x004f_ca00_078e_0004, "IMAD.WIDE.U32"),
    ];
    let mut counts = Counts::default();
    for &(low, high, _) in instructions {
        counts.add(u128::from(low) | u128::from(high) << 64);
    }
    let once = Counts {
        mma: 1,
        wgmma: 1,
        ldmatrix: 1,
        async_copies: 2,
        tma_loads: 1,
        vector_loads: 2,
        vector_stores: 1,
        local: 2,
        barriers: 1,
        special: 2,
    };
    assert_eq!(counts, once);
}
