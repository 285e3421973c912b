//! Process groups of programs: their rows in the catalog, what operators ask of them, and who waits for a place.
//!
//! Decides nothing of a group: `steadfast_proto::group` says which row may follow and what a request allows, and each
//! decision is committed only on the rows that it rests on. Must never say of a swap that may have happened that it did not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use steadfast::catalog::{CatalogError, Txn, Versioned};
use steadfast::group::{decode_row, encode_row, row_from_text, row_to_text};
use steadfast_proto::catalog::{GROUP_REQUESTS, GROUP_STANDBYS, GROUPS, Key, View};
use steadfast_proto::group::{
    Asked, GroupRows, Member, Reason, Request, RequestError, RequestState, Row, Standby, SwapDecision,
};
use steadfast_proto::ids::{Incarnation, NodeId, ViewId};

use super::Agent;
use super::rows;
use crate::api::convert::{Names, node_name, now_unix_ms};
use crate::api::group_types as types;
use crate::codes::Code;
use crate::failure::{Failure, did_you_mean};
use crate::units;

/// Most groups in one cluster.
const GROUPS_MAX: usize = 256;
/// Most processes that wait for a place in one group.
const STANDBYS_MAX: usize = 16;
/// Most processes that wait for a place in any group, here.
const STANDBYS_HERE_MAX: usize = 64;
/// How often a decision is taken anew because rows change under it.
const ATTEMPTS: u32 = 20;
/// After how long without a word a process does not wait any more.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How often that is looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The processes that said here that they wait, and when they did last.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<BTreeMap<(String, NodeId), Instant>>);

/// One group's rows with their versions; 0 where there is none.
struct Found {
    rows: GroupRows,
    row_version: u64,
    request_version: u64,
}

impl Agent {
    /// Every group.
    pub(crate) async fn shown_groups(&self) -> Result<Vec<types::Group>, Failure> {
        let range = |prefix: &str| self.rows.catalog().range(prefix.to_owned());
        // In the order of `read_rows`.
        let requests = range(GROUP_REQUESTS).await.map_err(|error| rows::catalog_failure(&error))?;
        let rows = range(GROUPS).await.map_err(|error| rows::catalog_failure(&error))?;
        let standbys = self.standbys(GROUP_STANDBYS).await?;
        let asked: BTreeMap<&str, Request> = (requests.rows.iter())
            .filter_map(|(key, row)| {
                Some((key.strip_prefix(GROUP_REQUESTS)?, rows::decode::<Request>(key, row).ok()?.0))
            })
            .collect();
        let (names, cluster) = (self.rows.names(), self.cluster_view().await?);
        let shown = rows.rows.iter().filter_map(|(key, row)| Some((key.strip_prefix(GROUPS)?, row)));
        shown
            .map(|(name, row)| {
                let row = decode_row(&row.value).map_err(|error| unreadable(name, &error))?;
                let rows = GroupRows { row, request: asked.get(name).copied() };
                Ok(shown_rows(name, &rows, &standbys, (&names, &cluster)))
            })
            .collect()
    }

    /// One group.
    pub(crate) async fn shown_group(&self, name: &str) -> Result<types::Group, Failure> {
        let Some(found) = self.group_rows(name).await? else { return Err(self.no_group(name)) };
        let standbys = self.standbys(&standbys_of(name)).await?;
        let cluster = self.cluster_view().await?;
        Ok(shown_rows(name, &found.rows, &standbys, (&self.rows.names(), &cluster)))
    }

