//! `disk.usage`: how full file systems are.
//!
//! The kernel announces no filling, so it is asked: each second, and ten times a second while a file system fills fast or is
//! 80 % full (one question costs about a microsecond). A report is made when the whole percent changes. Without a path it is about
//! every file system that keeps data of this machine, also those mounted later. It never writes.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, StatVfs};
use tokio::io::Interest;
use tokio::time::Instant;

use super::mounts::{self, Mount};
use super::post::{Post, Watched, count, text};
use super::{ActivateError, Work};

const SLOW: Duration = Duration::from_secs(1);
const FAST: Duration = Duration::from_millis(100);
/// From here on a file system is looked at often.
const NEARLY_FULL_PERCENT: u64 = 80;
/// One that grows by this part of its size in a second would be full in less than two minutes.
const FAST_GROWTH_PER_S: f64 = 0.01;
/// File systems that are looked after at most without a path.
const FILE_SYSTEMS_MAX: usize = 256;

struct FileSystem {
    path: PathBuf,
    device: String,
    is_remote: bool,
    told_percent: Option<u64>,
    measured: Option<(Instant, u64)>,
    next: Instant,
}

struct Usage {
    size_bytes: u64,
    used_bytes: u64,
    percent: u64,
}

pub(super) fn open(post: Post) -> Result<Work, ActivateError> {
    let table = rustix::fs::open(mounts::TABLE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(ActivateError::refused(mounts::TABLE, "opened"))?;
    let path = post.about_path("path")?.map(Path::to_owned);
    if let Some(path) = &path
        && let Err(error) = path.metadata()
    {
        return Err(missing(path, error));
    }
    let table = post.watch_first(table, Interest::PRIORITY)?;
    let mut list = FileSystems { path, list: Vec::new() };
    list.renew().map_err(ActivateError::refused(mounts::TABLE, "read"))?;
    Ok(Box::pin(watch(post, table, list)))
}

fn missing(path: &Path, error: io::Error) -> ActivateError {
    let given = path.to_string_lossy().into_owned();
    if error.kind() != io::ErrorKind::NotFound {
        return ActivateError::refused(given, "looked at")(error);
    }
    ActivateError::NotThere {
        field: "path",
        given,
        wanted: "name a file or folder of the file system to watch",
    }
}

async fn watch(post: Post, table: Watched, mut all: FileSystems) -> String {
    loop {
        let next = all.list.iter().map(|one| one.next).min();
        let due = tokio::time::sleep_until(next.unwrap_or_else(|| Instant::now() + SLOW));
        tokio::select! {
            () = post.asked() => all.list.iter_mut().for_each(|one| {
                one.told_percent = None;
                one.next = Instant::now();
            }),
            changed = table.changed() => {
                if let Err(error) = changed.and_then(|()| all.renew()) {
                    return format!("the mount table can't be read: {error}");
                }
            }
            () = due => {}
        }
        let now = Instant::now();
        for one in all.list.iter_mut().filter(|one| one.next <= now) {
            match usage(one).await {
                Ok(usage) => one.note(&post, &usage, Instant::now()),
                Err(error) if all.path.is_some() => {
                    return format!("{} can't be looked at any more: {error}", one.path.display());
                }
                // It is being unmounted, or is not ours to look at.
                Err(_) => one.next = now + SLOW,
            }
        }
    }
}

struct FileSystems {
    /// The only one wanted.
    path: Option<PathBuf>,
    list: Vec<FileSystem>,
}

impl FileSystems {
    /// Takes the present mounts; what is known of those that stay is kept.
    fn renew(&mut self) -> io::Result<()> {
        let mounts = mounts::read()?;
        let wanted: Vec<(PathBuf, &Mount)> = match &self.path {
            Some(path) => {
                let real = path.canonicalize().unwrap_or_else(|_| path.clone());
                mounts::holder(&mounts, &real).map(|mount| (path.clone(), mount)).into_iter().collect()
            }
            None => {
                let mut seen = BTreeSet::new();
                let real = mounts.iter().filter(|mount| mounts::is_real(mount) && !mounts::is_remote(mount));
                // Of one file system that is mounted at many places the first one counts.
                let real = real.filter(|mount| seen.insert(mount.number.clone()));
                real.take(FILE_SYSTEMS_MAX).map(|mount| (mount.at.clone(), mount)).collect()
            }
        };
        let mut earlier = std::mem::take(&mut self.list);
        for (path, mount) in wanted {
            let same = earlier.iter().position(|one| one.path == path && one.device == mount.source);
            self.list.push(match same {
                Some(index) => earlier.swap_remove(index),
                None => FileSystem {
                    path,
                    device: mount.source.clone(),
                    is_remote: mounts::is_remote(mount),
                    told_percent: None,
                    measured: None,
                    next: Instant::now(),
                },
            });
        }
        Ok(())
    }
}

impl FileSystem {
    fn note(&mut self, post: &Post, usage: &Usage, now: Instant) {
        let &Usage { size_bytes, used_bytes, percent } = usage;
        let earlier = self.measured.replace((now, used_bytes));
        self.next = now + pace(usage, earlier.map(|(at, used_bytes)| (now - at, used_bytes)));
        if self.told_percent == Some(percent) {
            return;
        }
        self.told_percent = Some(percent);
        post.tell([
            ("path", text(self.path.to_string_lossy())),
            ("device", text(&self.device)),
            ("percent", count(percent)),
            ("used_bytes", count(used_bytes)),
            ("size_bytes", count(size_bytes)),
        ]);
    }
}

/// When to ask again, given how long ago how much was in use.
fn pace(usage: &Usage, earlier: Option<(Duration, u64)>) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "a share needs no exact bytes")]
    let share = |bytes: u64| bytes as f64 / usage.size_bytes.max(1) as f64;
    let is_filling = earlier.is_some_and(|(ago, used_bytes)| {
        let growth = share(usage.used_bytes.saturating_sub(used_bytes));
        growth > FAST_GROWTH_PER_S * ago.as_secs_f64()
    });
    if usage.percent >= NEARLY_FULL_PERCENT || is_filling { FAST } else { SLOW }
}

