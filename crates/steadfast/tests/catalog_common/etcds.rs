//! A real etcd of some members, each a process, on loopback addresses of its own.
//!
//! The processes end with the test, also when it panics or is killed; their data lies in a folder that goes with it.
//! `cargo xtask setup` unpacks the program; without it these tests fail and say so.

#[path = "../../../../xtask/src/setup/find_etcd.rs"]
mod find_etcd;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use steadfast::catalog::{Etcd, EtcdConfig, EtcdTls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{PATIENCE, eventually};

/// Port of every member for clients, and for each other.
pub const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

/// Certificates of a server, for who asks it too.
pub struct ServerTls {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Some members of one etcd.
pub struct Etcds {
    dir: tempfile::TempDir,
    /// The first three numbers of the members' addresses.
    net: String,
    token: String,
    tls: Option<ServerTls>,
    /// Whether each member runs as a user of its own, by whom its packets are known.
    has_users: bool,
    children: Vec<Option<Child>>,
}

impl Etcds {
    /// Members that can be cut off from each other; to be called in a network of the test's own ([`in_a_network_of_its_own`]).
    pub async fn that_can_be_cut(count: usize) -> Self {
        let mut etcds = Self::stopped(count, None);
        etcds.has_users = true;
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(etcds.dir.path(), open).unwrap();
        nft("add table ip etcds");
        nft("add chain ip etcds out { type filter hook output priority 0 ; }");
        etcds.start_all().await;
        etcds
    }

    fn stopped(count: usize, tls: Option<(String, ServerTls)>) -> Self {
        let (net, tls) = match tls {
            Some((net, tls)) => (net, Some(tls)),
            None => (Self::next_net(), None),
        };
        let token = format!("{}-{net}", std::process::id());
        let children = (0..count).map(|_| None).collect();
        Self { dir: tempfile::tempdir().unwrap(), net, token, tls, has_users: false, children }
    }

    async fn start_all(&mut self) {
        for member in self.members() {
            self.start(member);
        }
        if self.tls.is_none() {
            for member in self.members() {
                self.serving(member).await;
            }
        }
    }

    /// Cuts two members off from each other; what one dials and what the other dials.
    pub fn cut(&self, one: u64, other: u64) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// Drops what a member sends on connections that it made to another one.
    pub fn cut_one_way(&self, from: u64, to: u64) {
        nft(&format!("add rule ip etcds out meta skuid {} ip daddr {} drop", user(from), self.host(to)));
    }

    /// Ends all cuts.
    pub fn heal(&self) {
        nft("flush chain ip etcds out");
    }

    /// Members numbered from 1, all running and answering.
    pub async fn of(count: usize) -> Self {
        Self::with(count, None).await
    }

    /// The same, behind TLS that asks who comes. The server's name is its address: see [`Etcds::next_host`].
    pub async fn with(count: usize, tls: Option<(String, ServerTls)>) -> Self {
        let mut etcds = Self::stopped(count, tls);
        etcds.start_all().await;
        etcds
    }

    /// Loopback addresses that no other etcd of these tests has.
    pub fn next_net() -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let process = std::process::id();
        // Many processes of tests run at once, and each may have several etcds.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("127.{}.{}", 64 + (process / 64) % 128, (process % 64) * 4 + number % 4)
    }

    pub fn members(&self) -> Vec<u64> {
        (1..=self.children.len() as u64).collect()
    }

    pub fn host(&self, member: u64) -> String {
        format!("{}.{member}", self.net)
    }

    pub fn endpoint(&self, member: u64) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{CLIENT_PORT}", self.host(member))
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.members().into_iter().map(|member| self.endpoint(member)).collect()
    }

    pub fn data(&self, member: u64) -> PathBuf {
        self.dir.path().join(member.to_string())
    }

    pub fn start(&mut self, member: u64) {
        let program = find_etcd::find().expect("there is no etcd; `cargo xtask setup` unpacks one");
        let log = std::fs::File::create(self.dir.path().join(format!("{member}.log"))).unwrap();
        let (client, peer) = (self.endpoint(member), format!("http://{}:{PEER_PORT}", self.host(member)));
        let cluster: Vec<String> = (self.members().into_iter())
            .map(|other| format!("m{other}=http://{}:{PEER_PORT}", self.host(other)))
            .collect();
        // It ends when this process does, however this process ends.
        let mut command = Command::new("setpriv");
        if self.has_users {
            let user = user(member);
            std::fs::create_dir_all(self.data(member)).unwrap();
            std::os::unix::fs::chown(self.data(member), Some(user), None).unwrap();
            command.args(["--reuid", &user.to_string(), "--clear-groups"]);
        }
        command.args(["--pdeathsig", "KILL"]).arg(program);
        command.arg("--data-dir").arg(self.data(member));
        command.args(["--name", &format!("m{member}"), "--initial-cluster", &cluster.join(",")]);
        command.args(["--initial-cluster-token", &self.token, "--initial-cluster-state", "new"]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--logger", "zap", "--log-level", "warn"]);
        if let Some(tls) = &self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&tls.ca);
            command.arg("--cert-file").arg(&tls.certificate).arg("--key-file").arg(&tls.key);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let slot = self.slot(member);
        assert!(slot.is_none());
        *slot = Some(command.spawn().expect("setpriv of util-linux starts etcd"));
    }

