//! `pressure.memory`, `pressure.cpu`, `pressure.io`: how much work waits for something that is scarce, by the kernel's own account (PSI).
//!
//! While nothing waits, only a trigger of the kernel is armed, which fires when 5 % of two seconds were spent waiting. After that
//! the averages are read each second until they have been low for a while. Where the kernel grants no trigger they are always
//! read. A report is made when the level changes; the levels are named in [`Level`].

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;
use tokio::time::Instant;

use super::cgroup::Cgroup;
use super::post::{self, Post, Watched, fields, text};
use super::{ActivateError, Work};
use steadfast_proto::events::Value;

/// 100 of 2,000 ms; the kernel grants only multiples of 2 s to whoever lacks CAP_SYS_RESOURCE.
const TRIGGER: &[u8] = b"some 100000 2000000\0";
const LOOK: Duration = Duration::from_secs(1);
/// How long the averages are read after the trigger has fired: they follow within some seconds.
const ATTENTIVE: Duration = Duration::from_secs(10);

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// Less than 5 % of the time something waits.
    None,
    /// At least 5 %.
    Some,
    /// At least 20 %.
    High,
    /// At least 5 % of the time nothing but waiting is done.
    Full,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Level::None => "none",
            Level::Some => "some",
            Level::High => "high",
            Level::Full => "full",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Averages {
    some10: f64,
    full10: f64,
}

pub(super) fn open(post: Post) -> Result<Work, ActivateError> {
    let resource = post.kind().as_str().trim_start_matches("pressure.").to_owned();
    let cgroup = post.about_path("cgroup")?.map(Cgroup::named);
    let file = match &cgroup {
        None => Path::new("/proc/pressure").join(&resource),
        Some(cgroup) => {
            let folder = cgroup.unified().ok_or_else(|| ActivateError::NotThere {
                field: "cgroup",
                given: cgroup.path.to_string_lossy().into_owned(),
                wanted: "name a cgroup below the top of the version 2 tree, such as /steadfast/web",
            })?;
            folder.join(format!("{resource}.pressure"))
        }
    };
    // A kernel can have the file and still keep no figures.
    read(&file).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP) => ActivateError::Unsupported {
            kind: post.kind().clone(),
            why: "its kernel keeps no account of pressure; boot it with psi=1",
        },
        _ => ActivateError::refused(file.to_string_lossy(), "read")(error),
    })?;
    let trigger = match arm(&file) {
        Ok(descriptor) => Some(post.watch_first(descriptor, Interest::PRIORITY | Interest::ERROR)?),
        Err(error) => {
            tracing::debug!(file = %file.display(), %error, "the kernel grants no trigger: pressure is polled");
            None
        }
    };
    Ok(Box::pin(watch(post, file, cgroup, trigger)))
}

fn arm(file: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let descriptor = rustix::fs::open(file, flags, Mode::empty())?;
    rustix::io::write(&descriptor, TRIGGER)?;
    Ok(descriptor)
}

async fn watch(post: Post, file: PathBuf, cgroup: Option<Cgroup>, trigger: Option<Watched>) -> String {
    let mut told = None;
    let mut attentive_until = Instant::now() + ATTENTIVE;
    loop {
        let averages = match read(&file) {
            Ok(averages) => averages,
            Err(error) => return format!("{} can't be read any more: {error}", file.display()),
        };
        let level = level(averages, told.unwrap_or(Level::None));
        if told != Some(level) {
            told = Some(level);
            tell(&post, averages, level, cgroup.as_ref());
        }
        let is_quiet = level == Level::None && Instant::now() >= attentive_until && trigger.is_some();
        let look = async {
            if is_quiet {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(LOOK).await;
        };
        tokio::select! {
            () = post.asked() => told = None,
            fired = post::changed(trigger.as_ref()) => {
                if let Err(error) = fired {
                    return format!("the trigger of {} can't be waited for: {error}", file.display());
                }
                attentive_until = Instant::now() + ATTENTIVE;
            }
            () = look => {}
        }
    }
}

fn tell(post: &Post, averages: Averages, level: Level, cgroup: Option<&Cgroup>) {
    let mut fields = fields([
        ("some10", Value::Number(averages.some10)),
        ("full10", Value::Number(averages.full10)),
        ("level", text(level.as_str())),
    ]);
    if let Some(cgroup) = cgroup {
        fields.insert("cgroup".to_owned(), text(cgroup.path.to_string_lossy()));
    }
    post.tell_all(fields);
}

/// The level of these averages. A level that was told is left only when they are clearly below it, so that it does not flutter.
fn level(averages: Averages, told: Level) -> Level {
    let reached =
        |level: Level, average: f64, least: f64| average >= if told >= level { least * 0.8 } else { least };
    if reached(Level::Full, averages.full10, 5.0) {
        Level::Full
    } else if reached(Level::High, averages.some10, 20.0) {
        Level::High
    } else if reached(Level::Some, averages.some10, 5.0) {
        Level::Some
    } else {
        Level::None
    }
}

fn read(file: &Path) -> io::Result<Averages> {
    Ok(parse(&std::fs::read_to_string(file)?))
}

/// `some avg10=6.20 avg60=4.17 avg300=6.93 total=20055456012`, and the same for `full`, which CPUs lack in old kernels.
fn parse(file: &str) -> Averages {
    let average = |word: &str| {
        let line = file.lines().find_map(|line| line.strip_prefix(word))?;
        line.split(' ').find_map(|field| field.strip_prefix("avg10=")?.parse().ok())
    };
    Averages { some10: average("some ").unwrap_or(0.0), full10: average("full ").unwrap_or(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_reached_at_their_bounds_and_left_below_them() {
        let of = |some10, full10, told| level(Averages { some10, full10 }, told);
        assert_eq!(of(4.9, 0.0, Level::None), Level::None);
        assert_eq!(of(5.0, 0.0, Level::None), Level::Some);
        assert_eq!(of(4.1, 0.0, Level::Some), Level::Some);
        assert_eq!(of(3.9, 0.0, Level::Some), Level::None);
        assert_eq!(of(20.0, 4.9, Level::Some), Level::High);
        assert_eq!(of(30.0, 5.0, Level::High), Level::Full);
        assert_eq!(of(30.0, 3.9, Level::Full), Level::High);
        let file = "some avg10=6.20 avg60=4.17 avg300=6.93 total=2\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(parse(file), Averages { some10: 6.2, full10: 0.5 });
        assert_eq!(parse("some avg10=x\n"), Averages::default());
    }
}
