//! Making a cluster of the bed's hosts, and waiting for what it says about itself, through the command line only.
//!
//! Waiting is for conditions with generous bounds: a bound that runs out is a failure that names what was missing. Nothing here
//! asserts on time. Read `host.rs` for how commands run.

use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use steadfast_proto::view::GRANTORS_MAX;

use super::{Bed, BedError, Host};
use crate::api::types::{Checkpoint, Container, Node, Status};

/// Bound of waits for things that take a second or so on an idle machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until `condition` gives a value; an error after `max` names `what` was waited for.
pub fn wait_for<T>(
    what: &str,
    max: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T, BedError> {
    let give_up = Instant::now() + max;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if Instant::now() > give_up {
            return Err(BedError::TimedOut { what: what.to_owned(), seconds: max.as_secs() });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Bed {
    /// Makes a cluster of all hosts: `init` on the first, `invite` and `join` for each other, every agent running, and
    /// every node that is not to stand by a member in the eyes of every node.
    pub fn init_cluster(&self, name: &str) -> Result<(), BedError> {
        self.wait_etcd()?;
        let first = self.host(0);
        let config = first.config().display().to_string();
        let lease = first.planned_lease().map(|lease| format!("{}ms", lease.as_millis()));
        let mut arguments = vec!["init", name, "--config", &config];
        if let Some(lease) = &lease {
            arguments.extend(["--lease", lease]);
        }
        first.steadfast_text(&arguments)?;
        first.start_agent()?;
        first.wait_ready()?;
        for host in self.hosts().iter().skip(1) {
            host.join_through(first)?;
            host.start_agent()?;
            host.wait_ready()?;
        }
        self.wait_members(self.hosts().len() - self.shared.plan.standbys)
    }

    /// Waits until some host whose agent can answer shows the container in a state that `condition` accepts; returns it.
    ///
    /// `what` finishes the sentence "waited for NAME ...".
    pub fn wait_container(
        &self,
        name: &str,
        what: &str,
        condition: impl Fn(&Container) -> bool,
    ) -> Result<Container, BedError> {
        let mut last = String::new();
        let found = wait_for(&format!("{name} {what}"), PATIENCE, || {
            for host in self.hosts().iter().filter(|host| host.has_answering_agent()) {
                match host.container(name) {
                    Ok(Some(container)) if condition(&container) => return Some(container),
                    Ok(Some(Container { node, state, epoch, reason, .. })) => {
                        last = format!("{}: on {node}, {state}, epoch {epoch}, {reason:?}", host.name());
                    }
                    Ok(None) => last = format!("{} knows no {name}", host.name()),
                    Err(error) => last = error.to_string(),
                }
            }
            None
        });
        found.map_err(|error| explained(error, &last))
    }

    /// Waits until each host whose agent can answer counts exactly `count` members, and says that the cluster survives
    /// the loss of as many nodes as so many members allow (a fresh member votes and grants leases only a moment later; not
    /// all of many do).
    pub fn wait_members(&self, count: usize) -> Result<(), BedError> {
        for host in self.hosts().iter().filter(|host| host.has_answering_agent()) {
            let mut last = String::new();
            let done = wait_for(&format!("{count} members in the eyes of {}", host.name()), PATIENCE, || {
                let status = match host.status() {
                    Ok(status) => status,
                    Err(error) => {
                        last = error.to_string();
                        return None;
                    }
                };
                last = format!("{:?}, which survives {}", status.view.members, status.survives.sentence);
                let survives = usize::try_from(status.survives.nodes).unwrap_or(usize::MAX);
                (status.view.members.len() == count && survives >= (count.min(GRANTORS_MAX) - 1) / 2)
                    .then_some(())
            });
            done.map_err(|error| explained(error, &last))?;
        }
        Ok(())
    }
}

impl Host {
    /// Joins this host's node to the cluster of `inviter` with a fresh token; its agent is not started.
    pub fn join_through(&self, inviter: &Host) -> Result<(), BedError> {
        let token = inviter.steadfast_text(&["invite", self.name()])?;
        let config = self.config().display().to_string();
        self.steadfast_text(&["join", token.trim(), "--config", &config]).map(|_| ())
    }

    /// Waits until the agent answers on its local socket.
    pub fn wait_ready(&self) -> Result<(), BedError> {
        let mut last = String::new();
        let answered =
            wait_for(&format!("an answer of the agent on {}", self.name()), PATIENCE, || {
                match self.status() {
                    Ok(_) => Some(Ok(())),
                    Err(_) if self.agent_pid().is_none() => Some(Err(())),
                    Err(error) => {
                        last = error.to_string();
                        None
                    }
                }
            });
        match answered {
            Ok(Ok(())) => Ok(()),
            Ok(Err(())) => Err(BedError::Program {
                program: format!("the agent on {}", self.name()),
                source: std::io::Error::other(format!("it ended; its log's end:\n{}", self.log_tail(12))),
            }),
            Err(error) => Err(explained(error, &last)),
        }
    }

    /// The names of the members of the view that this host's agent has installed.
    pub fn members(&self) -> Result<Vec<String>, BedError> {
        Ok(self.status()?.view.members)
    }

    /// How the cluster stands, seen from here.
    pub fn status(&self) -> Result<Status, BedError> {
        self.steadfast_as(&["status", "-o", "json"])
    }

    /// The nodes, seen from here.
    pub fn nodes(&self) -> Result<Vec<Node>, BedError> {
        self.steadfast_as(&["nodes", "-o", "json"])
    }

    /// All containers, seen from here.
    pub fn containers(&self) -> Result<Vec<Container>, BedError> {
        self.steadfast_as(&["ps", "-o", "json"])
    }

    /// One container by name, seen from here.
    pub fn container(&self, name: &str) -> Result<Option<Container>, BedError> {
        Ok(self.containers()?.into_iter().find(|container| container.name == name))
    }

    /// The committed checkpoints of one container, seen from here.
    pub fn checkpoints(&self, name: &str) -> Result<Vec<Checkpoint>, BedError> {
        let all: Vec<Checkpoint> = self.steadfast_as(&["checkpoints", "-o", "json"])?;
        Ok(all.into_iter().filter(|checkpoint| checkpoint.container == name).collect())
    }

    /// Runs `steadfast` with these arguments, which ask for JSON, and reads the answer as a `T`.
    pub fn steadfast_as<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T, BedError> {
        let answer = self.steadfast_text(arguments)?;
        serde_json::from_str(&answer).map_err(|error| BedError::Answer {
            host: self.name().to_owned(),
            command: arguments.join(" "),
            problem: error.to_string(),
            answer,
        })
    }
}

fn explained(error: BedError, last: &str) -> BedError {
    let BedError::TimedOut { what, seconds } = error else { return error };
    BedError::TimedOut { what: format!("{what} (last answer: {last})"), seconds }
}
