//! The table of situations of PROTOCOLS 4.5 with real agents: whatever happens on the way, a node has one identity, one row,
//! and is told why where it may not join. And keys that change while everybody works.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use steadfast::envelope::Format;
use steadfast_cli::bed::{AGENT_PORT, Bed, Host, wait_for};
use steadfast_proto::ids::ClusterId;

use super::support::{PATIENCE, Trial, builder};

/// A cluster of the first host alone; the others are bare.
fn single() -> Bed {
    let bed = builder().build().unwrap();
    let alpha = bed.host(0);
    alpha.steadfast_text(&["init", "trial", "--config", &text(&alpha.config())]).unwrap();
    alpha.start_agent().unwrap();
    alpha.wait_ready().unwrap();
    bed
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn invite(bed: &Bed, words: &[&str]) -> String {
    let said = bed.host(0).steadfast_text(&[&["invite"], words].concat()).unwrap();
    said.trim().to_owned()
}

/// What a command of this host says when it refuses, and that it does so with `status`.
fn refused(host: &Host, words: &[&str], status: i32) -> String {
    let config = text(&host.config());
    let finished = host.steadfast_raw(&[words, &["--config", &config]].concat()).unwrap();
    assert_eq!(finished.status, Some(status), "{}", finished.stderr);
    finished.stderr
}

fn succeeds(host: &Host, words: &[&str]) -> Value {
    let config = text(&host.config());
    host.steadfast(&[words, &["--config", &config, "-o", "json"]].concat()).unwrap()
}

/// Names and ids of all nodes, as the first host knows them.
fn nodes(bed: &Bed) -> BTreeSet<(String, String)> {
    bed.host(0).nodes().unwrap().into_iter().map(|node| (node.name, node.id)).collect()
}

fn id_of(bed: &Bed, name: &str) -> String {
    let found = nodes(bed).into_iter().find(|(one, _)| one == name);
    found.unwrap_or_else(|| panic!("{name} has a row")).1
}

fn wait_logged(host: &Host, words: &str) {
    wait_for(&format!("{words:?} in the log of {}", host.name()), PATIENCE, || {
        host.log_tail(400).contains(words).then_some(())
    })
    .unwrap();
}

#[test]
fn a_node_keeps_its_identity_when_its_addresses_change() {
    let trial = Trial::new();
    let beta = trial.bed.host(1);
    let before = nodes(&trial.bed);
    let config = std::fs::read_to_string(beta.config()).unwrap();
    let moved = config.replace(&format!(":{AGENT_PORT}\""), &format!(":{}\"", AGENT_PORT + 1));
    assert_ne!(moved, config);
    beta.kill_agent().unwrap();
    std::fs::write(beta.config(), moved).unwrap();
    beta.start_agent().unwrap();
    beta.wait_ready().unwrap();
    trial.wait("the new address in the row", || {
        let nodes = trial.bed.host(0).nodes().ok()?;
        let row = nodes.into_iter().find(|node| node.name == "beta")?;
        let port = format!(":{}", AGENT_PORT + 1);
        row.addresses.iter().all(|(_, address)| address.ends_with(&port)).then_some(())
    });
    trial.bed.wait_members(3).unwrap();
    assert_eq!(nodes(&trial.bed), before, "the same names with the same ids");
}

#[test]
fn of_two_nodes_with_one_invitation_exactly_one_joins_and_the_other_is_told_why() {
    let bed = single();
    let token = invite(&bed, &["beta"]);
    let joining = [bed.host(1), bed.host(2)].map(|host| {
        let mut command = host.steadfast_command();
        command.args(["join", &token, "--config"]).arg(host.config());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        host.spawn(&mut command).unwrap()
    });
    let finished = joining.map(|child| child.wait_with_output().unwrap());
    let (joined, refused): (Vec<_>, Vec<_>) = finished.iter().partition(|one| one.status.success());
    assert_eq!((joined.len(), refused.len()), (1, 1), "{finished:?}");
    assert_eq!(refused[0].status.code(), Some(5));
    let said = String::from_utf8_lossy(&refused[0].stderr).into_owned();
    assert!(said.contains("used by node") && said.contains("one token per node"), "{said}");
    assert_eq!(nodes(&bed).len(), 2);
}

#[test]
fn an_address_of_another_node_is_refused_and_its_holder_named() {
    let bed = single();
    bed.host(1).join_through(bed.host(0)).unwrap();
    let before = nodes(&bed);
    let token = invite(&bed, &["gamma"]);
    let gamma = bed.host(2);
    let config = std::fs::read_to_string(gamma.config()).unwrap();
    let own = bed.host(2).addresses()[0].to_string();
    let wrong = config.replace(&own, &bed.host(1).addresses()[0].to_string());
    std::fs::write(gamma.config(), wrong).unwrap();
    let said = refused(gamma, &["join", &token], 5);
    assert!(said.contains("belongs to beta"), "{said}");
    assert_eq!(nodes(&bed), before);
    // The typo corrected, the same token is still good.
    std::fs::write(gamma.config(), config).unwrap();
    succeeds(gamma, &["join", &token]);
}

#[test]
fn a_known_machine_bears_a_new_name_only_when_asked_to() {
    let trial = Trial::new();
    let (bed, beta) = (&trial.bed, trial.bed.host(1));
    let id = id_of(bed, "beta");
    let token = invite(bed, &["delta"]);
    // What a careless restore loses: the membership, and not the identity.
    beta.kill_agent().unwrap();
    std::fs::remove_file(beta.data().join("membership")).unwrap();
    let said = refused(beta, &["join", &token], 5);
    assert!(said.contains("--rebind") && said.contains("beta"), "{said}");
    trial.wait("nobody under the identity", || {
        let config = text(&beta.config());
        let joined = beta.steadfast_raw(&["join", "--rebind", &token, "--config", &config]).unwrap();
        assert!(joined.success() || joined.stderr.contains("is a copy"), "{}", joined.stderr);
        joined.success().then_some(())
    });
    beta.start_agent().unwrap();
    bed.wait_members(3).unwrap();
    assert_eq!(id_of(bed, "delta"), id, "the same row under another name");
    assert_eq!(nodes(bed).len(), 3);
}

#[test]
fn a_cloned_data_folder_is_refused_until_it_has_an_identity_of_its_own() {
    let bed = single();
    let gamma = bed.host(2);
    bed.host(1).join_through(bed.host(0)).unwrap();
    bed.host(1).start_agent().unwrap();
    bed.wait_members(2).unwrap();
    let before = nodes(&bed);
    let copied = Command::new("cp").arg("-a").arg(bed.host(1).data().join(".")).arg(gamma.data()).status();
    assert!(copied.unwrap().success());

    gamma.start_agent().unwrap();
    wait_for("the end of the clone", PATIENCE, || gamma.agent_pid().is_none().then_some(())).unwrap();
    wait_logged(gamma, "steadfast reidentify");
    assert_eq!(nodes(&bed), before);
    assert_eq!(bed.host(0).members().unwrap().len(), 2, "the original stays a member");

    // The original is no copy, whatever somebody types on it.
    let said = refused(bed.host(1), &["reidentify"], 5);
    assert!(said.contains("another agent") || said.contains("no copy"), "{said}");
    let token = invite(&bed, &["gamma"]);
    let said = refused(gamma, &["join", &token], 5);
    assert!(said.contains("beta"), "{said}");
    succeeds(gamma, &["reidentify"]);
    succeeds(gamma, &["join", &token]);
    gamma.start_agent().unwrap();
    bed.wait_members(3).unwrap();
    let names: BTreeSet<String> = nodes(&bed).into_iter().map(|(_, id)| id).collect();
    assert_eq!(names.len(), 3);
    assert_eq!(id_of(&bed, "beta"), before.iter().find(|(name, _)| name == "beta").unwrap().1);
}

/// Sends datagrams given in hexadecimal digits: `ADDRESS PORT DATAGRAM...`.
const SENDER: &str = r"
import socket, sys
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for datagram in sys.argv[3:]:
    own.sendto(bytes.fromhex(datagram), (sys.argv[1], int(sys.argv[2])))
";

/// The files of a data folder and what is in them, but for the socket.
fn content(data: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(data)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| std::fs::read(&path).ok().map(|bytes| (path, bytes)))
        .collect();
    files.sort();
    files
}

