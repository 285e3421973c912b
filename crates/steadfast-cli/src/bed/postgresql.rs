//! A PostgreSQL server in a folder of its own, for whatever is tried against a real one.
//!
//! It listens on a socket in that folder alone, runs as a user without rights where its owner is root (the server refuses
//! anything else), and is gone when it is dropped. It decides only how the server is started.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::BedError;
use super::cluster::{PATIENCE, wait_for};

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
    pub fn start(folder: &Path) -> Result<Postgresql, BedError> {
        let programs = programs().ok_or(BedError::Impossible {
            what: "a PostgreSQL server".to_owned(),
            right: "`cargo xtask setup` installs one",
        })?;
        if geteuid().is_root() {
            let owned = chown(folder, Some(NOBODY), Some(NOBODY));
            owned.map_err(|source| BedError::File { path: folder.to_owned(), source })?;
        }
        let mut server = Postgresql { server: None, programs, folder: folder.to_owned() };
        let mut make = server.program("initdb");
        make.args(["--auth", "trust", "--username", "steadfast", "--locale", "C", "--no-sync", "--pgdata"]);
        make.arg(server.data());
        let made = make.stdin(Stdio::null()).output();
        let failed = |source| BedError::Program { program: "initdb".to_owned(), source };
        let made = made.map_err(failed)?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr).into_owned();
            return Err(failed(std::io::Error::other(said)));
        }
        server.go_on()?;
        Ok(server)
    }

    /// Starts it again after [`Postgresql::kill`].
    ///
    /// # Errors
    /// It does not start.
    pub fn go_on(&mut self) -> Result<(), BedError> {
        let failed = |source| BedError::Program { program: "postgres".to_owned(), source };
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(&self.folder);
        command.args(["-c", "listen_addresses=", "-c", "fsync=off"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.server = Some(command.spawn().map_err(failed)?);
        let state = self.data().join("postmaster.pid");
        wait_for("a PostgreSQL server that is ready", PATIENCE, || {
            fs::read_to_string(&state).ok()?.contains("ready").then_some(())
        })
    }

    /// What an agent's configuration, or a client, calls it.
    pub fn address(&self) -> String {
        format!("host={} user=steadfast dbname=postgres", self.folder.display())
    }

    /// Ends the server as a power failure would, with all that it was doing.
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
