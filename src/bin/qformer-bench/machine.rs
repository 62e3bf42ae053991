//! The machine that a report is from, and when: without them no two reports compare.

use qformer::Cpu;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// Processor, its instructions that are used, memory, operating system and date; null where the system does not tell.
pub(crate) fn description() -> Value {
    let system = std::env::consts::OS;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    json!({
        "processor": field("/proc/cpuinfo", "model name"),
        "isa": instructions(),
        "memory_bytes": field("/proc/meminfo", "MemTotal").and_then(|size| bytes(&size)),
        "os": release.map_or_else(|_| system.to_owned(), |release| format!("{system} {}", release.trim())),
        "architecture": std::env::consts::ARCH,
        "date": date(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())),
    })
}

/// What the CPU backend computes with.
fn instructions() -> &'static str {
    if Cpu::<f32>::new().has_amx() {
        return "AMX";
    }
    #[cfg(target_arch = "x86_64")]
    {
        if pulp::x86::V4::try_new().is_some() {
            return "AVX-512";
        }
        if pulp::x86::V3::try_new().is_some() {
            return "AVX2";
        }
    }
    if cfg!(target_arch = "aarch64") { "NEON" } else { "scalar" }
}

/// The first value of `name` in a file of `name: value` lines.
fn field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(found, _)| found.trim() == name).map(|(_, value)| value.trim().to_owned())
}

/// Of a size like `1024 kB`.
fn bytes(size: &str) -> Option<u64> {
    size.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Seconds after 1970 as RFC 3339 has them, in UTC.
fn date(seconds: u64) -> String {
    // Years that begin in March end with the day that not all of them have; 400 of them are 146,097 days. (Howard
    // Hinnant's civil_from_days.)
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = 400 * era + year + u64::from(month <= 2);
    let [hour, minute, second] = [seconds / 3600 % 24, seconds / 60 % 60, seconds % 60];
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_right_at_the_edges_of_months_and_leap_years() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }
}
