//! Times of many threads, counted by size: one part in 32 exact, whatever their number.

use std::sync::atomic::{AtomicU64, Ordering};

/// Parts of one doubling.
const PARTS: u64 = 32;

/// Counts by size.
#[derive(Debug)]
pub struct Histogram(Vec<AtomicU64>);

impl Histogram {
    /// Without times.
    pub fn new() -> Histogram {
        Histogram((0..64 * PARTS).map(|_| AtomicU64::new(0)).collect())
    }

    /// One time, in nanoseconds.
    pub fn add(&self, nanos: u64) {
        let doublings = u64::from(nanos.max(PARTS).ilog2() - PARTS.ilog2());
        let place = (doublings * PARTS + (nanos >> doublings)) as usize;
        if let Some(count) = self.0.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.0.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    }

    /// What one half and 99 of 100 were not longer than, in microseconds.
    pub fn p50_p99_us(&self) -> (f64, f64) {
        (self.quantile_us(0.5), self.quantile_us(0.99))
    }

    /// What this part of them was not longer than, in microseconds.
    pub fn quantile_us(&self, part: f64) -> f64 {
        let counts: Vec<u64> = self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let wanted = counts.iter().sum::<u64>() as f64 * part;
        let mut seen = 0;
        for (place, count) in counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen as f64 >= wanted {
                let place = place as u64;
                let doublings = (place / PARTS).saturating_sub(1);
                return ((place - doublings * PARTS) << doublings) as f64 / 1e3;
            }
        }
        f64::NAN
    }
}

/// Nanoseconds of a clock that all processes of this machine share.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(now.tv_nsec).unwrap_or_default()
}