#[test]
fn an_agent_that_waits_with_a_token_is_woken_by_a_notice_and_moved_by_nothing_else() {
    let bed = single();
    let gamma = bed.host(2);
    let token = invite(&bed, &["gamma", "--valid", "1s"]);
    let started = std::time::Instant::now();
    wait_for("the token's end", PATIENCE, || (started.elapsed().as_secs() > 2).then_some(())).unwrap();
    gamma.start_agent().unwrap();
    let config = text(&gamma.config());
    gamma.steadfast_text(&["join", &token, "--wait", "--config", &config]).unwrap();
    wait_for("the reason why it waits", PATIENCE, || {
        let said = gamma.steadfast_raw(&["status"]).unwrap().stderr;
        said.contains("expired").then_some(())
    })
    .unwrap();
    let before = content(&gamma.data());

    let cluster: ClusterId = bed.host(0).status().unwrap().cluster.id.parse().unwrap();
    let notice = Format { magic: *b"SFno", version: 1, version_min: 1, body_bytes_max: 16 };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    // Also one that nobody can tell from a genuine notice: it makes the agent ask, and the answer is the same.
    let forged = [cluster.0, 7].map(|id| hex(&notice.wrap(&id.to_le_bytes())));
    let garbage = [String::new(), hex(b"SFno"), forged[1].clone(), "00".repeat(1400), forged[0].clone()];
    let (address, port) = (gamma.addresses()[0].ip().to_string(), gamma.addresses()[0].port().to_string());
    let arguments: Vec<&str> = garbage.iter().map(String::as_str).collect();
    let sent =
        bed.host(1).exec(&[&["python3", "-c", SENDER, &address, &port], &arguments[..]].concat()).unwrap();
    assert!(sent.success(), "{}", sent.stderr);
    assert!(gamma.agent_pid().is_some());
    assert_eq!(content(&gamma.data()), before, "forged notices leave nothing behind");
    assert_eq!(nodes(&bed).len(), 1);

    let woken =
        bed.host(0).steadfast_raw(&["invite", "gamma", "--notify", &format!("{address}:{port}")]).unwrap();
    assert!(woken.success() && woken.stderr.contains("made before"), "{}", woken.stderr);
    bed.wait_members(2).unwrap();
    assert_eq!(nodes(&bed).len(), 2);
    assert!(!gamma.data().join("token").exists());
}

