//! Decides when a container must be frozen, thawed or killed, from the lease's deadline and the clock alone.
//!
//! A pure machine: `now` is an argument, what to do is a result. Must never let a container run past
//! `deadline - drift`: it is told to freeze [`FREEZE_MAX_NS`] earlier, and to die if it is not frozen by then. A frozen
//! container is not lost: only a fresh lease thaws it. The loop that carries this out is `shim/run.rs`.

use serde::{Deserialize, Serialize};

/// How long a freeze may take, in nanoseconds, before the container is killed instead.
pub const FREEZE_MAX_NS: u64 = 100_000_000;

/// What the loop has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Stop every process, close the interface.
    Freeze,
    /// Open the gate and the interface, let the processes go on.
    Thaw,
    /// Freezing failed in time: kill every process.
    Kill,
}

/// Where the container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Posture {
    /// No process of it runs; the kernel said so.
    Frozen,
    /// A freeze was ordered and is not yet confirmed.
    Freezing,
    /// It holds a lease.
    Running,
    /// It was killed; nothing brings it back.
    Killed,
}

/// How well the fence kept its times, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lateness {
    /// The latest wake-up after the asked instant.
    pub wake_lag_ns_max: u64,
    /// The latest confirmation of a freeze after `deadline - drift`; 0 means always in time.
    pub frozen_late_ns_max: u64,
    /// How often a wake-up came after `deadline - drift`: the shim itself had been stopped.
    pub woke_past_deadline: u64,
}

/// The fence of one container. Times are nanoseconds of CLOCK_BOOTTIME.
#[derive(Clone, Debug)]
pub(crate) struct Fence {
    /// When every process must stand still: deadline minus drift. 0 before the first lease.
    still_at: u64,
    /// When a freeze that was ordered and not confirmed becomes a kill.
    kill_at: u64,
    posture: Posture,
    lateness: Lateness,
}

impl Fence {
    /// A fence that was closed before anything could run.
    pub(crate) fn closed() -> Self {
        Self { still_at: 0, kill_at: 0, posture: Posture::Frozen, lateness: Lateness::default() }
    }

    pub(crate) fn posture(&self) -> Posture {
        self.posture
    }

    pub(crate) fn lateness(&self) -> Lateness {
        self.lateness
    }

    /// When everything must stand still under the present lease.
    pub(crate) fn still_at(&self) -> u64 {
        self.still_at
    }

    /// When [`Fence::step`] must be called next.
    pub(crate) fn wake_at(&self) -> Option<u64> {
        match self.posture {
            Posture::Running => Some(self.freeze_at()),
            Posture::Freezing => Some(self.kill_at),
            Posture::Frozen | Posture::Killed => None,
        }
    }

    /// A lease until `deadline`; `drift` is how far the clocks of the grantors may be from ours. A lease that leaves no
    /// time to run, or that ends before the present one, changes nothing.
    pub(crate) fn renew(&mut self, now: u64, deadline: u64, drift: u64) -> Option<Act> {
        let still_at = deadline.saturating_sub(drift);
        if still_at <= self.still_at || now >= still_at.saturating_sub(FREEZE_MAX_NS) {
            return None;
        }
        match self.posture {
            Posture::Killed => None,
            Posture::Running if now >= self.still_at => {
                // The lease had lapsed before this renewal was read: the lapse is carried out by `step` first.
                None
            }
            Posture::Running => {
                self.still_at = still_at;
                None
            }
            Posture::Frozen | Posture::Freezing => {
                self.still_at = still_at;
                self.posture = Posture::Running;
                Some(Act::Thaw)
            }
        }
    }

    /// Notes a timed wake-up that was asked for `asked` and came `now`.
    pub(crate) fn woke(&mut self, now: u64, asked: u64) {
        self.lateness.wake_lag_ns_max = self.lateness.wake_lag_ns_max.max(now.saturating_sub(asked));
    }

