//! A PostgreSQL server in a folder of its own, on a socket in that folder, as a user without rights where the tests have them all.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;
use tokio_postgres::{Client, Config, NoTls};

const NOBODY: u32 = 65_534;
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) struct Server {
    process: Option<Child>,
    programs: PathBuf,
    folder: TempDir,
}

impl Server {
    pub(super) fn start() -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        if geteuid().is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("root may give a folder away");
        }
        let programs = programs().expect("`cargo xtask setup` installs a PostgreSQL server");
        let mut server = Server { process: None, programs, folder };
        let mut make = server.program("initdb");
        make.args(["--auth", "trust", "--username", "steadfast", "--locale", "C", "--no-sync", "--pgdata"]);
        let made = make.arg(server.data()).output().expect("initdb can be run");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        server.go_on();
        server
    }

    pub(super) fn go_on(&mut self) {
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path());
        command.args(["-c", "listen_addresses=", "-c", "fsync=off"]);
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(quiet.spawn().expect("postgres can be run"));
        let (state, begun) = (self.data().join("postmaster.pid"), Instant::now());
        while !std::fs::read_to_string(&state).is_ok_and(|said| said.contains("ready")) {
            assert!(begun.elapsed() < PATIENCE, "the server does not become ready");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it without giving it time for anything.
    pub(super) fn kill(&mut self) {
        self.end(Signal::QUIT);
    }

    pub(super) fn config(&self) -> Config {
        let mut config = Config::new();
        config.host_path(self.folder.path()).user("steadfast").dbname("postgres");
        config
    }

    pub(super) async fn client(&self) -> Client {
        let (client, connection) = self.config().connect(NoTls).await.expect("the server takes clients");
        tokio::spawn(connection);
        client
    }

    fn end(&mut self, signal: Signal) {
        let Some(mut process) = self.process.take() else { return };
        if let Some(id) = Pid::from_raw(process.id().cast_signed()) {
            // It may have ended by itself.
            let _ = kill_process(id, signal);
        }
        let _ = process.wait();
        let _ = std::fs::remove_file(self.data().join("postmaster.pid"));
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.current_dir(self.folder.path()).env_clear();
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Signal::INT);
    }
}

/// The folder of the newest server's programs, as Debian lays them out.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let folders = versions.map(|entry| entry.path().join("bin"));
    folders.filter(|folder| folder.join("initdb").is_file()).max_by_key(|folder| {
        let name = folder.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        name.and_then(|name| name.parse::<u32>().ok())
    })
}
