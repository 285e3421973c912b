//! `file.change`: a file, or what is in a folder, was made, written, removed, renamed, or got other attributes.
//!
//! Two watches of the kernel's (inotify): one on what the path leads to, which tells of writing, and one on the folder that it stands
//! in, which tells when another file or folder takes the name; then the first watch moves to it. What lies deeper in a
//! folder is not watched. When the kernel had no room for all, that is told. It never opens what it watches.

use std::ffi::{CStr, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;

use super::post::{Post, Watched, fields, text};
use super::{ActivateError, Work};

/// Room for some hundred events with names.
const READ_BYTES: usize = 32 << 10;

/// What happened to one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Created,
    Modified,
    Deleted,
    Moved,
    Attributes,
}

impl Change {
    fn as_str(self) -> &'static str {
        match self {
            Change::Created => "created",
            Change::Modified => "modified",
            Change::Deleted => "deleted",
            Change::Moved => "moved",
            Change::Attributes => "attributes",
        }
    }
}

/// What is told: a name in the folder, or the name of what is watched itself; and what it was called before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    name: String,
    change: Change,
    from: Option<String>,
}

/// One event of the kernel's, out of its buffer.
#[derive(Clone, Debug)]
struct Raw {
    watch: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Vec<u8>,
}

struct Watch {
    path: PathBuf,
    /// Of the path in its folder; empty for the top of all.
    name: Vec<u8>,
    inotify: Watched,
    /// On what the path leads to; `None` while it leads nowhere.
    target: Option<i32>,
    /// On the folder that the path stands in.
    parent: Option<i32>,
    is_folder: bool,
}

pub(super) fn open(post: Post) -> Result<Work, ActivateError> {
    let path = post.about_path("path")?.ok_or_else(|| ActivateError::Open {
        kind: post.kind().clone(),
        wanted: "fix a path, such as path=/etc/hosts",
    })?;
    // Without a slash at the end or dots in between.
    let path: PathBuf = path.components().collect();
    let given = || path.to_string_lossy().into_owned();
    let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
        .map_err(ActivateError::refused(given(), "watched"))?;
    let name = path.file_name().map(|name| name.as_bytes().to_vec());
    if name.is_none() && path != Path::new("/") {
        let wanted = "write a path that ends in a name";
        return Err(ActivateError::Malformed { field: "path", given: given(), wanted });
    }
    let inotify = post.watch_first(inotify, Interest::READABLE)?;
    let mut watch = Watch {
        path: path.clone(),
        name: name.unwrap_or_default(),
        inotify,
        target: None,
        parent: None,
        is_folder: false,
    };
    watch.begin().map_err(|error| match error {
        Errno::NOENT | Errno::NOTDIR => ActivateError::NotThere {
            field: "path",
            given: given(),
            wanted: "name a file or folder that is there",
        },
        other => ActivateError::refused(given(), "watched")(other),
    })?;
    Ok(Box::pin(run(post, watch)))
}

async fn run(post: Post, mut watch: Watch) -> String {
    let mut buffer = vec![MaybeUninit::uninit(); READ_BYTES];
    loop {
        if let Err(error) = watch.inotify.changed().await {
            return format!("{} can't be waited for: {error}", watch.path.display());
        }
        loop {
            // Who writes without end must not keep this thread from others.
            tokio::task::coop::consume_budget().await;
            let batch = match read(&watch.inotify, &mut buffer) {
                Ok(batch) if batch.is_empty() => break,
                Ok(batch) => batch,
                Err(error) => return format!("{} can't be watched any more: {error}", watch.path.display()),
            };
            if batch.iter().any(|raw| raw.flags.contains(ReadFlags::QUEUE_OVERFLOW)) {
                post.lost();
                watch.aim();
            }
            let (told, is_over) = watch.take(batch);
            told.iter().for_each(|told| tell(&post, told));
            if is_over {
                return format!("the folder of {} is gone", watch.path.display());
            }
        }
    }
}

fn tell(post: &Post, told: &Told) {
    let mut fields = fields([
        ("path", text(post.about("path").unwrap_or_default())),
        ("name", text(&told.name)),
        ("change", text(told.change.as_str())),
    ]);
    if let Some(from) = &told.from {
        fields.insert("from".to_owned(), text(from));
    }
    post.tell_all(fields);
}

/// Reads what is there, at most one buffer full.
fn read(inotify: &Watched, buffer: &mut [MaybeUninit<u8>]) -> io::Result<Vec<Raw>> {
    let mut reader = Reader::new(inotify, buffer);
    let mut batch = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => batch.push(Raw {
                watch: event.wd(),
                flags: event.events(),
                cookie: event.cookie(),
                name: event.file_name().map(CStr::to_bytes).unwrap_or_default().to_vec(),
            }),
            Err(Errno::AGAIN) => return Ok(batch),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if reader.is_buffer_empty() {
            return Ok(batch);
        }
    }
}

