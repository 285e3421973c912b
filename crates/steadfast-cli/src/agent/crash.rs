//! Places at which a test may kill this process, as a power loss would.
//!
//! In a build with debug assertions `STEADFAST_CRASH_AT=PLACE` ends the process by SIGKILL when it comes to that place;
//! a release build knows no such variable. The places stand between the steps of PROTOCOLS 4.5.

/// Dies here if a test asked for it.
#[cfg(debug_assertions)]
pub(crate) fn point(place: &str) {
    if std::env::var("STEADFAST_CRASH_AT").is_ok_and(|wanted| wanted == place) {
        // It can't fail for the own process, and nothing after it runs.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
pub(crate) fn point(_place: &str) {}