    /// Waits until a member answers that it has a leader.
    pub async fn serving(&self, member: u64) {
        let host = self.host(member);
        eventually("an etcd that serves", || async {
            let answer = http(&host, "GET", "/health", "").await?;
            answer.contains("\"true\"").then_some(())
        })
        .await;
    }

    pub fn signal(&self, member: u64, signal: Signal) {
        if let Some(child) = &self.children[usize::try_from(member - 1).unwrap()] {
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            kill_process(pid, signal).unwrap();
        }
    }

    pub fn kill(&mut self, member: u64) {
        if let Some(mut child) = self.slot(member).take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// The member that leads.
    pub async fn leader(&self) -> u64 {
        eventually("a leader of etcd", || async {
            for member in self.members() {
                let Some(answer) = http(&self.host(member), "POST", "/v3/maintenance/status", "{}").await
                else {
                    continue;
                };
                let field = |name: &str| {
                    let (_, rest) = answer.split_once(&format!("\"{name}\":\""))?;
                    rest.split('"').next().map(str::to_owned)
                };
                if field("leader").is_some() && field("leader") == field("member_id") {
                    return Some(member);
                }
            }
            None
        })
        .await
    }

    /// Forgets what was before a revision.
    pub async fn compact(&self, member: u64, revision: u64) {
        let body = format!("{{\"revision\":\"{revision}\",\"physical\":true}}");
        let answer = http(&self.host(member), "POST", "/v3/kv/compaction", &body).await.unwrap();
        assert!(answer.contains("200 OK"), "{answer}");
    }

    /// A node's part in the catalog that lies here.
    pub fn open(&self, node: u64) -> Etcd {
        self.open_at(node, self.endpoints(), None)
    }

    pub fn open_at(&self, node: u64, endpoints: Vec<String>, tls: Option<EtcdTls>) -> Etcd {
        Etcd::open(config(node, endpoints, tls)).unwrap()
    }

    fn slot(&mut self, member: u64) -> &mut Option<Child> {
        &mut self.children[usize::try_from(member - 1).unwrap()]
    }

    fn log(&self, member: u64) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{member}.log"))).unwrap_or_default()
    }
}

pub fn config(node: u64, endpoints: Vec<String>, tls: Option<EtcdTls>) -> EtcdConfig {
    EtcdConfig { endpoints, prefix: "test/home".into(), tls, node, request_timeout: Duration::from_secs(5) }
}

impl Drop for Etcds {
    fn drop(&mut self) {
        for member in self.members() {
            self.kill(member);
            if std::thread::panicking() {
                let log = self.log(member);
                let tail: Vec<&str> = log.lines().rev().take(8).collect();
                eprintln!("----- etcd {member}\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
    }
}

/// The user that a member runs as.
fn user(member: u64) -> u32 {
    61_000 + u32::try_from(member).unwrap()
}

fn nft(words: &str) {
    let done = Command::new("nft").args(words.split_whitespace()).output().expect("nft cuts networks");
    assert!(done.status.success(), "nft {words}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Whether this is already the process in a network of its own. If not, the test `name` was run once more in one, and passed.
pub fn in_a_network_of_its_own(name: &str) -> bool {
    const INSIDE: &str = "STEADFAST_TEST_NETWORK";
    if std::env::var_os(INSIDE).is_some() {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        return true;
    }
    // It ends when this process does.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--net"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--include-ignored"]).env(INSIDE, "1");
    assert!(command.status().unwrap().success(), "{name} failed in its network; see above");
    false
}

/// One question to etcd's gateway, as text; `None` if there is no answer.
async fn http(host: &str, method: &str, path: &str, body: &str) -> Option<String> {
    let asking = async {
        let mut stream = TcpStream::connect((host, CLIENT_PORT)).await.ok()?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    };
    tokio::time::timeout(PATIENCE / 10, asking).await.ok()?
}

/// A wire in front of a member that can be cut.
pub struct Wire {
    address: std::net::SocketAddr,
    task: tokio::task::JoinHandle<()>,
    open: std::sync::Arc<tokio::sync::watch::Sender<bool>>,
}

impl Wire {
    /// Leads to a member's port for clients.
    pub async fn to(host: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = std::sync::Arc::new(tokio::sync::watch::Sender::new(true));
        let state = std::sync::Arc::clone(&open);
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (host, mut state) = (host.clone(), state.subscribe());
                tokio::spawn(async move {
                    if !*state.borrow() {
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect((host.as_str(), CLIENT_PORT)).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = state.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { address, task, open }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    pub fn mend(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Writes a file and gives its path.
pub fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}
