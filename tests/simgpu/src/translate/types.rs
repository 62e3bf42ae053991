//! PTX's types and the C++ types of their values.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Predicate,
    /// Untyped bits, by width; so are unsigned and signed integers.
    Bits(u32),
    Unsigned(u32),
    Signed(u32),
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    F32,
    F64,
}

impl Type {
    /// The type a modifier or directive names, if it names one.
    pub(super) fn parse(word: &str) -> Option<Self> {
        let known = match word {
            "pred" => Self::Predicate,
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "f16x2" => Self::F16x2,
            "bf16x2" => Self::Bf16x2,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => {
                let width = word.get(1..)?.parse().ok().filter(|width| [8, 16, 32, 64].contains(width))?;
                match word.as_bytes()[0] {
                    b'b' => Self::Bits(width),
                    b'u' => Self::Unsigned(width),
                    b's' => Self::Signed(width),
                    _ => return None,
                }
            }
        };
        Some(known)
    }

    /// Width in bits; a predicate has one.
    pub(super) fn width(self) -> u32 {
        match self {
            Self::Predicate => 1,
            Self::Bits(width) | Self::Unsigned(width) | Self::Signed(width) => width,
            Self::F16 | Self::Bf16 => 16,
            Self::F16x2 | Self::Bf16x2 | Self::F32 => 32,
            Self::F64 => 64,
        }
    }

    pub(super) fn bytes(self) -> usize {
        self.width().div_ceil(8) as usize
    }

    /// C++ type of a value. Half-precision values are their bits.
    pub(super) fn value(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::F64 => "double",
            Self::Signed(8) => "int8_t",
            Self::Signed(16) => "int16_t",
            Self::Signed(32) => "int32_t",
            Self::Signed(_) => "int64_t",
            other => other.register(),
        }
    }

    /// C++ type of a register: bits.
    pub(super) fn register(self) -> &'static str {
        match self.width() {
            1 => "bool",
            8 => "uint8_t",
            16 => "uint16_t",
            32 => "uint32_t",
            _ => "uint64_t",
        }
    }

    pub(super) fn is_integer(self) -> bool {
        matches!(self, Self::Bits(_) | Self::Unsigned(_) | Self::Signed(_))
    }

    /// One of the two whose arithmetic C++ has.
    pub(super) fn is_native_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }

    pub(super) fn is_half(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F16x2 | Self::Bf16x2)
    }

    /// The integer type of the same width whose overflow wraps.
    pub(super) fn unsigned(self) -> Self {
        Self::Unsigned(self.width())
    }
}
