//! The instances of all nodes in one list, by name, a page at a time.
//!
//! Each node is asked for the first of its own that are wanted; those of all together make the page. A node that does not
//! answer is named, since what it keeps is missing.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use steadfast::episodes::Keeper;
use steadfast::net::rpc::{Class, Services};
use steadfast_proto::exchange::Name;
use steadfast_proto::ids::NodeId;

use super::super::Agent;
use super::{Room, shown};
use crate::api::episode_types::{InstanceList, InstanceRow};
use crate::codes::Code;
use crate::failure::{Failure, did_you_mean};

/// The RPC service that lists what a node keeps.
const SERVICE_LIST: u8 = 28;
const ASK_MAX: Duration = Duration::from_secs(5);
/// The longest page.
const PAGE_MAX: usize = 1_000;
/// The page when nothing else is asked for.
const PAGE: usize = 200;

/// Which instances are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Wanted {
    /// Of this program.
    pub(crate) program: Option<String>,
    /// That do this.
    pub(crate) doing: Option<String>,
    /// Behind this name.
    pub(crate) after: Option<String>,
    /// How many at most.
    pub(crate) limit: Option<u32>,
}

impl Wanted {
    fn checked(&self) -> Result<usize, Failure> {
        if let Some(doing) = &self.doing
            && !shown::DOING.contains(&doing.as_str())
        {
            let hint = did_you_mean(doing, shown::DOING);
            let message = format!("doing: {doing:?} is none{hint}; possible are {}", shown::DOING.join(", "));
            return Err(Failure::new(Code::BadRequest, message));
        }
        let limit = self.limit.map_or(PAGE, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        if limit == 0 || limit > PAGE_MAX {
            let message = format!("limit: {limit} is out of range; 1 to {PAGE_MAX} are possible");
            return Err(Failure::new(Code::BadRequest, message));
        }
        Ok(limit)
    }
}

impl Agent {
    /// The instances that are wanted, of all nodes.
    pub(crate) async fn shown_instances(&self, wanted: Wanted) -> Result<InstanceList, Failure> {
        let limit = wanted.checked()?;
        if let Some(program) = &wanted.program
            && !self.episodes.programs().iter().any(|row| row.name == *program)
        {
            return Err(self.episodes.no_program(program));
        }
        let Some(nodes) = self.episodes.all_homes() else { return Ok(InstanceList::default()) };
        let wanted = Wanted { limit: u32::try_from(limit.saturating_add(1)).ok(), ..wanted };
        let asked = nodes.into_iter().map(|node| {
            let wanted = wanted.clone();
            async move { (node, self.ask_list(node, wanted).await) }
        });
        let mut list = InstanceList::default();
        for (node, answer) in futures_util::future::join_all(asked).await {
            match answer {
                Some(rows) => {
                    let name = self.node_name(node);
                    list.instances
                        .extend(rows.into_iter().map(|row| InstanceRow { node: name.clone(), ..row }));
                }
                None => list.silent.push(self.node_name(node)),
            }
        }
        list.instances.sort_by(|one, other| one.name.cmp(&other.name));
        if list.instances.len() > limit {
            list.instances.truncate(limit);
            list.next = list.instances.last().map(|row| row.name.clone());
        }
        Ok(list)
    }

    async fn ask_list(&self, node: NodeId, wanted: Wanted) -> Option<Vec<InstanceRow>> {
        if node == self.id {
            return self.episodes.list(wanted).await.ok();
        }
        let body = Bytes::from(serde_json::to_vec(&wanted).ok()?);
        let answer = self.peers.call(node, Class::Control, SERVICE_LIST, body, ASK_MAX).await.ok()?;
        serde_json::from_slice(&answer).ok()
    }
}

impl Room {
    /// Answers other nodes.
    pub(super) fn offer_lists(&self, services: &Services) {
        let room = self.clone();
        services.register(SERVICE_LIST, move |_, body| {
            let room = room.clone();
            Box::pin(async move {
                let wanted: Wanted = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
                let rows = room.list(wanted).await.map_err(|failure| failure.message)?;
                serde_json::to_vec(&rows).map(Bytes::from).map_err(|error| error.to_string())
            })
        });
    }

    /// The first of what this node keeps that is wanted.
    async fn list(&self, wanted: Wanted) -> Result<Vec<InstanceRow>, Failure> {
        let mut rows = Vec::new();
        for keeper in self.all_opened().await? {
            rows.extend(listed(&keeper, wanted.clone()).await?);
        }
        Ok(rows)
    }
}

async fn listed(keeper: &Keeper, wanted: Wanted) -> Result<Vec<InstanceRow>, Failure> {
    let rows = keeper.look(move |episodes| {
        let limit = wanted.limit.map_or(PAGE_MAX, |limit| usize::try_from(limit).unwrap_or(PAGE_MAX));
        let fits = |name: &Name| {
            wanted.program.as_deref().is_none_or(|program| name.program() == program)
                && wanted.after.as_deref().is_none_or(|after| name.as_str() > after)
        };
        let found = episodes
            .instances()
            .filter(|instance| fits(&instance.name))
            .filter(|instance| wanted.doing.as_deref().is_none_or(|doing| shown::doing(instance) == doing));
        found.take(limit.min(PAGE_MAX + 1)).map(|instance| shown::row(instance, "")).collect()
    });
    rows.await.map_err(|error| Failure::new(Code::EpisodesFailed, error.to_string()))
}