    /// What has to be done now.
    pub(crate) fn step(&mut self, now: u64) -> Option<Act> {
        match self.posture {
            Posture::Running if now >= self.freeze_at() => {
                self.kill_at = self.still_at;
                if now >= self.still_at {
                    // Killing would punish the program for a stall of the machine; freezing at once is all that can
                    // still be had, and it gets the same time as always.
                    self.lateness.woke_past_deadline += 1;
                    self.kill_at = now.saturating_add(FREEZE_MAX_NS);
                }
                self.posture = Posture::Freezing;
                Some(Act::Freeze)
            }
            Posture::Freezing if now >= self.kill_at => {
                self.posture = Posture::Killed;
                Some(Act::Kill)
            }
            Posture::Running | Posture::Freezing | Posture::Frozen | Posture::Killed => None,
        }
    }

    /// The kernel confirmed that nothing runs.
    pub(crate) fn confirm_frozen(&mut self, now: u64) {
        if self.posture == Posture::Freezing {
            self.posture = Posture::Frozen;
            self.lateness.frozen_late_ns_max =
                self.lateness.frozen_late_ns_max.max(now.saturating_sub(self.still_at));
        }
    }

    fn freeze_at(&self) -> u64 {
        self.still_at.saturating_sub(FREEZE_MAX_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn nothing_runs_before_the_first_lease() {
        let mut fence = Fence::closed();
        assert_eq!((fence.wake_at(), fence.step(5_000 * MS)), (None, None));
        assert_eq!(fence.renew(5_000 * MS, 6_000 * MS, 10 * MS), Some(Act::Thaw));
        assert_eq!(fence.wake_at(), Some(5_890 * MS));
    }

    #[test]
    fn a_lapse_freezes_before_the_deadline_and_a_fresh_lease_thaws() {
        let mut fence = Fence::closed();
        fence.renew(0, 1_000 * MS, 10 * MS);
        assert_eq!(fence.step(889 * MS), None);
        assert_eq!(fence.step(890 * MS), Some(Act::Freeze));
        fence.confirm_frozen(891 * MS);
        assert_eq!(fence.lateness().frozen_late_ns_max, 0);
        assert_eq!(fence.renew(2_000 * MS, 1_500 * MS, 10 * MS), None, "a lease that is over thaws nothing");
        assert_eq!(fence.renew(2_000 * MS, 3_000 * MS, 10 * MS), Some(Act::Thaw));
    }

    #[test]
    fn what_cannot_be_frozen_is_killed() {
        let mut fence = Fence::closed();
        fence.renew(0, 1_000 * MS, 0);
        assert_eq!(fence.step(900 * MS), Some(Act::Freeze));
        assert_eq!(fence.step(999 * MS), None);
        assert_eq!(fence.step(1_000 * MS), Some(Act::Kill));
        assert_eq!(fence.renew(1_100 * MS, 9_000 * MS, 0), None, "the dead stay dead");
    }

    #[test]
    fn a_shim_that_overslept_freezes_at_once_and_says_so() {
        let mut fence = Fence::closed();
        fence.renew(0, 1_000 * MS, 0);
        assert_eq!(fence.renew(5_000 * MS, 6_000 * MS, 0), None, "the lapse comes first");
        assert_eq!(fence.step(5_000 * MS), Some(Act::Freeze));
        assert_eq!(fence.lateness().woke_past_deadline, 1);
        fence.confirm_frozen(5_001 * MS);
        assert_eq!(fence.lateness().frozen_late_ns_max, 4_001 * MS);
        assert_eq!(fence.renew(5_002 * MS, 6_000 * MS, 0), Some(Act::Thaw));
    }

    #[test]
    fn an_older_lease_never_shortens_or_extends() {
        let mut fence = Fence::closed();
        fence.renew(0, 1_000 * MS, 0);
        fence.renew(10 * MS, 500 * MS, 0);
        assert_eq!(fence.wake_at(), Some(900 * MS));
    }
}
