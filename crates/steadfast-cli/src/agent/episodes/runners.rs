//! The programs that are deployed, ready to be run: each is prepared at its first episode and kept while it is deployed.
//!
//! What can't be prepared on this node fails each episode with the reason, so that it is tried again when somebody has mended
//! it. It must never block the keeper's thread: episodes run on the runtime, a bounded number at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use steadfast::episodes::{Deployment, Runner};
use steadfast_proto::episode::{Failure, Outcome, Task};
use steadfast_proto::exchange::Text;
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, Semaphore};

use super::super::rows::Rows;
use super::rows::{ProgramRow, SourceRow, module_key};
use crate::episodes::programs::{Limits, Prepared, Source};

/// How many episodes run at the same time on one node.
const RUNS_MAX: usize = 64;

/// The programs of one node.
#[derive(Clone)]
pub(super) struct Runners {
    rows: Rows,
    runtime: Handle,
    places: Arc<Semaphore>,
    known: BTreeMap<(String, u32), Arc<Version>>,
}

/// One version of a program.
struct Version {
    source: SourceRow,
    rows: Rows,
    runtime: Handle,
    places: Arc<Semaphore>,
    prepared: OnceCell<Prepared>,
}

impl Runners {
    pub(super) fn new(rows: Rows, runtime: Handle) -> Runners {
        Runners { rows, runtime, places: Arc::new(Semaphore::new(RUNS_MAX)), known: BTreeMap::new() }
    }

    /// What can be run of these programs; what was ready before is kept, and what is deployed no more forgotten.
    pub(super) fn deployments(&mut self, programs: &[ProgramRow]) -> BTreeMap<Text, Deployment> {
        let mut before = std::mem::take(&mut self.known);
        let mut deployments = BTreeMap::new();
        for row in programs {
            let mut runners = BTreeMap::new();
            for (number, version) in &row.versions {
                let key = (row.name.clone(), *number);
                let kept = before.remove(&key).filter(|kept| kept.source == version.source);
                let kept = kept.unwrap_or_else(|| Arc::new(self.version(version.source.clone())));
                runners.insert(*number, runner(&kept));
                self.known.insert(key, kept);
            }
            deployments.insert(row.name.as_str().into(), Deployment { program: row.program(), runners });
        }
        deployments
    }

    fn version(&self, source: SourceRow) -> Version {
        let (rows, runtime, places) = (self.rows.clone(), self.runtime.clone(), Arc::clone(&self.places));
        Version { source, rows, runtime, places, prepared: OnceCell::new() }
    }
}

fn runner(version: &Arc<Version>) -> Runner {
    let version = Arc::clone(version);
    Runner::Elsewhere(Arc::new(move |task, done| {
        let version = Arc::clone(&version);
        let runtime = version.runtime.clone();
        runtime.spawn(async move {
            let Ok(_place) = version.places.acquire().await else { return };
            done.tell(version.run(&task).await);
        });
    }))
}

impl Version {
    async fn run(&self, task: &Task) -> Result<Outcome, Failure> {
        let prepared = self.prepared.get_or_try_init(|| self.prepare()).await;
        let ran = prepared.map_err(|why| Failure { why: Text::cut(&why), lasting: false })?.run(task).await;
        for line in ran.log {
            tracing::debug!(instance = %task.name, episode = task.episode, line, "a program says");
        }
        ran.result
    }

    async fn prepare(&self) -> Result<Prepared, String> {
        let source = self.source().await?;
        let prepared = tokio::task::spawn_blocking(move || Prepared::new(source, Limits::default())).await;
        prepared.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    async fn source(&self) -> Result<Source, String> {
        match &self.source {
            SourceRow::Http { url } => Ok(Source::Http { url: url.clone() }),
            SourceRow::Command { argv } => Ok(Source::Command { argv: argv.clone() }),
            SourceRow::Wasm { digest, .. } => {
                let key = module_key(digest);
                let found = match self.rows.catalog().get_stale(&key).1 {
                    Some(found) => Some(found),
                    None => self.rows.catalog().get(key.clone()).await.map_err(|error| error.to_string())?,
                };
                let found =
                    found.ok_or_else(|| format!("the catalog has no row {key}; deploy the module again"))?;
                if blake3::hash(&found.value).as_bytes() != digest {
                    return Err(format!("the catalog's row {key} is damaged; deploy the module again"));
                }
                Ok(Source::Wasm(found.value.to_vec()))
            }
        }
    }
}
