//! `clock.step`: the machine's clock of the day was set.
//!
//! The kernel wakes a timer on that clock when it is set. By how much follows from the distance to the clock that counts from
//! start-up, sleep included, which follows the same frequency corrections but is never set. Nothing is polled, and the clock is
//! never set here.

use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::Interest;

use super::post::{Post, count};
use super::{ActivateError, Work};

/// Far behind every time that the clock will be set to; the kernel counts nanoseconds in 63 bits.
const NEVER_S: i64 = 1 << 33;

pub(super) fn open(post: Post) -> Result<Work, ActivateError> {
    let refused = |action| ActivateError::refused("a timer on the clock", action);
    let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
        .map_err(refused("made"))?;
    let never = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec { tv_sec: NEVER_S, tv_nsec: 0 },
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(&timer, flags, &never).map_err(refused("set"))?;
    let mut distance_ns = distance_ns();
    let timer = post.watch_first(timer, Interest::READABLE)?;
    Ok(Box::pin(async move {
        loop {
            if let Err(error) = timer.changed().await {
                return format!("the timer on the clock can't be waited for: {error}");
            }
            let mut expirations = [0; 8];
            match rustix::io::read(&timer, &mut expirations) {
                Err(Errno::CANCELED) => {
                    let before_ns = std::mem::replace(&mut distance_ns, self::distance_ns());
                    post.tell([("by_ms", count(rounded_ms(distance_ns - before_ns)))]);
                }
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return format!("the timer on the clock can't be read: {error}"),
            }
        }
    }))
}

/// How far the clock of the day is ahead of the one that is never set, in ns.
fn distance_ns() -> i128 {
    // The shortest of some readings was disturbed least.
    let readings = (0..5).map(|_| {
        let before = now_ns(ClockId::Boottime);
        let day = now_ns(ClockId::Realtime);
        let after = now_ns(ClockId::Boottime);
        (after - before, day - (before + after) / 2)
    });
    readings.min().map_or(0, |(_, distance)| distance)
}

fn now_ns(clock: ClockId) -> i128 {
    let now = clock_gettime(clock);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

fn rounded_ms(ns: i128) -> i64 {
    let half = if ns < 0 { -500_000 } else { 500_000 };
    i64::try_from((ns + half) / 1_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_rounded_to_the_nearest_millisecond() {
        assert_eq!([-1_600_000, -400_000, 400_000, 1_500_000].map(rounded_ms), [-2, 0, 0, 2]);
        // Two readings of an undisturbed clock agree.
        assert_eq!(rounded_ms(distance_ns() - distance_ns()), 0);
    }
}
