//! The table: what one command does to the rows.
//!
//! Pure and deterministic: every node applies the same commands in the same order and holds the same rows, versions and sessions.
//! It decides comparisons, revisions, limits and repeated commands; it must never read a clock, draw a random number or look inside a value.
//! Read next: `session` for repeated commands, `watch` for the history, `machine` for who calls this.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::session::{Seen, Sessions, Stamp};
use super::{InvalidRequest, TABLE_BYTES_MAX, Txn, TxnReply, Versioned, check_txn};

/// A transaction and what identifies it: the data of one log entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Command {
    pub(crate) stamp: Stamp,
    pub(crate) txn: Txn,
}

impl fmt::Display for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "change {} of node {}: {} comparisons, {} puts",
            self.stamp.number,
            self.stamp.session.node,
            self.txn.compare.len(),
            self.txn.puts.len()
        )
    }
}

/// What the table answers to one log entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The entry carried no transaction.
    Nothing,
    /// The transaction was decided.
    Txn(TxnReply),
    /// The transaction breaks a limit.
    Invalid(InvalidRequest),
    /// The rows would need more bytes than the table may hold.
    Full { needed: u64 },
    /// It can't be told whether the command was applied before; this copy was not. The log stood at `index`.
    Forgotten { index: u64 },
}

/// A key and what it holds after a change.
pub(crate) type Change = (String, Option<Versioned>);

/// What applying one command gave.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) reply: Reply,
    /// Empty if nothing changed; else all changes of the revision `Table::revision`.
    pub(crate) changes: Vec<Change>,
}

/// All rows, and what is needed to go on from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    rows: BTreeMap<String, Versioned>,
    bytes: u64,
    revision: u64,
    sessions: Sessions,
}

impl Table {
    /// A table with these rows, as they were stored.
    pub(crate) fn restore(rows: BTreeMap<String, Versioned>, revision: u64, sessions: Sessions) -> Self {
        let bytes = rows.iter().map(|(key, row)| row_bytes(key, row.value.len())).sum();
        Self { rows, bytes, revision, sessions }
    }

    /// Revision of the last change.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The sessions, to be stored beside the rows.
    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// All rows.
    pub(crate) fn rows(&self) -> &BTreeMap<String, Versioned> {
        &self.rows
    }

    /// The row of a key.
    pub(crate) fn row(&self, key: &str) -> Option<&Versioned> {
        self.rows.get(key)
    }

    /// All rows under a prefix, in order.
    pub(crate) fn rows_under(&self, prefix: &str) -> Vec<(String, Versioned)> {
        self.rows
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, row)| (key.clone(), row.clone()))
            .collect()
    }

    /// Applies the command that stands in the log at `index`.
    pub(crate) fn apply(&mut self, index: u64, command: &Command) -> Applied {
        match self.sessions.look(&command.stamp) {
            Seen::Forgotten => return unchanged(Reply::Forgotten { index }),
            Seen::Done(revision) => {
                return unchanged(Reply::Txn(TxnReply { succeeded: true, revision, conflicts: Vec::new() }));
            }
            Seen::Refused => {
                let conflicts = self.conflicts(&command.txn);
                return unchanged(if conflicts.is_empty() {
                    Reply::Forgotten { index }
                } else {
                    Reply::Txn(TxnReply { succeeded: false, revision: self.revision, conflicts })
                });
            }
            Seen::New => {}
        }
        let (reply, changes) = self.decide(&command.txn);
        let made = match &reply {
            Reply::Txn(reply) if reply.succeeded => Some(reply.revision),
            Reply::Txn(_)
            | Reply::Nothing
            | Reply::Invalid(_)
            | Reply::Full { .. }
            | Reply::Forgotten { .. } => None,
        };
        self.sessions.remember(&command.stamp, made, index);
        Applied { reply, changes }
    }

    fn decide(&mut self, txn: &Txn) -> (Reply, Vec<Change>) {
        if let Err(problem) = check_txn(txn) {
            return (Reply::Invalid(problem), Vec::new());
        }
        let conflicts = self.conflicts(txn);
        if !conflicts.is_empty() {
            return (
                Reply::Txn(TxnReply { succeeded: false, revision: self.revision, conflicts }),
                Vec::new(),
            );
        }
        let needed = self.bytes_after(txn);
        if needed > self.bytes && needed > TABLE_BYTES_MAX {
            return (Reply::Full { needed }, Vec::new());
        }
        let changes = self.put(txn);
        (Reply::Txn(TxnReply { succeeded: true, revision: self.revision, conflicts: Vec::new() }), changes)
    }

    fn conflicts(&self, txn: &Txn) -> Vec<Change> {
        let version_of = |key: &str| self.rows.get(key).map_or(0, |row| row.version);
        txn.compare
            .iter()
            .filter(|(key, version)| version_of(key) != *version)
            .map(|(key, _)| (key.clone(), self.rows.get(key).cloned()))
            .collect()
    }

    fn bytes_after(&self, txn: &Txn) -> u64 {
        let mut bytes = self.bytes;
        for (key, value) in &txn.puts {
            if let Some(row) = self.rows.get(key) {
                bytes -= row_bytes(key, row.value.len());
            }
            if let Some(value) = value {
                bytes += row_bytes(key, value.len());
            }
        }
        bytes
    }

    fn put(&mut self, txn: &Txn) -> Vec<Change> {
        let bytes = self.bytes_after(txn);
        let revision = self.revision + 1;
        let mut changes = Vec::new();
        for (key, value) in &txn.puts {
            match value {
                Some(value) => {
                    let row = Versioned { value: value.clone(), version: revision };
                    self.rows.insert(key.clone(), row.clone());
                    changes.push((key.clone(), Some(row)));
                }
                None if self.rows.remove(key).is_some() => changes.push((key.clone(), None)),
                None => {}
            }
        }
        if !changes.is_empty() {
            self.revision = revision;
        }
        self.bytes = bytes;
        changes
    }
}

