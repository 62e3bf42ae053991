pub(crate) fn ptx() -> String {
    String::new()
}
