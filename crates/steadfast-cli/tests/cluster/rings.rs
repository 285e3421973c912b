//! Money that goes round (PROTOCOLS 2): rings of accounts, one for each way of writing programs and each store, while agents are
//! killed by SIGKILL. Whatever happens, no money is lost or made, each transfer takes effect once, and nothing of it is left over.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use steadfast_cli::api::episode_types::Instance;
use steadfast_cli::bed::Host;

use super::episodes::{ACCOUNT, PYTHON, Served, script};
use super::shared::Sharing;
use super::support::{BINARY, Trial};

/// How many accounts a ring has.
const ACCOUNTS: u64 = 6;
/// How far each amount goes.
const HOPS: u64 = 24;
const BALANCE: u64 = 1_000;
const PORT: &str = "8097";

/// A ring of accounts of one program.
#[derive(Clone, Copy)]
struct Ring {
    program: &'static str,
    language: Language,
    store: &'static str,
}

#[derive(Clone, Copy, PartialEq)]
enum Language {
    Rust,
    /// Its payloads and states are bytes, and no JSON.
    Wasm,
    Python,
}

const fn ring(program: &'static str, language: Language, store: &'static str) -> Ring {
    Ring { program, language, store }
}

const ALL: [Ring; 9] = [
    ring("rust", Language::Rust, "local"),
    ring("wasm", Language::Wasm, "local"),
    ring("python", Language::Python, "local"),
    ring("mirror-rust", Language::Rust, "mirror"),
    ring("mirror-wasm", Language::Wasm, "mirror"),
    ring("mirror-python", Language::Python, "mirror"),
    ring("shared-rust", Language::Rust, "shared"),
    ring("shared-wasm", Language::Wasm, "shared"),
    ring("shared-python", Language::Python, "shared"),
];

impl Ring {
    fn is_binary(self) -> bool {
        self.language == Language::Wasm
    }

    fn account(self, number: u64) -> String {
        format!("{}/{}", self.program, number % ACCOUNTS)
    }

    fn begin(self, trial: &Trial) {
        let host = trial.bed.host(0);
        for number in 0..ACCOUNTS {
            let next = self.account(number + 1);
            let first =
                if self.is_binary() { bytes(next.as_bytes()) } else { format!("{{\"next\": \"{next}\"}}") };
            let start = ["episode", "start", &self.account(number), &first, "--key", "first"];
            // Homes may be on their way.
            trial.wait("the account to be opened", || host.steadfast_text(&start).ok());
        }
    }

    /// Sends an amount round, asking one host after the other until one has taken it.
    fn pass(self, trial: &Trial, number: u64) {
        let amount = number % 7 + 1;
        let said = if self.is_binary() {
            bytes(&[amount.to_le_bytes(), HOPS.to_le_bytes()].concat())
        } else {
            format!("{{\"amount\": {amount}, \"hops\": {HOPS}}}")
        };
        let (account, key) = (self.account(number), format!("pass-{number}"));
        let command = ["episode", "send", &account, "pass", &said, "--key", &key];
        let mut hosts = trial.bed.hosts().iter().cycle();
        trial.wait("some agent to take it", || {
            let taken = hosts.next()?.steadfast_raw(&command).ok()?;
            taken.success().then_some(())
        });
    }

    /// All balances together, and how many deposits there were.
    fn totals(self, host: &Host) -> Option<(u64, u64)> {
        (0..ACCOUNTS).try_fold((0, 0), |(balance, deposits), number| {
            let name = self.account(number);
            let shown = host.steadfast_as::<Instance>(&["-o", "json", "episode", "show", &name]).ok()?;
            let state: serde_json::Value = serde_json::from_str(shown.state.get()).ok()?;
            let (more, times) = if self.is_binary() {
                let state = BASE64.decode(state["base64"].as_str()?.as_bytes()).ok()?;
                let word = |at| Some(u64::from_le_bytes(*state.get(at..)?.first_chunk()?));
                (word(0)?, word(8)?)
            } else {
                (state["balance"].as_u64()?, state["deposits"].as_u64()?)
            };
            Some((balance + more, deposits + times))
        })
    }

