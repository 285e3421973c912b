//! Following a container until it is as wanted; shared by `run`, `stop` and `restore`. Not a verb itself.
//!
//! It only watches: what was asked for goes on when the watching ends.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;

use super::Context;
use crate::api::client::segment;
use crate::api::types::Container;
use crate::codes::Code;
use crate::failure::Failure;
use crate::output::Progress;

/// Whether what is waited for came about.
pub(super) enum Verdict {
    /// It did.
    Reached,
    /// It will not any more.
    Never(Failure),
    /// Not yet; what to tell people meanwhile.
    Waiting(String),
}

/// Follows the container until `judge` is satisfied or the time is over.
pub(super) async fn until(
    context: &Context,
    name: &str,
    timeout: Duration,
    progress: &mut Progress,
    judge: impl Fn(&Container) -> Verdict,
) -> Result<Container, Failure> {
    let path = format!("/v1/containers/{}/changes", segment(name));
    let work = async {
        let mut changes = pin!(context.client.follow::<Container>(&path).await?);
        let mut last = String::new();
        while let Some(container) = changes.next().await {
            let container = container?;
            match judge(&container) {
                Verdict::Reached => return Ok(container),
                Verdict::Never(failure) => return Err(failure),
                Verdict::Waiting(words) => {
                    progress.step(&words);
                    last = words;
                }
            }
        }
        Err(Failure::new(
            Code::AgentUnreachable,
            format!("the agent ended while {name} was waited for ({last})"),
        ))
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::new(
            Code::TimedOut,
            format!(
                "{name} did not get there within {}; it goes on by itself: see `steadfast ps` and `steadfast status`",
                humantime::format_duration(timeout)
            ),
        )),
    }
}

/// A `--timeout` as clap parses it.
pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    crate::units::duration_within(text, Duration::from_millis(1), Duration::from_secs(24 * 3600))
}

/// `12:34:56.789` of a time in ms since 1970, in UTC.
pub(super) fn clock(at_unix_ms: f64) -> String {
    let duration = Duration::try_from_secs_f64(at_unix_ms / 1000.0).unwrap_or_default();
    let seconds = duration.as_secs() % 86_400;
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        duration.subsec_millis()
    )
}
