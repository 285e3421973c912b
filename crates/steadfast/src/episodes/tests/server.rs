//! A PostgreSQL server of a test, and clients of it.

use tempfile::TempDir;
use tokio_postgres::{Client, Config, NoTls};

use super::postgresql::Postgresql;

pub(super) struct Server {
    // Before its folder: it ends first.
    postgresql: Postgresql,
    _folder: TempDir,
}

impl Server {
    pub(super) fn start() -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        Server { postgresql: Postgresql::start(folder.path()).expect("a server"), _folder: folder }
    }

    pub(super) fn go_on(&mut self) {
        self.postgresql.go_on().expect("it starts again");
    }

    pub(super) fn kill(&mut self) {
        self.postgresql.kill();
    }

    pub(super) fn config(&self) -> Config {
        self.postgresql.address().parse().expect("an address")
    }

    pub(super) async fn client(&self) -> Client {
        let (client, connection) = self.config().connect(NoTls).await.expect("the server takes clients");
        tokio::spawn(connection);
        client
    }
}
