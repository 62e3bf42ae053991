//! Numbers beside axes and lines: brief, and without what tells nothing.

/// With at most four digits after the point, or with an exponent.
pub(super) fn plain(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        100.0.. => format!("{value:.0}"),
        10.0.. => trimmed(format!("{value:.1}")),
        0.1.. => trimmed(format!("{value:.2}")),
        0.001.. => trimmed(format!("{value:.4}")),
        _ => scientific(value),
    }
}

/// In whole percents.
pub(super) fn percent(value: f64) -> String {
    format!("{:.0} %", 100.0 * value)
}

/// With an exponent.
pub(super) fn scientific(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { trimmed_mantissa(&format!("{value:.2e}")) }
}

/// Without zeros after the point.
fn trimmed(text: String) -> String {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn trimmed_mantissa(text: &str) -> String {
    let (mantissa, exponent) = text.split_once('e').expect("of the format e");
    format!("{}e{}", trimmed(mantissa.to_owned()), exponent.replace('-', "−"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_briefly() {
        assert_eq!(
            [plain(4.8123), plain(12.0), plain(0.05), scientific(9.8e-5)],
            ["4.81", "12", "0.05", "9.8e−5"]
        );
    }
}
