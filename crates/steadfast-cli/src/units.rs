//! Numbers with a unit, as people write them: sizes, durations, shares of a processor, names.
//!
//! Every parser answers a wrong text with what would be right. Nothing here knows a key or a file: the caller adds
//! where the text stood. Used by the configuration, container specs and flags alike.

use std::time::Duration;

/// Bytes from `"8GiB"`, `"512MiB"`, `"100kB"`.
pub fn size(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    if trimmed.parse::<f64>().is_ok() {
        return Err(format!(
            "{trimmed:?} has no unit; write for example \"{trimmed}GiB\" or \"{trimmed}MiB\""
        ));
    }
    if let Ok(duration) = humantime::parse_duration(trimmed)
        && !trimmed.to_ascii_lowercase().ends_with('m')
        && trimmed.parse::<bytesize::ByteSize>().is_err()
    {
        return Err(format!(
            "{trimmed:?} is a time ({}), and a size is wanted, for example \"512MiB\"",
            humantime::format_duration(duration)
        ));
    }
    let parsed = trimmed.parse::<bytesize::ByteSize>();
    parsed
        .map(|size| size.as_u64())
        .map_err(|_| format!("{trimmed:?} is not a size; write for example \"512MiB\" or \"8GiB\""))
}

/// A duration from `"10s"`, `"450ms"`, `"1h"`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let trimmed = text.trim();
    if trimmed.parse::<f64>().is_ok() {
        return Err(format!("{trimmed:?} has no unit; write for example \"{trimmed}s\" or \"{trimmed}ms\""));
    }
    humantime::parse_duration(trimmed).map_err(|_| {
        if trimmed.parse::<bytesize::ByteSize>().is_ok() {
            return format!("{trimmed:?} is a size, and a time is wanted, for example \"10s\"");
        }
        format!("{trimmed:?} is not a time; write for example \"10s\", \"450ms\" or \"1h\"")
    })
}

/// A duration within bounds, both allowed.
pub fn duration_within(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let parsed = duration(text)?;
    if parsed < min || parsed > max {
        let (min, max) = (humantime::format_duration(min), humantime::format_duration(max));
        return Err(format!("{text:?} is out of range; between \"{min}\" and \"{max}\" is possible"));
    }
    Ok(parsed)
}

/// Processors, as a number above zero: `1.5`.
pub fn cores(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(cores) if cores > 0.0 && cores <= 4096.0 => Ok(cores),
        _ => Err(format!("{text:?} is not a number of processors; write for example 1.5")),
    }
}

/// A small count within bounds, both allowed.
pub fn count(text: &str, min: u32, max: u32) -> Result<u32, String> {
    match text.trim().parse::<u32>() {
        Ok(count) if count >= min && count <= max => Ok(count),
        _ => Err(format!("{text:?} is not a number from {min} to {max}")),
    }
}

/// The name of a node, container or cluster: DNS label rules, because it becomes a host name.
pub fn name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let inner = text.bytes().all(|byte| plain(byte) || byte == b'-');
    let ends = text.bytes().next().is_some_and(plain) && text.bytes().last().is_some_and(plain);
    if inner && ends && text.len() <= 63 {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is not a name; 1 to 63 small letters, digits and \"-\" are possible, for example \"{}\"",
        suggestion(text)
    ))
}

/// A legal name that resembles `text`.
fn suggestion(text: &str) -> String {
    let mapped: String = text
        .to_ascii_lowercase()
        .chars()
        .map(|letter| if letter.is_ascii_lowercase() || letter.is_ascii_digit() { letter } else { '-' })
        .take(63)
        .collect();
    let trimmed = mapped.trim_matches('-');
    if trimmed.is_empty() { "web-1".to_owned() } else { trimmed.to_owned() }
}

/// `8.0 GiB`, for people.
pub fn human_size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// `12s`, `3m 4s`, for people: two units at most, no more precise than it matters.
pub fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=9 => format!("{:.1}s", duration.as_secs_f64()),
        10..=99 => format!("{seconds}s"),
        100..=5_999 => format!("{}m {}s", seconds / 60, seconds % 60),
        6_000..=172_799 => format!("{}h {}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit_of_size() {
        assert_eq!(size("8GiB").unwrap(), 8 << 30);
        assert_eq!(size("1.5MiB").unwrap(), 3 << 19);
        assert!(size("8").unwrap_err().contains("\"8GiB\""));
        assert!(size("10s").unwrap_err().contains("is a time"));
        assert!(size("many").unwrap_err().contains("512MiB"));
    }

    #[test]
    fn durations_need_a_unit_of_time() {
        assert_eq!(duration("450ms").unwrap(), Duration::from_millis(450));
        assert!(duration("10").unwrap_err().contains("\"10s\""));
        assert!(duration("8GiB").unwrap_err().contains("is a size"));
        assert!(
            duration_within("1ms", Duration::from_millis(100), Duration::from_secs(9))
                .unwrap_err()
                .contains("100ms")
        );
    }

    #[test]
    fn names_are_host_names_and_a_wrong_one_gets_a_legal_suggestion() {
        assert_eq!(name("web-1").unwrap(), "web-1");
        assert!(name("Web_1").unwrap_err().contains("\"web-1\""));
        assert!(name("").is_err());
        assert!(name(&"a".repeat(64)).is_err());
        assert!(name("-a").is_err());
    }
}
