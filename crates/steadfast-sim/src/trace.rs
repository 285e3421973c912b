//! What happened, one line of fixed columns each: time, node, what, detail.
//!
//! Costs nothing unless asked for. Must never take part in the run: a traced seed is the same seed.

/// The lines so far, if anybody wants them.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    lines: Option<Vec<String>>,
}

impl Trace {
    pub(crate) fn recording() -> Trace {
        Trace { lines: Some(Vec::new()) }
    }

    pub(crate) fn silent() -> Trace {
        Trace { lines: None }
    }

    /// Adds a line at world time `at` about host `host`, or about none.
    pub(crate) fn line(&mut self, at: u64, host: Option<usize>, what: &str, detail: impl FnOnce() -> String) {
        let Some(lines) = &mut self.lines else { return };
        let node = host.map_or_else(|| "-".to_owned(), |host| format!("n{}", host + 1));
        let (seconds, micros) = (at / 1_000_000_000, at % 1_000_000_000 / 1_000);
        lines.push(format!("{seconds:>4}.{micros:06}  {node:<3} {what:<11} {}", detail()));
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}