    /// Waits until all that was passed on has gone all the way, and nothing of it is remembered anywhere.
    fn wait_settled(self, trial: &Trial, passed: u64) {
        let host = trial.bed.host(0);
        let all = (BALANCE * ACCOUNTS, passed * HOPS);
        trial.wait(&format!("all money of {} to have gone all the way", self.program), || {
            (self.totals(host)? == all).then_some(())
        });
        for number in 0..ACCOUNTS {
            let name = self.account(number);
            trial.wait(&format!("{name} to be quiet"), || {
                let shown = host.steadfast_text(&["episode", "show", &name]).ok()?;
                shown.contains("is quiet: every exchange is finished").then_some(())
            });
        }
        assert_eq!(self.totals(host), Some(all), "{}", self.program);
    }
}

/// Bytes, as they stand in JSON.
fn bytes(bytes: &[u8]) -> String {
    format!("{{\"base64\": \"{}\"}}", BASE64.encode(bytes))
}

/// Three agents with all rings.
fn rings() -> (Sharing, Vec<Served>) {
    let sharing = Sharing::new();
    let trial = &sharing.trial;
    let program = Path::new(BINARY).with_file_name("examples").join("account");
    assert!(program.exists(), "build it first: cargo build -p steadfast --example account");
    let serve = |host| {
        let mut command = Command::new(&program);
        command.arg(PORT);
        Served::start(host, command)
    };
    let served = trial.bed.hosts().iter().map(serve).collect();
    let alpha = trial.bed.host(0);
    let python = script(trial, "account.py", ACCOUNT).display().to_string();
    let module = script(trial, "account.wat", include_str!("rings/account.wat")).display().to_string();
    let url = format!("http://127.0.0.1:{PORT}/");
    for ring in ALL {
        let runs: &[&str] = match ring.language {
            Language::Rust => &["--http", &url],
            Language::Wasm => &["--wasm", &module],
            Language::Python => &["--command", PYTHON, &python],
        };
        let deploy = ["episode", "deploy", ring.program, "--store", ring.store];
        alpha.steadfast_text(&[&deploy, runs].concat()).unwrap();
        ring.begin(trial);
    }
    (sharing, served)
}

#[test]
fn money_that_goes_round_is_conserved_though_agents_are_killed() {
    let (sharing, served) = rings();
    let trial = &sharing.trial;
    for ring in ALL {
        (0..ACCOUNTS).for_each(|number| ring.pass(trial, number));
    }
    for round in 0..6 {
        let host = trial.bed.host(round % 3);
        host.kill_agent().unwrap();
        host.start_agent().unwrap();
        host.wait_ready().unwrap();
    }
    trial.bed.wait_members(3).unwrap();
    ALL.iter().for_each(|ring| ring.wait_settled(trial, ACCOUNTS));
    drop(served);
}

#[test]
fn a_long_run_of_rings_loses_nothing_though_an_agent_is_killed_every_second() {
    let minutes = std::env::var_os("STEADFAST_SOAK").is_some();
    let length = Duration::from_secs(if minutes { 600 } else { 20 });
    let (sharing, served) = rings();
    let trial = &sharing.trial;
    let (began, mut kills) = (Instant::now(), 0);
    let passed = std::thread::scope(|scope| {
        let passing = scope.spawn(|| {
            let mut passed = 0;
            while began.elapsed() < length {
                ALL.iter().for_each(|ring| ring.pass(trial, passed));
                passed += 1;
            }
            passed
        });
        while began.elapsed() < length {
            let host = trial.bed.host(kills % 3);
            host.kill_agent().unwrap();
            host.start_agent().unwrap();
            kills += 1;
            trial.let_pass(Duration::from_secs(1));
        }
        passing.join().unwrap()
    });
    trial.bed.hosts().iter().for_each(|host| host.wait_ready().unwrap());
    trial.bed.wait_members(3).unwrap();
    ALL.iter().for_each(|ring| ring.wait_settled(trial, passed));
    println!("{kills} kills, {passed} transfers round each of {} rings, all exact", ALL.len());
    drop(served);
}
