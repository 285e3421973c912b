//! The cluster's operations on real agents (PROTOCOLS 6): the node that runs them is killed at every step of each, and the next
//! one finishes what it began, once.

use std::time::Duration;

use steadfast_cli::api::types::{Node, Operation};
use steadfast_cli::bed::{BedBuilder, Host};

use super::support::{COUNTER, Trial, builder};

/// The machine that waits in readiness.
const SPARE: usize = 3;
/// For so long an agent is away that is to lose its lease.
const LEASE_AND_MORE: Duration = Duration::from_secs(2);
/// The file that names where an agent is killed.
const FUSE: &str = "fuse";

fn operations(host: &Host) -> Vec<Operation> {
    host.steadfast_as(&["-o", "json", "operations"]).unwrap()
}

fn of(host: &Host, verb: &str) -> Vec<Operation> {
    operations(host).into_iter().filter(|operation| operation.verb == verb).collect()
}

fn nodes(trial: &Trial) -> Vec<Node> {
    trial.some_host().steadfast_as(&["-o", "json", "nodes"]).unwrap()
}

/// The member that runs operations: the first by its id.
fn runner(trial: &Trial) -> &Host {
    let members = nodes(trial).into_iter().filter(|node| node.state == "member");
    let first = members.min_by(|one, other| one.id.cmp(&other.id)).expect("there are members");
    trial.bed.host_named(&first.name).expect("a host of this bed")
}

/// Some member that neither runs operations nor the program.
fn bystander<'a>(trial: &'a Trial, runner: &Host) -> &'a Host {
    let owner = trial.counter().node;
    let members: Vec<String> =
        nodes(trial).into_iter().filter(|node| node.state == "member").map(|node| node.name).collect();
    let is_free = |name: &&String| **name != runner.name() && **name != owner;
    let name = members.iter().find(is_free).expect("a third member");
    trial.bed.host_named(name).expect("a host of this bed")
}

/// Waits until all of three hosts are members, and there is no operation under way.
fn settled(trial: &Trial) {
    trial.wait("members, and the end of every operation", || {
        let host = trial.bed.hosts().iter().find(|host| host.has_answering_agent())?;
        let nodes: Vec<Node> = host.steadfast_as(&["-o", "json", "nodes"]).ok()?;
        let members = nodes.iter().filter(|node| node.state == "member").count();
        let all: Vec<Operation> = host.steadfast_as(&["-o", "json", "operations"]).ok()?;
        (members >= SPARE && all.iter().all(|one| one.state != "running")).then_some(())
    });
}

/// Has the agent be killed that comes to `place` in `work`, then starts it again.
fn killed_at(trial: &Trial, place: &str, work: impl FnOnce(&Host)) {
    settled(trial);
    let runs = runner(trial);
    let asked = bystander(trial, runs);
    std::fs::write(trial.bed.base().join(FUSE), format!("operations:{place}")).unwrap();
    work(asked);
    let killed = trial.wait(&format!("the end of an agent at {place}"), || {
        trial.bed.hosts().iter().find(|host| host.is_on() && host.agent_pid().is_none())
    });
    assert!(!trial.bed.base().join(FUSE).exists());
    start(trial, killed);
    trial.wait("it to be a member again, unless another one took its place", || {
        let back = nodes(trial).into_iter().find(|node| node.name == killed.name())?;
        ["member", "left", "ready"].contains(&back.state.as_str()).then_some(())
    });
    caught_up(trial, killed, asked);
}

/// Waits until an agent that was started again knows what the others know.
fn caught_up(trial: &Trial, host: &Host, other: &Host) {
    trial.wait("it to know what the others know", || (known(host)? == known(other)?).then_some(()));
}

/// Has the program be on a node that does not run operations; gives how many drains that took.
fn apart(trial: &Trial) -> usize {
    settled(trial);
    let (owner, runs) = (trial.counter().node, runner(trial));
    if owner != runs.name() {
        return 0;
    }
    for arguments in [&["drain", &owner][..], &["drain", "--undo", &owner]] {
        runs.steadfast_text(arguments).unwrap();
    }
    1
}

