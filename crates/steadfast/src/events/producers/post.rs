//! What every producer has: its topic, the way out for what it sees, and the means to wait for the kernel.
//!
//! Descriptors are opened through it, so that they are counted. It decides nothing. Read next: `clock`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use steadfast_proto::events::{EventType, Fields, Occurrence, TEXT_BYTES_MAX, Topic, Value};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::queue::{Queue, Report};
use super::{ActivateError, CgroupOf, Held, Tally};
use crate::events::now_unix_us;
use crate::net::os;

/// Where a producer works from.
pub(super) struct Post {
    topic: Arc<Topic>,
    queue: Arc<Queue>,
    asked: Arc<Notify>,
    tally: Arc<Tally>,
    cgroup_of: Arc<CgroupOf>,
}

impl Post {
    pub(super) fn new(
        topic: Topic,
        queue: Arc<Queue>,
        asked: Arc<Notify>,
        tally: Arc<Tally>,
        cgroup_of: Arc<CgroupOf>,
    ) -> Post {
        Post { topic: Arc::new(topic), queue, asked, tally, cgroup_of }
    }

    pub(super) fn topic(&self) -> Arc<Topic> {
        Arc::clone(&self.topic)
    }

    pub(super) fn kind(&self) -> &EventType {
        &self.topic.kind
    }

    /// The text of a field that the topic fixes.
    pub(super) fn about(&self, field: &str) -> Option<&str> {
        self.topic.about.get(field).map(String::as_str)
    }

    /// The text of a field that the topic fixes, as an absolute path.
    pub(super) fn about_path(&self, field: &'static str) -> Result<Option<&Path>, ActivateError> {
        let Some(given) = self.about(field) else { return Ok(None) };
        if !given.starts_with('/') || given.contains('\0') {
            let wanted = "write an absolute path, such as /var/log";
            return Err(ActivateError::Malformed { field, given: given.to_owned(), wanted });
        }
        Ok(Some(Path::new(given)))
    }

    /// Where the programs of the container are that the topic fixes.
    pub(super) fn cgroup_of(&self, container: &str) -> Result<PathBuf, ActivateError> {
        (self.cgroup_of)(container).ok_or_else(|| ActivateError::NotThere {
            field: "container",
            given: container.to_owned(),
            wanted: "name a container that runs here, or try again when it does",
        })
    }

    /// Says that something happened now.
    pub(super) fn tell<const N: usize>(&self, fields: [(&str, Value); N]) {
        self.tell_all(self::fields(fields));
    }

    pub(super) fn tell_all(&self, fields: Fields) {
        let occurrence = Occurrence { at_unix_us: now_unix_us(), fields };
        self.queue.push(Report::Seen { topic: self.topic(), occurrence });
    }

    /// Says that the kernel had no room for what happened.
    pub(super) fn lost(&self) {
        self.queue.push(Report::Lost { topic: self.topic(), count: None });
    }

    /// Waits until somebody asks for the present level.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Lets this producer wait for a descriptor.
    pub(super) fn watch(&self, descriptor: OwnedFd, interest: Interest) -> io::Result<Watched> {
        let inner = os::watchable(descriptor, interest)?;
        Ok(Watched { inner, interest, _held: Held::descriptor(&self.tally) })
    }

    /// As [`Post::watch`], when it is part of beginning to watch.
    pub(super) fn watch_first(
        &self,
        descriptor: OwnedFd,
        interest: Interest,
    ) -> Result<Watched, ActivateError> {
        let kind = self.kind().to_string();
        self.watch(descriptor, interest).map_err(ActivateError::refused(kind, "waited for"))
    }
}

/// A counted descriptor that the kernel says something about.
#[derive(Debug)]
pub(super) struct Watched {
    inner: AsyncFd<OwnedFd>,
    interest: Interest,
    _held: Held,
}

impl Watched {
    /// Waits until the kernel says something new. Read until nothing is left before waiting again.
    pub(super) async fn changed(&self) -> io::Result<()> {
        self.inner.ready(self.interest).await?.clear_ready();
        Ok(())
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.get_ref().as_fd()
    }
}

/// Waits for a descriptor that there may be; without one, for ever.
pub(super) async fn changed(watched: Option<&Watched>) -> io::Result<()> {
    match watched {
        Some(watched) => watched.changed().await,
        None => std::future::pending().await,
    }
}

/// A field's text, cut where it is too long.
pub(super) fn text(text: impl AsRef<str>) -> Value {
    let text = text.as_ref();
    Value::Text(text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned())
}

/// A field's count.
pub(super) fn count(count: impl TryInto<i64>) -> Value {
    Value::Integer(count.try_into().unwrap_or(i64::MAX))
}

/// Fields to which more are added.
pub(super) fn fields<const N: usize>(fields: [(&str, Value); N]) -> Fields {
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>()
}
