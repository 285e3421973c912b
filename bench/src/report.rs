//! The figures of one run, printed last, and what is worth knowing of the machine they were taken on.

use std::fs;
use std::time::{Duration, Instant};

/// The lines of one run.
#[derive(Debug, Default)]
pub struct Report {
    lines: Vec<String>,
}

impl Report {
    /// An absolute figure.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str) {
        self.lines.push(format!("FIGURE {name} {value:.3} {unit}"));
    }

    /// A time against a peer's: theirs / ours.
    pub fn time_ratio(&mut self, name: &str, ours: f64, theirs: f64, unit: &str) {
        self.lines.push(format!("RATIO {name} {:.3} {ours:.3} {theirs:.3} {unit}", theirs / ours));
    }

    /// A rate against a peer's: ours / theirs.
    pub fn rate_ratio(&mut self, name: &str, ours: f64, theirs: f64, unit: &str) {
        self.lines.push(format!("RATIO {name} {:.3} {ours:.3} {theirs:.3} {unit}", ours / theirs));
    }

    /// A line that another process of this benchmark printed.
    pub fn pass(&mut self, line: &str) {
        self.lines.push(line.to_owned());
    }

    /// Prints every line.
    pub fn print(&self) {
        println!();
        for line in &self.lines {
            println!("{line}");
        }
    }
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints the machine, and how busy it is before anything starts.
pub fn describe_machine() -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("machine: {cores} cores, kernel {}", kernel.trim());
    let before = busy_ticks()?;
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    let busy = (busy_ticks()? - before) as f64 / 100.0 / start.elapsed().as_secs_f64();
    println!("busy before the start: {busy:.2} of {cores} cores");
    let source = vec![7u8; 256 << 20];
    let mut target = vec![1u8; 256 << 20];
    let start = Instant::now();
    target.copy_from_slice(&source);
    println!("control: memory copy {:.2} GB/s", 0.268_435 / start.elapsed().as_secs_f64());
    assert_eq!(target.last(), Some(&7));
    Ok(())
}

/// Processor time that all programs have used, in hundredths of a second.
fn busy_ticks() -> anyhow::Result<u64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields: Vec<u64> = (stat.lines().next().unwrap_or_default().split_whitespace().skip(1))
        .filter_map(|field| field.parse().ok())
        .collect();
    Ok(fields.iter().enumerate().filter(|(index, _)| !matches!(index, 3 | 4)).map(|(_, ticks)| ticks).sum())
}
