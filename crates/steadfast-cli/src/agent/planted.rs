//! What a test may plant in this process. A release build knows none of these variables.
//!
//! `STEADFAST_CRASH_AT=PLACE` ends the process by SIGKILL when it comes to that place, as a power loss would; the places
//! stand between the steps of PROTOCOLS 4.5 and of operations. `STEADFAST_CRASH_FILE=FILE` does so at the place that stands in
//! that file, which goes first: of all processes one ends. Where the file says `hold PLACE`, the process renames it to
//! `FILE.held` and stays at that place while that is there. `STEADFAST_TELLS_VERSION=X.Y.Z` makes it a program of another version
//! in the eyes of the members.

#[cfg(debug_assertions)]
use std::path::Path;

/// Dies here if a test asked for it.
#[cfg(debug_assertions)]
pub(crate) fn crash(place: &str) {
    let is_named = std::env::var("STEADFAST_CRASH_AT").is_ok_and(|wanted| wanted == place);
    if is_named || std::env::var_os("STEADFAST_CRASH_FILE").is_some_and(|file| burns(Path::new(&file), place))
    {
        // It can't fail for the own process, and nothing after it runs.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Whether the file names this place as one to die at; one to stay at is left when the test says so.
#[cfg(debug_assertions)]
fn burns(file: &Path, place: &str) -> bool {
    let Ok(wanted) = std::fs::read_to_string(file) else { return false };
    let held = file.with_extension("held");
    if wanted.strip_prefix("hold ") == Some(place) && std::fs::rename(file, &held).is_ok() {
        while held.exists() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    wanted == place && std::fs::remove_file(file).is_ok()
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