    /// Swaps a group's row for its next one, or founds the group.
    pub(crate) async fn swap_group(
        &self,
        name: &str,
        request: &types::SwapGroup,
    ) -> Result<types::SwappedGroup, Failure> {
        let name = group_name(name)?;
        let next = row_from_text(&request.next)
            .map_err(|error| Failure::new(Code::BadRequest, format!("next: {error}")))?;
        for _ in 0..ATTEMPTS {
            let found = self.group_rows(&name).await?;
            let (txn, row, outcome) = match (&found, request.expected) {
                (None, None) => (self.founding(&name, &next).await?, next.clone(), "swapped"),
                (None, Some(_)) => return Err(self.no_group(&name)),
                (Some(found), None) if found.rows.row != next => {
                    return Ok(swapped("refused", &found.rows.row));
                }
                (Some(found), None) => return Ok(swapped("swapped", &found.rows.row)),
                (Some(found), Some(expected)) => {
                    let expected = (ViewId(expected.view), expected.renewal);
                    let decision = found.rows.swap(expected, &next).map_err(|error| {
                        Failure::new(Code::GroupRowRefused, format!("group {name}: {error}"))
                    })?;
                    match decision {
                        SwapDecision::Done => return Ok(swapped("swapped", &next)),
                        SwapDecision::Conflict => return Ok(swapped("refused", &found.rows.row)),
                        SwapDecision::Write { row, request, is_as_asked } => {
                            let txn = write(&name, found, &row, request)?;
                            (txn, *row, if is_as_asked { "swapped" } else { "refused" })
                        }
                    }
                }
            };
            match self.rows.commit(txn).await {
                Ok(reply) if reply.succeeded => {
                    tracing::info!(group = name, view = row.view.id.0, outcome, "a group's row was written");
                    return Ok(swapped(outcome, &row));
                }
                Ok(_) => {}
                Err(failure) if failure.code == Code::TimedOut => {
                    return Ok(types::SwappedGroup { outcome: "unknown".to_owned(), row: None });
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(types::SwappedGroup { outcome: "unknown".to_owned(), row: None })
    }

    /// Puts the request that one member be replaced by a process that waits.
    pub(crate) async fn ask_group(
        &self,
        name: &str,
        request: &types::ReplaceMember,
    ) -> Result<types::Group, Failure> {
        for _ in 0..ATTEMPTS {
            let Some(found) = self.group_rows(name).await? else { return Err(self.no_group(name)) };
            let standbys = self.standbys(&standbys_of(name)).await?;
            let names = self.rows.names();
            let refuse = |error: RequestError| refused(name, request, &error, &names);
            let (full, waiting) = (&found.rows.row.view.full, members_of(&standbys));
            // One node may have a member and, in its next life, a process that waits.
            let old = pick(&request.old, full, &names).or_else(|| pick(&request.old, &waiting, &names));
            let new = pick(&request.new, &waiting, &names).or_else(|| pick(&request.new, full, &names));
            let old = old.ok_or_else(|| refuse(RequestError::NoMember))?;
            let new = new.ok_or_else(|| refuse(RequestError::NotWaiting))?;
            match found.rows.ask(old, new, waiting.contains(&new), now_unix_ms()).map_err(refuse)? {
                Asked::Already => return self.shown_group(name).await,
                Asked::Write(row) => {
                    let key = Key::GroupRequest(name.to_owned()).encode();
                    let mut txn = Txn::compare_and_set(key, found.request_version, rows::encode(&row)?);
                    txn.compare.push((Key::Group(name.to_owned()).encode(), found.row_version));
                    if self.rows.commit(txn).await?.succeeded {
                        tracing::info!(
                            group = name,
                            old = request.old,
                            new = request.new,
                            "a member is being replaced"
                        );
                        return self.shown_group(name).await;
                    }
                }
            }
        }
        Err(busy(name))
    }

    /// Withdraws the request, unless it is over; whatever is under way for it fails then.
    pub(crate) async fn withdraw_request(&self, name: &str) -> Result<types::Group, Failure> {
        for _ in 0..ATTEMPTS {
            let Some(found) = self.group_rows(name).await? else { return Err(self.no_group(name)) };
            let Some(next) = found.rows.withdraw() else { return self.shown_group(name).await };
            let txn = write(name, &found, &next.row, Some(next.request))?;
            if self.rows.commit(txn).await?.succeeded {
                tracing::info!(group = name, "the replacement of a member was withdrawn");
                return self.shown_group(name).await;
            }
        }
        Err(busy(name))
    }

    /// Notes that a process waits for a place, and says what is asked of it.
    pub(crate) async fn hear_standby(
        &self,
        name: &str,
        request: &types::WaitForPlace,
    ) -> Result<types::PlaceOffer, Failure> {
        let node =
            request.id.parse().map_err(|error| Failure::new(Code::BadRequest, format!("id: {error}")))?;
        let member = Member { node, incarnation: Incarnation(request.incarnation) };
        let Some(found) = self.group_rows(name).await? else { return Err(self.no_group(name)) };
        let waiter = (name.to_owned(), node);
        if found.rows.row.view.has(member) {
            self.waiters.forget(&waiter);
            return Ok(types::PlaceOffer { full: true, replaces: None, withdrawn: false });
        }
        if !self.waiters.note(waiter) {
            return Err(Failure::new(
                Code::GroupRowRefused,
                format!("{STANDBYS_HERE_MAX} processes wait on this node already; end some"),
            ));
        }
        self.keep_standby(name, member, &found).await?;
        let request = found.rows.request.filter(|request| request.by == member);
        let asked = request.filter(|request| request.state == RequestState::Asked);
        let replaces = asked.map(|request| shown_member(request.victim, &self.rows.names()));
        Ok(types::PlaceOffer { full: false, replaces, withdrawn: request.is_some() && asked.is_none() })
    }

    async fn keep_standby(&self, name: &str, member: Member, found: &Found) -> Result<(), Failure> {
        let key = Key::GroupStandby(name.to_owned(), member.node);
        let there: Option<(Standby, u64)> = self.rows.get(&key).await?;
        if let Some((there, _)) = &there {
            if there.member == member && there.host == self.id {
                return Ok(());
            }
            if there.member.incarnation > member.incarnation {
                return Err(Failure::new(
                    Code::GroupRowRefused,
                    format!(
                        "incarnation {} of this process waits already; start it with a higher one than {}",
                        there.member.incarnation, member.incarnation
                    ),
                ));
            }
        } else if self.standbys(&standbys_of(name)).await?.len() >= STANDBYS_MAX {
            let message =
                format!("{STANDBYS_MAX} processes wait for a place in group {name} already; end some");
            return Err(Failure::new(Code::GroupRowRefused, message));
        }
        let row = Standby { member, host: self.id, since_unix_ms: now_unix_ms() };
        let version = there.map_or(0, |(_, version)| version);
        let mut txn = Txn::compare_and_set(key.encode(), version, rows::encode(&row)?);
        // Else it could be noted after it has become a member.
        txn.compare.push((Key::Group(name.to_owned()).encode(), found.row_version));
        // Whoever lost a race says so again in a moment.
        self.rows.commit(txn).await.map(drop)
    }

    /// Takes the rows of processes away that do not say any more that they wait here.
    pub(super) async fn sweep_standbys(self: Arc<Self>) {
        let started = Instant::now();
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            let silent = self.waiters.drop_silent();
            if started.elapsed() < SILENCE_MAX {
                continue;
            }
            let here = self.rows.catalog().range_stale(GROUP_STANDBYS);
            for (key, versioned) in here.rows {
                let Ok((row, version)) = rows::decode::<Standby>(&key, &versioned) else { continue };
                let Some(Key::GroupStandby(name, node)) = Key::decode(&key) else { continue };
                let is_over = row.host == self.id && !self.waiters.has(&(name, node));
                if is_over {
                    let txn = Txn { compare: vec![(key.clone(), version)], puts: vec![(key, None)] };
                    // Without a majority it stays until there is one.
                    let _ = self.rows.commit(txn).await;
                }
            }
            if silent > 0 {
                tracing::debug!(silent, "processes do not wait here any more");
            }
        }
    }

    async fn founding(&self, name: &str, first: &Row) -> Result<Txn, Failure> {
        first.check_first().map_err(|error| {
            Failure::new(Code::GroupRowRefused, format!("group {name} can't be founded: {error}"))
        })?;
        let all = self.rows.catalog().range(GROUPS.to_owned()).await;
        if all.map_err(|error| rows::catalog_failure(&error))?.rows.len() >= GROUPS_MAX {
            let message = format!("the cluster has {GROUPS_MAX} process groups, and more are not possible");
            return Err(Failure::new(Code::GroupRowRefused, message));
        }
        Ok(Txn::compare_and_set(Key::Group(name.to_owned()).encode(), 0, encode_row(first)))
    }

    async fn group_rows(&self, name: &str) -> Result<Option<Found>, Failure> {
        let name = group_name(name)?;
        read_rows(&name, |key| self.rows.catalog().get(key.encode())).await
    }

    /// The processes that wait, each on a node that is a member.
    async fn standbys(&self, prefix: &str) -> Result<Vec<(String, Standby)>, Failure> {
        let found = self.rows.catalog().range(prefix.to_owned()).await;
        let found = found.map_err(|error| rows::catalog_failure(&error))?;
        let view = self.rows.get_stale::<View>(&Key::View).map(|(view, _)| view);
        let decoded = found.rows.iter().map(|(key, row)| {
            let (standby, _) = rows::decode::<Standby>(key, row)?;
            let Some(Key::GroupStandby(name, _)) = Key::decode(key) else {
                return Err(Failure::new(Code::Internal, format!("the catalog's row {key} has no group")));
            };
            Ok((name, standby))
        });
        let is_here = |standby: &Standby| view.as_ref().is_none_or(|view| view.has(standby.host));
        let all: Result<Vec<_>, Failure> = decoded.collect();
        Ok(all?.into_iter().filter(|(_, standby)| is_here(standby)).collect())
    }

    /// The cluster's view, read after a group's row: an older one could call a member failed that has come back since.
    async fn cluster_view(&self) -> Result<Option<View>, Failure> {
        Ok(self.rows.get(&Key::View).await?.map(|(view, _)| view))
    }

    fn no_group(&self, name: &str) -> Failure {
        let known = self.rows.catalog().range_stale(GROUPS);
        let hint = did_you_mean(name, known.rows.iter().filter_map(|(key, _)| key.strip_prefix(GROUPS)));
        Failure::new(Code::GroupNotFound, format!("there is no process group named {name:?}{hint}"))
    }
}

/// Reads a group's rows. The request first: what is carried out is taken away in the transaction that swaps the members, so
/// whoever sees no request any more sees the members that it led to.
async fn read_rows<Got>(name: &str, get: impl Fn(Key) -> Got) -> Result<Option<Found>, Failure>
where
    Got: Future<Output = Result<Option<Versioned>, CatalogError>>,
{
    let failed = |error: CatalogError| rows::catalog_failure(&error);
    let request = get(Key::GroupRequest(name.to_owned())).await.map_err(failed)?;
    let Some(row) = get(Key::Group(name.to_owned())).await.map_err(failed)? else { return Ok(None) };
    let request = request.map(|found| rows::decode::<Request>(name, &found)).transpose()?;
    let (request, request_version) = request.unzip();
    let decoded = decode_row(&row.value).map_err(|error| unreadable(name, &error))?;
    let rows = GroupRows { row: decoded, request };
    Ok(Some(Found { rows, row_version: row.version, request_version: request_version.unwrap_or(0) }))
}

impl Waiters {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, NodeId), Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a word; `false` where there are too many.
    fn note(&self, waiter: (String, NodeId)) -> bool {
        let mut heard = self.lock();
        let has_room = heard.len() < STANDBYS_HERE_MAX || heard.contains_key(&waiter);
        if has_room {
            heard.insert(waiter, Instant::now());
        }
        has_room
    }

    fn forget(&self, waiter: &(String, NodeId)) {
        self.lock().remove(waiter);
    }

    fn has(&self, waiter: &(String, NodeId)) -> bool {
        self.lock().contains_key(waiter)
    }

    fn drop_silent(&self) -> usize {
        let mut heard = self.lock();
        let before = heard.len();
        heard.retain(|_, at| at.elapsed() < SILENCE_MAX);
        before - heard.len()
    }
}

/// The transaction that writes a row, and what it means for the request, on what was found.
fn write(name: &str, found: &Found, row: &Row, request: Option<Option<Request>>) -> Result<Txn, Failure> {
    let (key, request_key) =
        (Key::Group(name.to_owned()).encode(), Key::GroupRequest(name.to_owned()).encode());
    let mut puts = vec![(key.clone(), Some(encode_row(row).into()))];
    if let Some(request) = request {
        puts.push((request_key.clone(), request.map(|request| rows::encode(&request)).transpose()?));
    }
    if let Reason::Added(by) | Reason::Replaced { by, .. } = &row.view.reason
        && row.renewal == 0
    {
        puts.push((Key::GroupStandby(name.to_owned(), by.node).encode(), None));
    }
    Ok(Txn { compare: vec![(key, found.row_version), (request_key, found.request_version)], puts })
}

fn shown_rows(
    name: &str,
    rows: &GroupRows,
    standbys: &[(String, Standby)],
    (names, cluster): (&Names, &Option<View>),
) -> types::Group {
    let view = &rows.row.view;
    let has_failed = |member: &&Member| {
        let is_removed = |view: &View| view.removed.contains_key(&member.node) && !view.has(member.node);
        cluster.as_ref().is_some_and(is_removed)
    };
    let waits = standbys.iter().filter(|(group, standby)| group == name && !view.has(standby.member));
    let show = |member: &Member| shown_member(*member, names);
    let (change, reason) = worded(&view.reason, names);
    types::Group {
        name: name.to_owned(),
        view: view.id.0,
        renewal: rows.row.renewal,
        members: view.full.iter().map(show).collect(),
        mirrors: view.mirrors,
        cut: view.cut.0,
        change: change.to_owned(),
        reason,
        failed: view.full.iter().filter(has_failed).map(show).collect(),
        standbys: waits.map(|(_, standby)| show(&standby.member)).collect(),
        request: rows.request.map(|request| types::GroupRequest {
            old: show(&request.victim),
            new: show(&request.by),
            state: match request.state {
                RequestState::Asked => "asked",
                RequestState::Withdrawn => "withdrawn",
            }
            .to_owned(),
            asked_unix_ms: request.asked_unix_ms,
        }),
        row: row_to_text(&rows.row),
    }
}

fn swapped(outcome: &str, row: &Row) -> types::SwappedGroup {
    types::SwappedGroup { outcome: outcome.to_owned(), row: Some(row_to_text(row)) }
}

fn members_of(standbys: &[(String, Standby)]) -> Vec<Member> {
    standbys.iter().map(|(_, standby)| standby.member).collect()
}

fn standbys_of(name: &str) -> String {
    format!("{GROUP_STANDBYS}{name}/")
}

fn group_name(name: &str) -> Result<String, Failure> {
    units::name(name)
        .map_err(|message| Failure::new(Code::NameInvalid, format!("the group's name: {message}")))
}

/// The one of `known` that is written so: NODE or NODE/INCARNATION, the node by name or id. Of several lives the newest.
fn pick(text: &str, known: &[Member], names: &Names) -> Option<Member> {
    let is_meant = |member: &&Member| {
        let (id, name) = (member.node.to_string(), node_name(names, member.node));
        [id, name].iter().any(|node| text == node || text == format!("{node}/{}", member.incarnation))
    };
    known.iter().filter(is_meant).max_by_key(|member| member.incarnation).copied()
}

fn shown_member(member: Member, names: &Names) -> types::GroupMember {
    types::GroupMember {
        node: node_name(names, member.node),
        id: member.node.to_string(),
        incarnation: member.incarnation.0,
    }
}

fn worded(reason: &Reason, names: &Names) -> (&'static str, String) {
    let show = |member: &Member| format!("{}/{}", node_name(names, member.node), member.incarnation);
    match reason {
        Reason::Founded => ("founded", "the group was founded".to_owned()),
        Reason::Added(by) => ("added", format!("{} was added", show(by))),
        Reason::Replaced { victim, by } => {
            ("replaced", format!("{} took the place of {}", show(by), show(victim)))
        }
        Reason::Failed(gone) => {
            ("failed", format!("failed: {}", gone.iter().map(show).collect::<Vec<_>>().join(", ")))
        }
    }
}

fn refused(name: &str, request: &types::ReplaceMember, error: &RequestError, names: &Names) -> Failure {
    let (old, new) = (&request.old, &request.new);
    let show = |member: Member| format!("{}/{}", node_name(names, member.node), member.incarnation);
    let message = match error {
        RequestError::Itself => format!("{new}: {error}"),
        RequestError::NoMember => format!("{old} is not in group {name}: {error}"),
        RequestError::MemberAlready | RequestError::NotWaiting | RequestError::NodeTaken => {
            format!("{new} can't come into group {name}: {error}")
        }
        RequestError::UnderWay(other) => format!(
            "{} takes the place of {} in group {name}: {error}; wait for it, or withdraw it with `steadfast replace --group {name} --withdraw`",
            show(other.by),
            show(other.victim)
        ),
    };
    Failure::new(Code::GroupReplaceRefused, format!("{message}; nothing was changed"))
}

fn unreadable(name: &str, error: &steadfast::group::RowError) -> Failure {
    Failure::new(Code::Internal, format!("the catalog's row of group {name}: {error}"))
}

fn busy(name: &str) -> Failure {
    Failure::new(
        Code::TimedOut,
        format!("the rows of group {name} change faster than they could be written; try again"),
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_request_that_is_carried_out_while_it_is_read_does_not_leave_the_old_members() {
        let member = |node| Member { node: NodeId(node), incarnation: Incarnation(1) };
        let before = Row::founded(vec![member(1), member(2)]);
        let mut after = Row::founded(vec![member(3), member(2)]);
        after.view.id = ViewId(2);
        let request =
            Request { victim: member(1), by: member(3), state: RequestState::Asked, asked_unix_ms: 0 };
        // Between any two reads the request is carried out.
        let reads = Cell::new(0);
        let get = |key: Key| {
            let is_done = reads.replace(reads.get() + 1) > 0;
            let value = if matches!(key, Key::GroupRequest(_)) {
                (!is_done).then(|| rows::encode(&request).unwrap())
            } else {
                Some(encode_row(if is_done { &after } else { &before }).into())
            };
            std::future::ready(Ok(value.map(|value| Versioned { value, version: 1 })))
        };
        let found = read_rows("kv", get).await.unwrap().unwrap();
        assert!(found.rows.request.is_some() || found.rows.row.view.has(member(3)));
    }
}
