//! A program with much memory that notices when it is held still.
//!
//! It fills its memory with pages that no two of which are alike, then looks at the clock every millisecond and
//! appends every gap of more than three to a file, which it opens and closes each time so that nothing else of it
//! has to be imaged.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Runs until it is killed.
pub fn run(mib: usize, report: &Path) -> anyhow::Result<()> {
    let memory = fill(mib << 20);
    append(report, "ready")?;
    let mut last = Instant::now();
    let mut turn = 0usize;
    loop {
        std::thread::sleep(Duration::from_millis(1));
        let now = Instant::now();
        let gap = now.duration_since(last);
        last = now;
        if gap > Duration::from_millis(3) {
            append(report, &format!("gap {} {}", unix_us(), gap.as_micros()))?;
        }
        turn = turn.wrapping_add(4096);
        std::hint::black_box(memory.get(turn % memory.len()));
    }
}

/// The longest gap that `report` names between two instants, in microseconds since 1970.
pub fn longest_gap_us(report: &Path, from: u64, to: u64) -> anyhow::Result<f64> {
    let text = fs::read_to_string(report)?;
    let gaps = text.lines().filter_map(|line| {
        let mut words = line.strip_prefix("gap ")?.split(' ');
        let at: u64 = words.next()?.parse().ok()?;
        let length: u64 = words.next()?.parse().ok()?;
        (at >= from && at.saturating_sub(length) <= to).then_some(length)
    });
    Ok(gaps.max().unwrap_or(0) as f64)
}

/// Waits until the program behind `report` has filled its memory.
pub fn wait_ready(report: &Path) -> anyhow::Result<()> {
    for _ in 0..6_000 {
        if fs::read_to_string(report).is_ok_and(|text| text.contains("ready")) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("the program with much memory was not ready within a minute")
}

/// Microseconds since 1970.
pub fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn fill(length: usize) -> Vec<u8> {
    let mut memory = vec![0u8; length];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in memory.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    memory
}

fn append(report: &Path, line: &str) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(report)?;
    writeln!(file, "{line}")?;
    Ok(())
}