/// Has the node that runs operations stop at `place` in `work` while the agent of `victim` is killed, which is started again
/// after its lease.
fn killed_while(trial: &Trial, place: &str, victim: &Host, work: impl FnOnce(&Host) + Send) {
    let fuse = trial.bed.base().join(FUSE);
    let (held, runs) = (fuse.with_extension("held"), runner(trial));
    let is_free =
        |node: &Node| node.state == "member" && ![runs.name(), victim.name()].contains(&&*node.name);
    let asked = nodes(trial).into_iter().find(is_free).expect("a third member");
    let asked = trial.bed.host_named(&asked.name).expect("a host of this bed");
    std::fs::write(&fuse, format!("hold operations:{place}")).unwrap();
    std::thread::scope(|scope| {
        let work = scope.spawn(|| work(asked));
        trial.wait(&format!("the operation to come to {place}"), || held.exists().then_some(()));
        victim.kill_agent().unwrap();
        std::fs::remove_file(&held).unwrap();
        trial.let_pass(LEASE_AND_MORE);
        start(trial, victim);
        work.join().unwrap();
    });
    caught_up(trial, victim, asked);
}

/// Starts an agent, which knows where the fuse lies; it burns none before there is one.
fn start(trial: &Trial, host: &Host) {
    let fuse = trial.bed.base().join(FUSE).display().to_string();
    host.start_agent_with(&[("STEADFAST_CRASH_FILE", &fuse)]).unwrap();
    host.wait_ready().unwrap();
}

/// What an agent knows of containers and operations.
fn known(host: &Host) -> Option<impl PartialEq> {
    let containers = host.containers().ok()?.into_iter().map(|row| (row.name, row.revision));
    Some((
        containers.collect::<Vec<_>>(),
        host.steadfast_as::<Vec<Operation>>(&["-o", "json", "operations"]).ok()?,
    ))
}

/// Members, and the program on one that does not run operations.
fn with_counter(members: usize) -> Trial {
    with_counter_on(builder().hosts(members))
}

fn with_counter_on(bed: BedBuilder) -> Trial {
    let trial = Trial::with(bed);
    for host in trial.bed.hosts() {
        host.kill_agent().unwrap();
        start(&trial, host);
    }
    let host = runner(&trial).number();
    let owner = (0..SPARE).find(|number| *number != host).expect("another member");
    trial.start_counter(owner);
    trial.checkpoint();
    trial
}

#[test]
fn what_is_done_with_a_container_is_finished_though_the_node_that_sees_to_it_is_killed_at_every_step() {
    let trial = with_counter(SPARE);
    for place in ["before:checkpoint:0", "after:checkpoint:0", "reached:checkpoint:0"] {
        let before = trial.counter().latest.map_or(0, |latest| latest.number);
        killed_at(&trial, place, |asked| {
            asked.steadfast_text(&["checkpoint", COUNTER]).unwrap();
        });
        let after = trial.counter().latest.map_or(0, |latest| latest.number);
        assert!(after > before, "{place}: checkpoint {before}, then {after}");
    }
    for step in ["before:restore:0", "after:restore:0", "reached:restore:0", "before:restore:1"]
        .into_iter()
        .chain(["after:restore:1", "reached:restore:1"])
    {
        let before = trial.counter();
        killed_at(&trial, step, |asked| {
            asked.steadfast_text(&["restore", COUNTER, "--node", &before.node]).unwrap();
        });
        let after = trial.wait_recovered(before.epoch);
        assert_eq!((after.epoch, &after.node), (before.epoch + 1, &before.node), "{step}: once, and there");
    }
    settled(&trial);
    let all = operations(trial.some_host());
    assert!(all.iter().all(|one| one.state == "done" || one.verb == "join"), "{all:?}");
    assert_eq!(all.iter().filter(|operation| operation.verb == "restore").count(), 6, "{all:?}");
    assert!(all.iter().all(|operation| operation.verb != "recover"), "nothing was lost: {all:?}");

    // What nobody asked for is an operation too, and is begun once by whoever sees to it.
    let owner = trial.owner();
    killed_at(&trial, "reached:recover:0", |_| {
        let epoch = trial.counter().epoch;
        owner.power_off().unwrap();
        trial.wait_recovered(epoch);
    });
    trial.wait("the recovery to have ended", || {
        let all = of(trial.some_host(), "recover");
        (all.len() == 1 && all[0].state == "done" && all[0].asked_at.is_none()).then_some(())
    });
}

