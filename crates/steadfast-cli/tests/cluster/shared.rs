//! Instances that other nodes go on with when theirs is lost: in copies on two nodes, or in the store that nodes share, where all
//! go on when PostgreSQL is back.

use std::collections::BTreeSet;

use steadfast_cli::api::episode_types::{Instance, InstanceList, Program};
use steadfast_cli::api::types::Status;
use steadfast_cli::bed::Host;
use steadfast_cli::bed::postgresql::Postgresql;
use tempfile::TempDir;

use super::episodes::{ACCOUNT, PYTHON, refused, script, show, totals, wait_quiet};
use super::support::{Trial, builder};

/// So many that each of three nodes keeps some.
const ACCOUNTS: u64 = 24;
const HOPS: u64 = 12;

/// Sends another one a heap of what it can't send in one call between nodes, and counts what came.
const HEAP: &str = r#"
import json, sys
told = json.load(sys.stdin)
event, state = told["event"], told["state"]
out = {"wait": {"any": [{"kind": "spill"}, {"kind": "one"}]}, "messages": []}
if event["kind"] == "start":
    state = 0
elif event["kind"] == "spill":
    out["messages"] = [{"to": event["payload"], "kind": "one", "payload": "x" * (240 << 10)}] * 8
else:
    state += 1
out["state"] = state
print(json.dumps(out))
"#;
const SPILLS: u64 = 9;

/// A cluster whose nodes share a store. The server outlives the agents.
pub(super) struct Sharing {
    pub(super) trial: Trial,
    server: Postgresql,
    _folder: TempDir,
}

impl Sharing {
    pub(super) fn new() -> Sharing {
        let folder = tempfile::tempdir().unwrap();
        let server = Postgresql::start(folder.path()).unwrap();
        let address = format!("address = {:?}", server.address());
        let trial = Trial::with(builder().setting("episodes.shared", &address));
        Sharing { trial, server, _folder: folder }
    }

    fn deploy(&self, name: &str, store: &str) {
        let path = script(&self.trial, "account.py", ACCOUNT).display().to_string();
        let deploy = ["episode", "deploy", name, "--store", store, "--command", PYTHON, &path];
        self.trial.bed.host(0).steadfast_text(&deploy).unwrap();
    }

    /// A ring of accounts.
    fn start_ring(&self, store: &str) {
        self.deploy("account", store);
        let alpha = self.trial.bed.host(0);
        for number in 0..ACCOUNTS {
            let (name, next) = (format!("account/{number}"), (number + 1) % ACCOUNTS);
            let next = format!("{{\"next\": \"account/{next}\"}}");
            self.trial.wait("the instance to begin", || {
                alpha.steadfast_text(&["episode", "start", &name, &next, "--key", "one"]).ok()
            });
        }
    }

    /// Lets every account pass something round, asked on `host`; whoever keeps it may be dead.
    fn pass(&self, host: &Host, round: u64) {
        for number in 0..ACCOUNTS {
            let name = format!("account/{number}");
            let pass = format!("{{\"amount\": {}, \"hops\": {HOPS}}}", number + 1);
            let key = format!("round-{round}");
            self.trial.wait("somebody to take it", || {
                host.steadfast_text(&["episode", "send", &name, "pass", &pass, "--key", &key]).ok()
            });
        }
    }

    /// Waits until everything of so many rounds has gone all the way.
    fn wait_gone_round(&self, host: &Host, rounds: u64) {
        let expected = (1_000 * ACCOUNTS, ACCOUNTS * HOPS * rounds);
        self.trial.wait("all money to have gone all the way", || {
            (totals(host, ACCOUNTS)? == expected).then_some(())
        });
    }
}

/// The nodes that keep the ring, as `host` says.
fn keepers(host: &Host) -> Option<BTreeSet<String>> {
    // Who is dead is silent, and keeps none of them.
    let list: InstanceList = host.steadfast_as(&["-o", "json", "episode", "list", "account"]).ok()?;
    (list.instances.len() as u64 == ACCOUNTS)
        .then(|| list.instances.into_iter().map(|row| row.node).collect())
}

#[test]
fn the_others_go_on_with_the_shared_instances_of_a_node_that_is_killed() {
    others_go_on("shared", "in the shared store, now on");
}

