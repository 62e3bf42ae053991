//! Activation functions, by transformers' names.

/// An activation function, by the names of `hidden_act`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `gelu`: x·Φ(x), exact.
    Gelu,
    /// `gelu_new` or `gelu_pytorch_tanh`: x·Φ(x) with Φ approximated by tanh.
    GeluTanh,
    /// `quick_gelu`: x·sigmoid(1.702·x).
    QuickGelu,
    /// `relu`: max(x, 0).
    Relu,
}

impl Activation {
    /// All activations with their names in `hidden_act`, the one written first.
    pub(super) const NAMES: [(&'static str, Self); 5] = [
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("quick_gelu", Self::QuickGelu),
        ("relu", Self::Relu),
    ];

    /// The name in `hidden_act`.
    pub fn name(self) -> &'static str {
        let (name, _) =
            Self::NAMES.iter().find(|(_, named)| *named == self).expect("every activation is listed");
        name
    }

    /// The activation of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, activation)| *activation)
    }
}