/// What a row counts against the limit of the table.
fn row_bytes(key: &str, value_length: usize) -> u64 {
    (key.len() + value_length) as u64
}

fn unchanged(reply: Reply) -> Applied {
    Applied { reply, changes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::session::SessionId;
    use super::*;

    struct Issuer {
        table: Table,
        number: u64,
    }

    impl Issuer {
        fn new() -> Self {
            Self { table: Table::default(), number: 0 }
        }

        fn command(&mut self, txn: Txn) -> Command {
            self.number += 1;
            let session = SessionId { node: 1, boot: 1 };
            let stamp = Stamp { session, number: self.number, oldest_pending: 0, issued_at: 0 };
            Command { stamp, txn }
        }

        fn txn(&mut self, txn: Txn) -> TxnReply {
            let command = self.command(txn);
            let reply = self.table.apply(self.number, &command).reply;
            let Reply::Txn(reply) = reply else { panic!("{reply:?}") };
            reply
        }
    }

    #[test]
    fn a_comparison_that_fails_changes_nothing_and_says_what_is_there() {
        let mut issuer = Issuer::new();
        assert_eq!(issuer.txn(Txn::compare_and_set("a", 0, "1")).revision, 1);
        let refused = issuer.txn(Txn::compare_and_set("a", 0, "2"));
        assert!(!refused.succeeded);
        assert_eq!(
            refused.conflicts,
            vec![("a".into(), Some(Versioned { value: Bytes::from("1"), version: 1 }))]
        );
        assert_eq!(issuer.table.revision(), 1);
        assert!(issuer.txn(Txn::compare_and_set("a", 1, "2")).succeeded);
    }

    #[test]
    fn all_changes_of_a_transaction_share_a_revision_and_a_delete_of_nothing_makes_none() {
        let mut issuer = Issuer::new();
        let both = Txn {
            compare: Vec::new(),
            puts: vec![("a".into(), Some("1".into())), ("b".into(), Some("2".into()))],
        };
        assert_eq!(issuer.txn(both).revision, 1);
        assert_eq!(issuer.txn(Txn::delete("nothing")).revision, 1);
        assert_eq!(issuer.txn(Txn::delete("a")).revision, 2);
        assert_eq!(issuer.table.rows_under("").len(), 1);
    }

    #[test]
    fn a_copy_of_a_command_that_was_refused_is_never_carried_out() {
        let mut issuer = Issuer::new();
        issuer.txn(Txn::put("a", "1"));
        let command = issuer.command(Txn::compare_and_set("a", 0, "2"));
        let index = issuer.number;
        let refused = issuer.table.apply(index, &command).reply;
        assert_eq!(issuer.table.apply(index + 1, &command).reply, refused);
        // Whoever was told that it was refused must not find it done later.
        issuer.txn(Txn::delete("a"));
        assert_eq!(issuer.table.apply(index + 2, &command).reply, Reply::Forgotten { index: index + 2 });
        assert!(issuer.table.rows_under("").is_empty());
    }

    #[test]
    fn a_repeated_command_is_answered_and_not_applied_again() {
        let mut issuer = Issuer::new();
        let command = issuer.command(Txn::put("a", "1"));
        let first = issuer.table.apply(1, &command).reply;
        let other = issuer.command(Txn::put("a", "2"));
        issuer.table.apply(2, &other);
        let again = issuer.table.apply(3, &command);
        assert_eq!(again.reply, first);
        assert!(again.changes.is_empty());
        assert_eq!(issuer.table.row("a").unwrap().value, "2");
    }

    #[test]
    fn a_prefix_ends_where_the_keys_stop_beginning_with_it() {
        let mut issuer = Issuer::new();
        for key in ["a", "a/1", "a/2", "a0", "b"] {
            issuer.txn(Txn::put(key, "x"));
        }
        let keys: Vec<_> = issuer.table.rows_under("a/").into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["a/1", "a/2"]);
    }

    #[test]
    fn a_full_table_refuses_growth_and_accepts_deletes() {
        let mut issuer = Issuer::new();
        let value = Bytes::from(vec![0; crate::catalog::VALUE_BYTES_MAX - 4]);
        let mut index = 0;
        loop {
            index += 1;
            let command = issuer.command(Txn::put(format!("{index:04}"), value.clone()));
            let reply = issuer.table.apply(index, &command).reply;
            if let Reply::Full { needed } = reply {
                assert!(needed > TABLE_BYTES_MAX);
                break;
            }
            assert!(matches!(reply, Reply::Txn(TxnReply { succeeded: true, .. })), "{reply:?}");
        }
        assert_eq!(index, 65);
        assert!(issuer.txn(Txn::delete("0001")).succeeded);
        assert!(issuer.txn(Txn::put("0065", value)).succeeded);
    }
}