/// Between the steps of a join: where it is killed.
const JOIN_PLACES: [&str; 5] = ["join:begin", "join:identity", "join:asking", "join:answered", "join:stored"];
/// Between the steps by which a joined node becomes a member.
const AGENT_PLACES: [&str; 2] = ["agent:catalog", "agent:node"];

/// Runs a command that a crash ends at `place`.
fn killed_at(host: &Host, place: &str, words: &[&str]) {
    use std::os::unix::process::ExitStatusExt;
    let mut command = host.steadfast_command();
    command.args(words).env("STEADFAST_CRASH_AT", place);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = host.spawn(&mut command).unwrap().wait().unwrap();
    assert_eq!(status.signal(), Some(9), "killed at {place}");
}

/// A scratch node of a host: its configuration, with a data folder and ports of its own.
fn scratch(host: &Host, number: u16) -> (PathBuf, PathBuf) {
    let folder = host.data().with_file_name(format!("run-{number}"));
    std::fs::create_dir_all(&folder).unwrap();
    let (data, config) = (folder.join("data"), folder.join("steadfast.toml"));
    let port = format!(":{}\"", 10_000 + number);
    let words = std::fs::read_to_string(host.config()).unwrap();
    let words = words.replace(&text(&host.data()), &text(&data)).replace(&format!(":{AGENT_PORT}\""), &port);
    std::fs::write(&config, words).unwrap();
    (data, config)
}