async fn usage(one: &FileSystem) -> io::Result<Usage> {
    if !one.is_remote {
        return Ok(of(&rustix::fs::statvfs(&one.path)?));
    }
    // What another machine answers may take for ever; no other producer waits for it.
    let path = one.path.clone();
    let asked = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&path)).await;
    Ok(of(&asked.map_err(io::Error::other)??))
}

/// As `df` counts: what only root may use is neither used nor free.
fn of(figures: &StatVfs) -> Usage {
    let used = figures.f_blocks.saturating_sub(figures.f_bfree);
    let usable = used.saturating_add(figures.f_bavail);
    let percent = used.saturating_mul(100).div_ceil(usable.max(1));
    let size_bytes = figures.f_blocks.saturating_mul(figures.f_frsize);
    Usage { size_bytes, used_bytes: used.saturating_mul(figures.f_frsize), percent }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(used_bytes: u64) -> Usage {
        Usage { size_bytes: 10_000, used_bytes, percent: used_bytes / 100 }
    }

    #[test]
    fn a_file_system_that_fills_or_is_nearly_full_is_looked_at_often() {
        assert_eq!(pace(&half(5_000), None), SLOW);
        assert_eq!(pace(&half(8_000), None), FAST);
        assert_eq!(pace(&half(5_000), Some((SLOW, 4_950))), SLOW);
        assert_eq!(pace(&half(5_000), Some((SLOW, 4_800))), FAST);
        assert_eq!(pace(&half(5_000), Some((FAST, 4_995))), SLOW);
        assert_eq!(pace(&half(4_000), Some((FAST, 5_000))), SLOW, "it empties");
    }
}