#[test]
fn the_others_go_on_with_the_mirrored_instances_of_a_node_that_is_killed() {
    others_go_on("mirror", "mirrored, now on");
}

fn others_go_on(store: &str, place: &str) {
    let sharing = Sharing::new();
    let trial = &sharing.trial;
    sharing.start_ring(store);
    trial.wait("the instances to be on all nodes", || (keepers(trial.bed.host(0))?.len() == 3).then_some(()));
    let shown = trial.bed.host(1).steadfast_text(&["episode", "show", "account/0"]).unwrap();
    assert!(shown.contains(place), "{shown}");
    for round in 0..3 {
        let killed = trial.bed.host(usize::try_from(round).unwrap());
        let asked = trial.bed.host(usize::try_from(round + 1).unwrap() % 3);
        sharing.pass(asked, 2 * round);
        killed.kill_agent().unwrap();
        // What was under way and what comes now is finished without it.
        sharing.pass(asked, 2 * round + 1);
        sharing.wait_gone_round(asked, 2 * (round + 1));
        let kept = trial.wait("the list of the others", || keepers(asked));
        assert!(!kept.contains(killed.name()), "{kept:?}");
        killed.start_agent().unwrap();
        killed.wait_ready().unwrap();
        trial.bed.wait_members(3).unwrap();
        trial.wait("it to keep some again", || keepers(asked)?.contains(killed.name()).then_some(()));
    }
    wait_quiet(trial, ACCOUNTS);
    assert_eq!(totals(trial.bed.host(0), ACCOUNTS), Some((1_000 * ACCOUNTS, ACCOUNTS * HOPS * 6)));
}

#[test]
fn without_postgresql_shared_instances_wait_and_local_ones_go_on() {
    let mut sharing = Sharing::new();
    sharing.start_ring("shared");
    sharing.deploy("purse", "local");
    let alpha = sharing.trial.bed.host(0);
    alpha.steadfast_text(&["episode", "start", "purse/1", "{\"next\": \"account/0\"}"]).unwrap();
    sharing.pass(alpha, 0);
    sharing.server.kill();
    let beta = sharing.trial.bed.host(1);
    sharing.trial.wait("it to be told", || {
        let said = beta.steadfast_raw(&["episode", "send", "account/1", "balance", "--wait"]).ok()?;
        (said.stderr.contains("SF-0068") || said.stderr.contains("SF-0024")).then_some(())
    });
    sharing.trial.wait("the status to say so", || {
        let status: Status = beta.steadfast_as(&["-o", "json", "status"]).ok()?;
        status.warnings.iter().any(|warning| warning.contains("the shared store")).then_some(())
    });
    // From a local instance to a shared one: it waits for the store.
    let pass = "{\"amount\": 5, \"hops\": 1}";
    alpha.steadfast_text(&["episode", "send", "purse/1", "pass", pass, "--wait"]).unwrap();
    sharing.server.go_on().unwrap();
    let expected = (1_000 * ACCOUNTS + 5, ACCOUNTS * HOPS + 1);
    sharing
        .trial
        .wait("all money to have gone all the way", || (totals(beta, ACCOUNTS)? == expected).then_some(()));
    wait_quiet(&sharing.trial, ACCOUNTS);
    sharing.trial.wait("the local instance to be quiet", || show(beta, "purse/1").is_quiet.then_some(()));
    sharing.trial.wait("the status to be well", || {
        let status: Status = beta.steadfast_as(&["-o", "json", "status"]).ok()?;
        (!status.warnings.iter().any(|warning| warning.contains("the shared store"))).then_some(())
    });
}

#[test]
fn a_node_that_is_alone_keeps_mirrored_instances_alone_and_says_so() {
    let trial = Trial::with(builder().hosts(1));
    let alpha = trial.bed.host(0);
    let path = script(&trial, "account.py", ACCOUNT).display().to_string();
    let deploy = ["episode", "deploy", "account", "--store", "mirror", "--command", PYTHON, &path];
    alpha.steadfast_text(&deploy).unwrap();
    let start = ["episode", "start", "account/1", "{\"next\": \"account/1\"}", "--key", "one"];
    trial.wait("the instance to begin", || alpha.steadfast_text(&start).ok());
    trial.wait("the status to say so", || {
        let status: Status = alpha.steadfast_as(&["-o", "json", "status"]).ok()?;
        status.warnings.iter().any(|warning| warning.contains("no other node has copies")).then_some(())
    });
    alpha.kill_agent().unwrap();
    alpha.start_agent().unwrap();
    alpha.wait_ready().unwrap();
    let pass = ["episode", "send", "account/1", "pass", "{\"amount\": 5, \"hops\": 1}", "--key", "two"];
    trial.wait("it to go on", || alpha.steadfast_text(&pass).ok());
    trial.wait("it to be quiet", || show(alpha, "account/1").is_quiet.then_some(()));
}

