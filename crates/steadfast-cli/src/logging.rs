//! The agent's logs: plain lines on a terminal, JSON lines on request.
//!
//! Levels follow STYLE 6. The level comes from `--log`, else STEADFAST_LOG, else INFO. Logs go to stderr, so that
//! stdout stays for data.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::codes::Code;
use crate::failure::Failure;

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Plain,
    /// One JSON object a line.
    Json,
}

/// Starts logging for this process; to be called once.
pub fn start(format: LogFormat, level: Option<&str>) -> Result<(), Failure> {
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
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let result = match format {
        LogFormat::Plain => {
            builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init()
        }
        LogFormat::Json => builder.json().try_init(),
    };
    // A second start in one process (tests) keeps the first.
    let _ = result;
    Ok(())
}
