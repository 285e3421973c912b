//! What failures do to events on real agents (PROTOCOLS 4.3): the death of a subscriber's node, of a source's agent and of the
//! agent that somebody follows by, a split, a node that refuses, and what a node that has yet to join sees.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use steadfast_cli::bed::Host;
use steadfast_cli::events::cloud::CloudEvent;

use super::events::{Listener, folder, topic, wait_active, write};
use super::support::{BINARY, Trial, builder};

/// How many events are emitted while nobody carries them to whoever follows.
const UNCARRIED: usize = 20;

/// A folder below that of the test, the topic of what changes in it, and the filter for that.
fn watched(trial: &Trial, name: &str) -> (PathBuf, String, String) {
    let folder = folder(trial).join(name);
    fs::create_dir_all(&folder).unwrap();
    let topic = format!("file.change[path={}]", folder.display());
    let filter = format!("type=file.change and path={}", folder.display());
    (folder, topic, filter)
}

fn is_of(event: &CloudEvent, kind: &str, host: &Host) -> bool {
    event.short_type() == kind && event.source.ends_with(&format!("/nodes/{}", host.name()))
}

fn count(listener: &Listener, kind: &str, host: &Host) -> usize {
    listener.told().iter().filter(|event| is_of(event, kind, host)).count()
}

fn wait_told(trial: &Trial, listener: &Listener, kind: &str, host: &Host) {
    trial.wait(&format!("{kind} of {}", host.name()), || (count(listener, kind, host) > 0).then_some(()));
}

/// Waits until `host` tells of files with this name in the folder, which are made again and again.
fn wait_heard(trial: &Trial, listener: &Listener, folder: &Path, name: &str, host: &Host) {
    trial.wait(&format!("{} to tell of {name}", host.name()), || {
        write(folder, name);
        let told = listener.told();
        told.iter().any(|event| is_of(event, "file.change", host) && event.data["name"] == name).then_some(())
    });
}