#[test]
fn a_mirrored_instance_may_be_larger_than_one_call_between_nodes() {
    let trial = Trial::with(builder());
    let path = script(&trial, "heap.py", HEAP).display().to_string();
    let deploy = ["episode", "deploy", "heap", "--store", "mirror", "--command", PYTHON, &path];
    trial.some_host().steadfast_text(&deploy).unwrap();
    for name in ["heap/from", "heap/to"] {
        let start = ["episode", "start", name, "--key", "one"];
        trial.wait("the instance to begin", || trial.some_host().steadfast_text(&start).ok());
    }
    trial.wait("it to wait", || {
        trial.some_host().steadfast_text(&["episode", "pause", "heap/to"]).ok()?;
        Some(())
    });
    for spill in 0..SPILLS {
        let key = format!("spill-{spill}");
        let send = ["episode", "send", "heap/from", "spill", "\"heap/to\"", "--key", &key];
        trial.wait("it to be taken", || trial.some_host().steadfast_text(&send).ok());
    }
    let heap =
        |host: &Host| host.steadfast_as::<Instance>(&["-o", "json", "episode", "show", "heap/to"]).ok();
    let keeper = trial.wait("all of it to have come", || {
        let shown = heap(trial.some_host())?;
        (shown.row.inbox == 8 * SPILLS).then_some(shown.row.node)
    });
    // Only what is on two disks is acknowledged.
    trial.wait("the sender to be quiet", || show(trial.some_host(), "heap/from").is_quiet.then_some(()));
    let killed = trial.bed.host_named(&keeper).unwrap();
    killed.kill_agent().unwrap();
    let other = trial.bed.hosts().iter().find(|host| host.name() != keeper).unwrap();
    trial.wait("another one to have all of it", || {
        let shown = heap(other).filter(|shown| shown.row.node != keeper)?;
        (shown.row.inbox == 8 * SPILLS).then_some(())
    });
    trial.wait("it to go on", || other.steadfast_text(&["episode", "retry", "heap/to"]).ok());
    trial.wait("it to have consumed each once", || {
        let shown = heap(other)?;
        (shown.row.inbox == 0 && shown.state.get() == (8 * SPILLS).to_string()).then_some(())
    });
}

#[test]
fn a_program_has_one_store_for_ever() {
    let sharing = Sharing::new();
    let trial = &sharing.trial;
    sharing.deploy("account", "shared");
    let alpha = trial.bed.host(0);
    let path = script(trial, "account.py", ACCOUNT).display().to_string();
    let deploy = |store: &'static str| {
        ["episode", "deploy", "account", "--store", store, "--command", PYTHON, "/bin/true"]
    };
    refused(alpha, &deploy("local"), 5, &["SF-0064", "in the store `shared`"]);
    refused(alpha, &deploy("elsewhere"), 2, &["SF-0031", "local, mirror, shared"]);
    alpha.steadfast_text(&["episode", "deploy", "account", "--command", PYTHON, &path, "-v"]).unwrap();
    let programs: Vec<Program> = alpha.steadfast_as(&["-o", "json", "episode", "deploy"]).unwrap();
    assert_eq!(programs.iter().map(|program| program.store.as_str()).collect::<Vec<_>>(), ["shared"]);
    let listed = alpha.steadfast_text(&["episode", "deploy"]).unwrap();
    assert!(listed.contains("STORE") && listed.contains("shared"), "{listed}");
}

#[test]
fn without_a_shared_store_no_program_is_given_to_one() {
    let trial = Trial::with(builder().hosts(1));
    let deploy = ["episode", "deploy", "x", "--store", "shared", "--command", PYTHON];
    refused(trial.bed.host(0), &deploy, 4, &["SF-0068", "no [episodes.shared]"]);
}
