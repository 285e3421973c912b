//! What a test may plant in this process. A release build knows none of these variables.
//!
//! `STEADFAST_CRASH_AT=PLACE` ends the process by SIGKILL when it comes to that place, as a power loss would; the places
//! stand between the steps of PROTOCOLS 4.5. `STEADFAST_TELLS_VERSION=X.Y.Z` makes it a program of another version in
//! the eyes of the members.

/// Dies here if a test asked for it.
#[cfg(debug_assertions)]
pub(crate) fn crash(place: &str) {
    if std::env::var("STEADFAST_CRASH_AT").is_ok_and(|wanted| wanted == place) {
        // It can't fail for the own process, and nothing after it runs.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
pub(crate) fn crash(_place: &str) {}

/// The version that this program tells the members.
pub(crate) fn version() -> String {
    #[cfg(debug_assertions)]
    if let Ok(version) = std::env::var("STEADFAST_TELLS_VERSION") {
        return version;
    }
    env!("CARGO_PKG_VERSION").to_owned()
}