#[test]
fn changes_of_members_are_finished_though_the_node_that_sees_to_them_is_killed_at_every_step() {
    let trial = with_counter(SPARE + 1);
    let mut drains = 0;
    for place in ["before:drain:0", "after:drain:0", "reached:drain:0"] {
        drains += apart(&trial) + 1;
        let owner = trial.counter().node;
        killed_at(&trial, place, |asked| {
            asked.steadfast_text(&["drain", &owner]).unwrap();
        });
        assert_ne!(trial.counter().node, owner, "{place}");
        trial.some_host().steadfast_text(&["drain", "--undo", &owner]).unwrap();
    }
    for place in ["before:leave:0", "after:leave:0", "reached:leave:0"] {
        let mut left = None;
        killed_at(&trial, place, |asked| {
            // The one that is asked hands its own duties over.
            asked.steadfast_text(&["leave", asked.name()]).unwrap();
            left = Some(asked.name().to_owned());
        });
        let left = left.expect("one has left");
        trial.some_host().steadfast_text(&["drain", "--undo", &left]).unwrap();
        trial.wait("the one that left to be a member again", || {
            nodes(&trial).iter().any(|node| node.name == left && node.state == "member").then_some(())
        });
    }
    settled(&trial);
    let all = operations(trial.some_host());
    let count = |verb| all.iter().filter(|one| one.verb == verb && one.state == "done").count();
    assert_eq!((count("drain"), count("leave")), (drains, 3), "{all:?}");

    // Nobody asked for a join: the cluster begins it, and whoever sees to it next ends it.
    let leaves = bystander(&trial, runner(&trial)).name().to_owned();
    trial.some_host().steadfast_text(&["leave", &leaves]).unwrap();
    killed_at(&trial, "reached:join:0", |asked| {
        asked.steadfast_text(&["drain", "--undo", &leaves]).unwrap();
    });
    settled(&trial);
    let joins = |one: &Operation| one.verb == "join" && one.state == "done" && one.does.contains(&leaves);
    assert!(operations(trial.some_host()).iter().any(joins), "{:?}", operations(trial.some_host()));
}

#[test]
fn a_replacement_happens_or_is_refused_though_the_node_that_sees_to_it_is_killed_at_every_step() {
    for place in ["before:replace:0", "after:replace:0", "reached:replace:0"] {
        let trial = with_counter_on(builder().hosts(SPARE + 1).standbys(1));
        let spare = trial.bed.host(SPARE);
        trial.wait("the spare to be ready", || {
            let spare = nodes(&trial).into_iter().find(|node| node.name == spare.name())?;
            spare.probation.filter(|probation| probation.ready)
        });
        killed_at(&trial, place, |asked| {
            let replaced = asked.steadfast_text(&["replace", asked.name(), spare.name()]);
            let is_member =
                |name: &str| nodes(&trial).iter().any(|node| node.name == name && node.state == "member");
            match replaced {
                Ok(_) => assert!(is_member(spare.name()) && !is_member(asked.name()), "{place}"),
                // The spare took the place of the one that was killed: nobody's place is left for it.
                Err(error) => {
                    assert!(error.to_string().contains("SF-0045"), "{place}: {error}");
                    assert!(is_member(spare.name()) && is_member(asked.name()), "{place}");
                }
            }
        });
        trial.wait("the replacement to have ended", || {
            of(trial.some_host(), "replace").iter().all(|one| one.state != "running").then_some(())
        });
        assert_eq!(of(trial.some_host(), "replace").len(), 1, "{place}");
    }
}

#[test]
fn what_is_done_with_a_container_ends_though_its_owner_is_killed_at_every_step() {
    let trial = with_counter(SPARE);
    let checkpoint =
        ["before:checkpoint:0", "after:checkpoint:0", "reached:checkpoint:0"].map(|at| ("checkpoint", at));
    let restore = ["before:restore:0", "after:restore:0", "reached:restore:0"].map(|at| ("restore", at));
    let restore_on = ["before:restore:1", "after:restore:1", "reached:restore:1"].map(|at| ("restore", at));
    for (verb, place) in [checkpoint, restore, restore_on].into_iter().flatten() {
        apart(&trial);
        let (before, count) = (trial.counter(), of(trial.some_host(), verb).len());
        killed_while(&trial, place, trial.owner(), |asked| {
            // A checkpoint that the loss of the owner came before is told to have failed.
            if let Err(error) = asked.steadfast_text(&[verb, COUNTER]) {
                assert!(verb == "checkpoint" && error.to_string().contains("SF-00"), "{place}: {error}");
            }
        });
        trial.wait_recovered(before.epoch);
        settled(&trial);
        assert_eq!(of(trial.some_host(), verb).len(), count + 1, "{place}: begun once");
    }
}