impl Watch {
    /// Places both watches.
    fn begin(&mut self) -> Result<(), Errno> {
        if let Some(parent) = self.path.parent() {
            // Who renames or removes that folder takes the name away.
            let flags = WatchFlags::CREATE
                | WatchFlags::DELETE
                | WatchFlags::MOVE
                | WatchFlags::ATTRIB
                | WatchFlags::DELETE_SELF
                | WatchFlags::MOVE_SELF
                | WatchFlags::ONLYDIR;
            self.parent = Some(inotify::add_watch(&self.inotify, parent, flags)?);
        }
        let (is_folder, target) = self.place()?;
        self.is_folder = is_folder;
        self.target = Some(target);
        Ok(())
    }

    /// Watches what the path leads to now.
    fn aim(&mut self) {
        let earlier = self.target.take();
        if let Ok((is_folder, target)) = self.place() {
            self.is_folder = is_folder;
            self.target = Some(target);
        }
        if let Some(earlier) = earlier.filter(|earlier| self.target != Some(*earlier)) {
            // The kernel has ended it already where the file is gone.
            let _ = inotify::remove_watch(&self.inotify, earlier);
        }
    }

    fn place(&self) -> Result<(bool, i32), Errno> {
        let is_folder = self.path.is_dir();
        let flags = if is_folder {
            WatchFlags::CREATE
                | WatchFlags::DELETE
                | WatchFlags::MOVE
                | WatchFlags::MODIFY
                | WatchFlags::ATTRIB
        } else if self.path.is_symlink() || self.parent.is_none() {
            // Behind a link the folder of the path does not tell of attributes.
            WatchFlags::MODIFY | WatchFlags::ATTRIB
        } else {
            WatchFlags::MODIFY
        };
        Ok((is_folder, inotify::add_watch(&self.inotify, &self.path, flags)?))
    }

    /// What a batch of the kernel's means, and whether nothing more will come.
    fn take(&mut self, batch: Vec<Raw>) -> (Vec<Told>, bool) {
        let mut told: Vec<Told> = Vec::new();
        // Names that were left behind by a rename whose new name has not been seen.
        let mut left: Vec<(u32, usize)> = Vec::new();
        let mut is_over = false;
        for raw in batch {
            let is_target = self.target == Some(raw.watch);
            let is_parent = self.parent == Some(raw.watch);
            let is_own_name = is_parent && raw.name == self.name;
            if is_parent && raw.flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF) {
                is_over = true;
            }
            // In a folder every name counts, and an event without one is the folder's own; so does the parent's about our name.
            let is_ours = is_own_name || is_target && !raw.flags.contains(ReadFlags::IGNORED);
            let Some(change) = change(raw.flags).filter(|_| is_ours) else { continue };
            if is_target && raw.name.is_empty() && self.is_folder && self.parent.is_some() {
                // The parent tells the same under the folder's name.
                continue;
            }
            if is_own_name && raw.flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
                self.aim();
            }
            let name = if raw.name.is_empty() { &self.name } else { &raw.name };
            let name = OsStr::from_bytes(name).to_string_lossy().into_owned();
            if raw.flags.contains(ReadFlags::MOVED_FROM) {
                left.push((raw.cookie, told.len()));
            }
            let earlier = left.iter().position(|(cookie, _)| *cookie == raw.cookie && raw.cookie != 0);
            if raw.flags.contains(ReadFlags::MOVED_TO)
                && let Some((_, at)) = earlier.map(|index| left.swap_remove(index))
                && let Some(before) = told.get_mut(at)
            {
                // One rename within the folder is one event.
                let from = std::mem::replace(&mut before.name, name);
                before.from = Some(from);
                continue;
            }
            let next = Told { name, change, from: None };
            // Who writes in small parts is told of once per look.
            if change == Change::Modified
                && told.iter().rev().take_while(|one| one.change == change).any(|one| *one == next)
            {
                continue;
            }
            told.push(next);
        }
        (told, is_over)
    }
}

fn change(flags: ReadFlags) -> Option<Change> {
    let kinds = [
        (ReadFlags::CREATE, Change::Created),
        (ReadFlags::DELETE, Change::Deleted),
        (ReadFlags::MOVED_FROM, Change::Moved),
        (ReadFlags::MOVED_TO, Change::Moved),
        (ReadFlags::MODIFY, Change::Modified),
        (ReadFlags::ATTRIB, Change::Attributes),
    ];
    kinds.into_iter().find(|(flag, _)| flags.contains(*flag)).map(|(_, change)| change)
}
