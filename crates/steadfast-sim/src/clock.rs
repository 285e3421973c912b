//! One host's clock: it starts at the host's boot and runs at its own rate.
//!
//! The world's own time is in nanoseconds since the world's start; only this file turns the one into the other.

use steadfast_proto::time::Time;

/// Parts per million, so that a rate is a whole number.
const MILLION: u64 = 1_000_000;

/// CLOCK_BOOTTIME of one host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// When the host booted, in world nanoseconds.
    boot: u64,
    /// What the clock showed then, in nanoseconds.
    offset: u64,
    /// How many parts per million of true time it counts: 1,000,000 is exact.
    rate: u64,
}

impl Clock {
    pub(crate) fn new(boot: u64, offset: u64, skew_ppm: i64) -> Clock {
        Clock { boot, offset, rate: MILLION.saturating_add_signed(skew_ppm) }
    }

    /// What the clock shows at world time `at`.
    pub(crate) fn read(&self, at: u64) -> Time {
        let elapsed = u128::from(at.saturating_sub(self.boot));
        let counted = elapsed * u128::from(self.rate) / u128::from(MILLION);
        Time::from_nanos(self.offset.saturating_add(u64::try_from(counted).unwrap_or(u64::MAX)))
    }

    /// The first world time at which the clock shows `time` or later.
    pub(crate) fn when(&self, time: Time) -> u64 {
        let shown = time.as_nanos().saturating_sub(self.offset);
        let mut at = u64::try_from(u128::from(shown) * u128::from(MILLION) / u128::from(self.rate))
            .unwrap_or(u64::MAX);
        at = at.saturating_add(self.boot);
        while self.read(at) < time {
            at = at.saturating_add(1);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_read_when_it_was_to_show_a_time_shows_it() {
        for skew in [-200, -1, 0, 1, 200] {
            let clock = Clock::new(5_000_000_000, 123_456_789, skew);
            for nanos in [123_456_789, 123_456_790, 1_000_000_000, 77_777_777_777] {
                let at = clock.when(Time::from_nanos(nanos));
                assert!(clock.read(at) >= Time::from_nanos(nanos));
                assert!(at == 5_000_000_000 || clock.read(at - 1) < Time::from_nanos(nanos));
            }
        }
    }
}
