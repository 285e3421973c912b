//! The token bucket of a topic: how many events per second get through.
//!
//! Kept as one instant, that at which the bucket would be full again. Once it is empty it stays shut until a quarter
//! of the burst is there, so that a flood is told in few long gaps and not in one for each event.

use std::time::Duration;

use super::Rate;
use crate::time::Time;

/// For how long an empty bucket stays shut at most.
const SHUT_MAX: Duration = Duration::from_secs(1);

/// How much of a topic's rate is used up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Bucket {
    full_at: Time,
    shut_until: Time,
}

impl Bucket {
    /// Takes one token at `now`, or says that there is none.
    pub(super) fn admit(&mut self, now: Time, rate: Rate) -> bool {
        if now < self.shut_until {
            return false;
        }
        let token = Duration::from_secs(1) / rate.per_second.max(1);
        let burst = token * rate.burst.max(1);
        let full_at = self.full_at.max(now) + token;
        if full_at.since(now) > burst {
            self.shut_until = now + (burst / 4).clamp(token, SHUT_MAX.max(token));
            return false;
        }
        self.full_at = full_at;
        true
    }

    /// Until when nothing gets through, if that is later than `now`.
    pub(super) fn shut_until(&self, now: Time) -> Option<Time> {
        Some(self.shut_until).filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_gets_through_at_the_rate_and_in_few_pieces() {
        let rate = Rate { per_second: 1_000, burst: 200 };
        let (mut bucket, mut through, mut pieces, mut was_through) = (Bucket::default(), 0, 0, false);
        for micros in (0..10_000_000).step_by(10) {
            let is_through = bucket.admit(Time::from_nanos(micros * 1_000), rate);
            through += u64::from(is_through);
            pieces += u64::from(is_through && !was_through);
            was_through = is_through;
        }
        assert!((9_900..=10_200).contains(&through), "{through}");
        assert!(pieces < 250, "{pieces}");
    }
}