/// One join that is killed at `place` and then repeated: always one identity, one row, joined at the end.
fn killed_join(bed: &Bed, number: u16, place: &str) {
    let host = bed.host(1);
    let (data, config) = scratch(host, number);
    let name = format!("node-{number}");
    let token = invite(bed, &[&name]);
    let config = text(&config);
    killed_at(host, place, &["join", &token, "--config", &config]);
    let made = std::fs::read(data.join("identity")).ok();
    assert_eq!(made.is_some(), place != "join:begin", "{place}");
    let again = host.steadfast_raw(&["join", &token, "--config", &config]).unwrap();
    // After the last step there is nothing left to do.
    let expected = if place == "join:stored" { 5 } else { 0 };
    assert_eq!(again.status, Some(expected), "{place}: {}", again.stderr);
    let identity = std::fs::read(data.join("identity")).unwrap();
    assert!(made.is_none_or(|made| made == identity), "{place}: the identity changed");
    assert!(data.join("membership").exists(), "{place}");
    let rows = nodes(bed).into_iter().filter(|(one, _)| *one == name).count();
    assert_eq!(rows, 1, "{place}");
}

#[test]
fn a_node_that_is_killed_after_each_step_of_its_join_becomes_a_member_once() {
    let bed = single();
    let beta = bed.host(1);
    let token = invite(&bed, &["beta"]);
    let config = text(&beta.config());
    let mut identities = BTreeSet::new();
    for place in JOIN_PLACES {
        killed_at(beta, place, &["join", &token, "--config", &config]);
        identities.extend(std::fs::read(beta.data().join("identity")).ok());
    }
    for place in AGENT_PLACES {
        killed_at(beta, place, &["agent", "--config", &config]);
    }
    beta.start_agent().unwrap();
    bed.wait_members(2).unwrap();
    identities.insert(std::fs::read(beta.data().join("identity")).unwrap());
    assert_eq!(identities.len(), 1, "one identity");
    assert_eq!(nodes(&bed).len(), 2, "one row");
}

#[test]
fn an_inviter_that_is_killed_after_it_took_a_node_in_answers_it_again() {
    use std::os::unix::process::ExitStatusExt;
    let bed = single();
    let (alpha, beta) = (bed.host(0), bed.host(1));
    let token = invite(&bed, &["beta"]);
    alpha.kill_agent().unwrap();
    let mut command = alpha.steadfast_command();
    command.args(["agent", "--config"]).arg(alpha.config()).env("STEADFAST_CRASH_AT", "admit:taken");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut agent = alpha.spawn(&mut command).unwrap();
    wait_for("the inviter", PATIENCE, || alpha.status().ok()?.quorum.then_some(())).unwrap();
    refused(beta, &["join", &token], 4);
    assert_eq!(agent.wait().unwrap().signal(), Some(9));
    let identity = std::fs::read(beta.data().join("identity")).unwrap();
    alpha.start_agent().unwrap();
    alpha.wait_ready().unwrap();
    wait_for("the catalog", PATIENCE, || alpha.status().ok()?.quorum.then_some(())).unwrap();
    assert_eq!(nodes(&bed).len(), 2, "the row was committed before the crash");
    succeeds(beta, &["join", &token]);
    assert_eq!(std::fs::read(beta.data().join("identity")).unwrap(), identity);
    beta.start_agent().unwrap();
    bed.wait_members(2).unwrap();
    assert_eq!(nodes(&bed).len(), 2);
}

