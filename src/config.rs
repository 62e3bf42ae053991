//! stub
/// Activation
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// a
    Gelu,
    /// a
    GeluTanh,
    /// a
    QuickGelu,
    /// a
    Relu,
}
