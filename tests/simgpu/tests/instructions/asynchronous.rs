pub(crate) const PTX: &str = "";