#[test]
fn changes_of_members_end_though_the_node_they_are_about_is_killed_at_every_step() {
    let trial = with_counter(SPARE + 1);
    for (verb, place) in [
        ("drain", "before"),
        ("drain", "after"),
        ("leave", "before"),
        ("leave", "after"),
        ("leave", "reached"),
    ] {
        settled(&trial);
        let runs = runner(&trial).name().to_owned();
        let victim = trial.bed.hosts().iter().find(|host| host.name() != runs).expect("another member");
        killed_while(&trial, &format!("{place}:{verb}:0"), victim, |asked| {
            // What is dead is no member any more: then there is nothing to drain.
            if let Err(error) = asked.steadfast_text(&[verb, victim.name()]) {
                assert!(verb == "drain" && error.to_string().contains("SF-00"), "{place}: {error}");
            }
        });
        trial.some_host().steadfast_text(&["drain", "--undo", victim.name()]).unwrap();
        trial.wait("it to be a member again", || {
            nodes(&trial)
                .iter()
                .any(|node| node.name == victim.name() && node.state == "member")
                .then_some(())
        });
    }
}

#[test]
fn a_replacement_ends_though_the_old_or_the_new_node_is_killed_at_every_step() {
    for (place, is_new) in [("before", false), ("after", false), ("before", true), ("after", true)] {
        let trial = with_counter_on(builder().hosts(SPARE + 1).standbys(1));
        let spare = trial.bed.host(SPARE);
        trial.wait("the spare to be ready", || {
            let spare = nodes(&trial).into_iter().find(|node| node.name == spare.name())?;
            spare.probation.filter(|probation| probation.ready)
        });
        let runs = runner(&trial).name().to_owned();
        let old = trial.bed.hosts()[..SPARE].iter().find(|host| host.name() != runs).expect("another member");
        killed_while(&trial, &format!("{place}:replace:0"), if is_new { spare } else { old }, |asked| {
            if let Err(error) = asked.steadfast_text(&["replace", old.name(), spare.name()]) {
                assert!(error.to_string().contains("SF-00"), "{place}: {error}");
            }
        });
        settled(&trial);
        let members: Vec<Node> = nodes(&trial).into_iter().filter(|node| node.state == "member").collect();
        assert_eq!(members.len(), SPARE, "{place}: one took the other's place, or none did");
        assert_eq!(of(trial.some_host(), "replace").len(), 1, "{place}");
    }
}

#[test]
fn an_operation_that_fails_says_why_and_one_that_is_not_there_is_refused() {
    let trial = with_counter(SPARE);
    let host = trial.bed.host(0);
    let refused = |arguments: &[&str], code: &str, words: &str| {
        let error = host.steadfast_text(arguments).unwrap_err().to_string();
        assert!(error.contains(code) && error.contains(words), "{arguments:?}: {error}");
    };
    refused(&["operations", "nothing"], "SF-0067", "there is no operation \"nothing\"");
    let before = operations(host).len();
    refused(&["restore", COUNTER, "--checkpoint", "99"], "SF-0016", "has no checkpoint 99");
    assert_eq!(operations(host).len(), before, "what is refused at once is no operation");
    host.steadfast_text(&["checkpoint", COUNTER]).unwrap();
    let all = operations(host);
    let last = all.last().unwrap();
    assert_eq!(
        (last.verb.as_str(), last.state.as_str(), last.asked_at.as_deref()),
        ("checkpoint", "done", Some(host.name()))
    );
    let shown = host.steadfast_text(&["operations", &last.name]).unwrap();
    assert!(shown.contains("a checkpoint of counter is taken") && shown.contains("step 1 of 1"), "{shown}");
    // Its node goes while the cluster is asked: the operation ends, and says what became of it.
    let owner = trial.owner();
    let asked = bystander(&trial, owner);
    owner.power_off().unwrap();
    let error = asked.steadfast_text(&["checkpoint", COUNTER]).err().map(|error| error.to_string());
    // It may be asked for after the recovery, and then it is simply taken.
    assert!(error.as_ref().is_none_or(|error| error.contains("SF-00")), "{error:?}");
}