/// The whole matrix of PROTOCOLS 4.5.
#[test]
fn a_hundred_joins_killed_after_any_step_are_each_cured_by_the_same_command() {
    // A cluster has at most 64 nodes.
    for _ in 0..2 {
        let bed = single();
        for (number, place) in (0..).zip(JOIN_PLACES.iter().cycle().take(50)) {
            killed_join(&bed, number, place);
        }
        assert_eq!(nodes(&bed).len(), 51);
    }
}

#[test]
fn keys_are_rotated_under_load_and_nobody_notices() {
    let trial = Trial::new();
    trial.start_counter(1);
    trial.checkpoint();
    let before = (trial.bed.host(0).status().unwrap().view.id, trial.counter().epoch);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                trial.checkpoint();
            }
        });
        for host in trial.bed.hosts() {
            let rotated = host.steadfast(&["keys", "rotate", "-o", "json"]);
            let is_settled = rotated.as_ref().is_ok_and(|keys| keys["settled"] == true);
            // The load must end before a panic can.
            done.store(!is_settled, Ordering::Relaxed);
            assert!(is_settled, "{rotated:?}");
        }
        done.store(true, Ordering::Relaxed);
        load.join().unwrap();
    });
    for host in trial.bed.hosts() {
        let keys = host.steadfast(&["keys", "-o", "json"]).unwrap();
        assert_eq!((&keys["sealing"], &keys["accepted_min"]), (&Value::from(4), &Value::from(4)), "{keys}");
        let status = host.status().unwrap();
        assert!(status.verdicts.is_empty(), "{:?}", status.verdicts);
    }
    let after = (trial.bed.host(0).status().unwrap().view.id, trial.counter().epoch);
    assert_eq!(after, before, "no view was changed and nothing was moved");
    trial.witness.assert_clean();

    // What was sealed before an agent's restart, and a member that was away, are no worse for it.
    let owner = trial.owner();
    owner.power_off().unwrap();
    trial.wait_recovered(before.1);
    trial.some_host().steadfast_text(&["keys", "rotate"]).unwrap();
    trial.bring_back(owner);
    trial.wait("the newest key on the node that was away", || {
        let keys = owner.steadfast(&["keys", "-o", "json"]).ok()?;
        (keys["sealing"] == 5 && keys["settled"] == true).then_some(())
    });
    trial.witness.assert_clean();
}

#[test]
fn a_node_removed_for_good_is_refused_until_it_is_invited_anew() {
    let trial = Trial::new();
    let (alpha, gamma) = (trial.bed.host(0), trial.bed.host(2));
    let said = alpha.steadfast_raw(&["keys", "revoke", "gamma"]).unwrap();
    assert_eq!(said.status, Some(5), "a member is not revoked: {}", said.stderr);
    let old = id_of(&trial.bed, "gamma");
    gamma.kill_agent().unwrap();
    trial.wait("the removal", || (alpha.members().ok()?.len() == 2).then_some(()));
    let keys = alpha.steadfast(&["keys", "revoke", "gamma", "-o", "json"]).unwrap();
    assert_eq!((&keys["revoked"][0], &keys["sealing"]), (&Value::from("gamma"), &Value::from(2)), "{keys}");
    assert_eq!(nodes(&trial.bed).len(), 2);

    gamma.start_agent().unwrap();
    for host in [alpha, trial.bed.host(1)] {
        wait_logged(host, "a certificate that was revoked is refused");
    }
    assert_eq!(alpha.members().unwrap().len(), 2);
    gamma.kill_agent().unwrap();
    let token = invite(&trial.bed, &["gamma"]);
    refused(gamma, &["join", &token], 5);
    refused(gamma, &["reidentify"], 5);
    succeeds(gamma, &["reidentify", "--removed"]);
    succeeds(gamma, &["join", &token]);
    gamma.start_agent().unwrap();
    trial.bed.wait_members(3).unwrap();
    assert_ne!(id_of(&trial.bed, "gamma"), old);
}