#[test]
fn the_dead_are_told_of_once_and_what_only_they_wanted_is_watched_no_more() {
    let trial = Trial::with(builder());
    let [alpha, beta, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    let (folder, watched, filter) = watched(&trial, "one");
    let doomed = Listener::start(gamma, &filter, &[]);
    for host in trial.bed.hosts() {
        wait_active(&trial, host, &watched, true);
    }
    gamma.power_off().unwrap();
    for host in [alpha, beta] {
        wait_active(&trial, host, &watched, false);
    }
    drop(doomed);
    trial.bring_back(gamma);

    // Many registrations with one node, and one word when it dies.
    let many = format!("type~pressure.* or type=user.tick or type=clock.step or ({filter})");
    let listener = Listener::start(alpha, &many, &[]);
    wait_active(&trial, beta, &watched, true);
    wait_heard(&trial, &listener, &folder, "before", beta);
    beta.kill_agent().unwrap();
    wait_told(&trial, &listener, "source.down", beta);
    beta.start_agent().unwrap();
    beta.wait_ready().unwrap();
    trial.bed.wait_members(3).unwrap();
    wait_told(&trial, &listener, "source.restarted", beta);
    wait_active(&trial, beta, &watched, true);
    wait_heard(&trial, &listener, &folder, "after", beta);
    for kind in ["source.down", "source.restarted"] {
        assert_eq!(count(&listener, kind, beta), 1, "{kind}");
        assert_eq!(count(&listener, kind, gamma), 0, "{kind} of one that lives");
    }
}

#[test]
fn a_split_ends_leases_on_both_sides_and_what_nobody_watched_is_told() {
    let trial = Trial::with(builder());
    let [alpha, beta, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    let (left, left_topic, of_left) = watched(&trial, "left");
    let (right, right_topic, of_right) = watched(&trial, "right");
    let minority = Listener::start(alpha, &of_left, &[]);
    let majority = Listener::start(beta, &of_right, &[]);
    for host in trial.bed.hosts() {
        wait_active(&trial, host, &left_topic, true);
        wait_active(&trial, host, &right_topic, true);
    }
    wait_heard(&trial, &minority, &left, "before", beta);
    wait_heard(&trial, &majority, &right, "before", alpha);

    trial.bed.split(&[&[0], &[1, 2]]).unwrap();
    for host in [beta, gamma] {
        wait_active(&trial, host, &left_topic, false);
    }
    wait_told(&trial, &majority, "source.down", alpha);
    // No view says so on the side of one: there the lease ends.
    wait_active(&trial, alpha, &right_topic, false);
    assert!(topic(beta, &right_topic).unwrap().active, "it is still wanted on its own side");
    write(&left, "unseen");

    trial.bed.heal_all().unwrap();
    trial.bed.wait_members(3).unwrap();
    for host in [beta, gamma] {
        wait_active(&trial, host, &left_topic, true);
        wait_told(&trial, &minority, "gap", host);
        wait_heard(&trial, &minority, &left, "after", host);
    }
    wait_told(&trial, &majority, "source.restarted", alpha);
    wait_heard(&trial, &majority, &right, "after", alpha);
    let unseen = |event: &CloudEvent| event.data.get("name").is_some_and(|name| name == "unseen");
    let told = minority.told();
    assert!(!told.iter().any(|event| unseen(event) && !is_of(event, "file.change", alpha)), "{told:?}");
}

#[test]
fn whoever_follows_by_an_agent_that_dies_goes_on_by_another() {
    let trial = Trial::with(builder());
    let [alpha, beta, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    let by = trial.bed.base().join("agent.sock");
    symlink(alpha.socket(), &by).unwrap();
    let mut command = Command::new(BINARY);
    command.arg("--socket").arg(&by);
    let listener = Listener::start_with(beta, command, "type=user.tick", &[]);
    let emit = |name: &str| gamma.steadfast_text(&["events", "emit", "user.tick", &format!("name={name}")]);
    trial.wait("the first to be heard", || {
        emit("first").ok()?;
        listener.has("user.tick", "name", "first").then_some(())
    });
    alpha.kill_agent().unwrap();
    let names: Vec<String> = (0..UNCARRIED).map(|number| format!("later-{number}")).collect();
    names.iter().for_each(|name| drop(emit(name).unwrap()));
    fs::remove_file(&by).unwrap();
    symlink(beta.socket(), &by).unwrap();
    let last = names.last().unwrap();
    trial.wait("the last to be heard", || listener.has("user.tick", "name", last).then_some(()));
    let told = listener.told();
    assert_eq!(told.iter().filter(|event| event.short_type() == "gap").count(), 0, "{told:?}");
    let ticks: Vec<&CloudEvent> = told.iter().filter(|event| event.short_type() == "user.tick").collect();
    let heard: Vec<&str> = ticks.iter().filter_map(|event| event.data["name"].as_str()).collect();
    let later: Vec<&str> = heard.into_iter().filter(|name| *name != "first").collect();
    assert_eq!(later, names);
    let sequence: Vec<u64> = ticks.iter().map(|event| event.sequence.parse().unwrap()).collect();
    assert!(sequence.windows(2).all(|pair| pair[1] == pair[0] + 1), "{sequence:?}");
}

#[test]
fn a_node_that_can_not_watch_says_why_and_tries_again_for_the_next() {
    let trial = Trial::with(builder());
    let [alpha, beta, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    let folder = folder(&trial).join("not-yet");
    let filter = format!("type=file.change and path={} and node={}", folder.display(), beta.name());
    let early = Listener::start(alpha, &filter, &[]);
    wait_told(&trial, &early, "source.refused", beta);
    let told = early.told();
    let refused = told.iter().find(|event| is_of(event, "source.refused", beta)).unwrap();
    let reason = refused.data["reason"].as_str().unwrap();
    assert!(reason.contains("not-yet") && reason.contains("is not on this node"), "{reason}");

    fs::create_dir(&folder).unwrap();
    let late = Listener::start(gamma, &filter, &[]);
    for listener in [&early, &late] {
        wait_heard(&trial, listener, &folder, "here", beta);
    }
    assert_eq!(count(&early, "source.refused", beta), 1, "{:?}", early.told());
}

#[test]
fn what_a_node_sees_before_it_joins_is_not_missed() {
    let trial = Trial::with(builder().hosts(4).standbys(1));
    let [alpha, beta, _, delta] = trial.bed.hosts() else { panic!("a bed of four") };
    let listener = Listener::start(alpha, "type=memory.oom_kill", &[]);
    wait_active(&trial, delta, "memory.oom_kill", true);
    let is_member = || {
        let members = alpha.status().unwrap().view.members;
        members.iter().any(|member| member == delta.name())
    };
    assert!(!is_member(), "it stands by");
    assert_eq!(topic(delta, "memory.oom_kill").unwrap().told_to, [alpha.name()]);
    let crowded = Crowded::new();
    crowded.run_out();
    trial.wait("delta to see the kill", || (topic(delta, "memory.oom_kill")?.next > 1).then_some(()));
    assert_eq!(count(&listener, "memory.oom_kill", delta), 0, "nobody hears who is no member");

    beta.power_off().unwrap();
    trial.wait("delta to take the place of beta", || is_member().then_some(()));
    wait_told(&trial, &listener, "memory.oom_kill", delta);
    let told = listener.told();
    let first = told.iter().find(|event| event.source.ends_with(delta.name())).unwrap();
    assert_eq!((first.short_type(), first.sequence.parse()), ("memory.oom_kill", Ok(1)), "{first:?}");
}

/// A cgroup with little memory.
struct Crowded {
    folder: PathBuf,
}

impl Crowded {
    fn new() -> Crowded {
        let first = Path::new("/sys/fs/cgroup/memory");
        let (tree, limit) = if first.join("memory.limit_in_bytes").exists() {
            (first, "memory.limit_in_bytes")
        } else {
            // Fails where it is done already.
            let _ = fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
            (Path::new("/sys/fs/cgroup"), "memory.max")
        };
        let folder = tree.join(format!("steadfast-test-{}-crowded", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(limit), "16777216").unwrap();
        Crowded { folder }
    }

    /// Runs a program in it that wants more memory than there is, to its end.
    fn run_out(&self) {
        let line = format!("echo $$ > {}/cgroup.procs; exec tail /dev/zero", self.folder.display());
        let ended = Command::new("sh").args(["-c", &line]).status().unwrap();
        assert!(!ended.success(), "{ended:?}");
    }
}

impl Drop for Crowded {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}
