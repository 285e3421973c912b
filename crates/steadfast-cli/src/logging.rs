//! The agent's logs: plain lines on a terminal, JSON lines on request.
//!
//! Levels follow STYLE 6. The level comes from `--log`, else STEADFAST_LOG, else INFO. Logs go to stderr, so that
//! stdout stays for data.

use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::codes::Code;
use crate::failure::Failure;
use crate::traces;

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Plain,
    /// One JSON object a line.
    Json,
}

/// Starts logging for this process, and its traces where there are any; to be called once.
pub fn start(format: LogFormat, level: Option<&str>, export: Option<traces::Export>) -> Result<(), Failure> {
    let directives = level
        .map(str::to_owned)
        .or_else(|| std::env::var("STEADFAST_LOG").ok())
        .unwrap_or_else(|| "info,openraft=error".to_owned());
    let filter = EnvFilter::try_new(&directives).map_err(|error| {
        Failure::new(
            Code::BadRequest,
            format!("--log {directives:?}: {error}; write for example \"debug\" or \"info,steadfast=trace\""),
        )
    })?;
    // A step of a trace is no part of a line.
    let filter = filter.and(filter_fn(|metadata| !traces::is_traced(metadata)));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Plain => {
            lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_filter(filter).boxed()
        }
        LogFormat::Json => lines.json().with_filter(filter).boxed(),
    };
    let result = tracing_subscriber::registry().with(export).with(lines).try_init();
    // A second start in one process (tests) keeps the first.
    let _ = result;
    Ok(())
}
