//! A PostgreSQL server in a folder of its own, for whatever is tried against a real one.
//!
//! It listens on a socket in that folder alone, runs as a user without rights where its owner is root (the server refuses
//! anything else), and is gone when it is dropped. It decides only how the server is started. Must name nothing of the crate it
//! stands in: the tests of `steadfast` share this file.

#![allow(unreachable_pub, reason = "what is public in one of them is not in another")]

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

/// How long a server may take to its start.
const PATIENCE: Duration = Duration::from_secs(120);

/// The user without rights, as every system has one.
const NOBODY: u32 = 65_534;
/// Where Debian has servers, by their version.
const INSTALLED: &str = "/usr/lib/postgresql";

/// A server that runs.
#[derive(Debug)]
pub struct Postgresql {
    server: Option<Child>,
    programs: PathBuf,
    folder: PathBuf,
}

impl Postgresql {
    /// Makes a database in this folder, which nothing else may be in, and starts its server.
    ///
    /// # Errors
    /// There is no server on this machine, or it does not start.
    pub fn start(folder: &Path) -> io::Result<Postgresql> {
        let programs = programs().ok_or_else(|| {
            io::Error::other("there is no PostgreSQL server here; `cargo xtask setup` installs one")
        })?;
        if geteuid().is_root() {
            chown(folder, Some(NOBODY), Some(NOBODY))?;
        }
        let mut server = Postgresql { server: None, programs, folder: folder.to_owned() };
        let mut make = server.program("initdb");
        make.args(["--auth", "trust", "--username", "steadfast", "--locale", "C", "--no-sync", "--pgdata"]);
        make.arg(server.data());
        let made = make.stdin(Stdio::null()).output()?;
        if !made.status.success() {
            return Err(io::Error::other(format!("initdb: {}", String::from_utf8_lossy(&made.stderr))));
        }
        server.go_on()?;
        Ok(server)
    }

    /// Starts it again after [`Postgresql::kill`].
    ///
    /// # Errors
    /// It does not start.
    pub fn go_on(&mut self) -> io::Result<()> {
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(&self.folder);
        command.args(["-c", "listen_addresses=", "-c", "fsync=off"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.server = Some(command.spawn()?);
        let (state, begun) = (self.state(), Instant::now());
        while !fs::read_to_string(&state).is_ok_and(|said| said.contains("ready")) {
            if begun.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("postgres is not ready after {PATIENCE:?}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// What an agent's configuration, or a client, calls it.
    pub fn address(&self) -> String {
        format!("host={} user=steadfast dbname=postgres", self.folder.display())
    }

    /// Ends the server at once, with all that it was doing: at its next start it recovers from its log.
    pub fn kill(&mut self) {
        self.end(Signal::QUIT);
    }

    fn end(&mut self, signal: Signal) {
        let Some(mut server) = self.server.take() else { return };
        if let Some(id) = Pid::from_raw(server.id().cast_signed()) {
            // It may have ended by itself.
            let _ = kill_process(id, signal);
        }
        let _ = server.wait();
        // What it says of itself would pass for the word of the next one.
        let _ = fs::remove_file(self.state());
    }

    /// Where the server says how far it is.
    fn state(&self) -> PathBuf {
        self.data().join("postmaster.pid")
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.current_dir(&self.folder).env_clear();
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}

impl Drop for Postgresql {
    fn drop(&mut self) {
        self.end(Signal::INT);
    }
}

/// The folder of the newest server's programs.
fn programs() -> Option<PathBuf> {
    let versions =
        fs::read_dir(INSTALLED).into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let found = versions.filter(|folder| folder.join("initdb").is_file());
    found.max_by_key(|folder| {
        let version = folder.parent().and_then(Path::file_name).and_then(|name| name.to_str()?.parse().ok());
        version.unwrap_or(0_u32)
    })
}
