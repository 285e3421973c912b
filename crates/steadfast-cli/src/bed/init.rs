//! Process 1 of a bed's host: gives the host its own name, `/proc` and memory file systems, then reaps orphans until the
//! bed goes away.
//!
//! It lives exactly as long as its standard input is open: the bed holds the other end, so a host cannot outlive its bed,
//! however the bed ends. It never starts anything itself. When it dies the kernel kills every process of the host at once.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{WaitOptions, wait};

/// The name of the hidden sub-command that ends up in [`main`].
pub const SUBCOMMAND: &str = "bed-init";

/// The arguments as the command line hands them over.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bed, host name, folders.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// [`main`] for the command line.
pub fn run(args: &Args) -> ExitCode {
    main(&args.words)
}

/// Upper bound of the time that a dead orphan stays a zombie.
const REAP_INTERVAL: Duration = Duration::from_millis(20);

/// Runs the init with the arguments after the sub-command: the bed's folder (by which leftovers are recognized), the host's
/// name, then the folders that become private memory.
pub fn main(args: &[String]) -> ExitCode {
    let [_, name, folders @ ..] = args else {
        eprintln!(
            "steadfast {SUBCOMMAND}: needs a bed and a host name; it is started by the test bed, not by hand"
        );
        return ExitCode::from(2);
    };
    let folders: Vec<PathBuf> = folders.iter().map(PathBuf::from).collect();
    if let Err(error) = prepare(name, &folders) {
        eprintln!("steadfast {SUBCOMMAND}: host {name} cannot be prepared: {error}");
        return ExitCode::FAILURE;
    }
    match announce().and_then(|()| reap_until_input_closes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steadfast {SUBCOMMAND}: host {name} stops: {error}");
            ExitCode::FAILURE
        }
    }
}

fn prepare(name: &str, folders: &[PathBuf]) -> io::Result<()> {
    if std::process::id() != 1 {
        // Outside a process name space the mounts below would land on the machine itself.
        return Err(io::Error::other("it must be process 1 of a name space that the test bed made"));
    }
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    rustix::system::sethostname(name.as_bytes())?;
    mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)?;
    for folder in folders {
        mount_memory(folder)?;
    }
    // The bed's networks are IPv4; without IPv6 no router solicitation disturbs them.
    match std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn mount_memory(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    mount("tmpfs", folder, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755"))?;
    Ok(())
}

fn announce() -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(b"ready\n")?;
    out.flush()
}

fn reap_until_input_closes() -> io::Result<()> {
    let input = io::stdin();
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(REAP_INTERVAL.subsec_nanos()) };
    loop {
        let mut watched = [PollFd::new(&input, PollFlags::IN)];
        match poll(&mut watched, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => {}
            // Nobody ever writes to this pipe: readable means that its other end is gone.
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
    }
}
