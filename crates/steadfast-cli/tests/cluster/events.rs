//! Events on real agents (PROTOCOLS 4.3): who is active for whom, what everybody hears, and what a failure of either end
//! leaves behind.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use steadfast_cli::api::event_types::{EventsStatus, WatchedTopic};
use steadfast_cli::bed::Host;
use steadfast_cli::events::cloud::CloudEvent;

use super::support::{Trial, builder};

/// How many files are written while a listener is handed over again and again; below the rate of their type.
const FILES: usize = 600;

/// `steadfast events --follow` on one host, and what it has told.
struct Listener {
    child: Child,
    told: Arc<Mutex<Vec<CloudEvent>>>,
    reader: Option<JoinHandle<()>>,
}

impl Listener {
    fn start(host: &Host, filter: &str, further: &[&str]) -> Listener {
        let mut command: Command = host.steadfast_command();
        command.args(["-o", "json", "events", "--follow", "--filter", filter]).args(further);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = host.spawn(&mut command).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let (output, noted) = (child.stdout.take().unwrap(), Arc::clone(&told));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let event = serde_json::from_str(&line.unwrap()).unwrap();
                noted.lock().unwrap().push(event);
            }
        });
        Listener { child, told, reader: Some(reader) }
    }

    fn told(&self) -> Vec<CloudEvent> {
        self.told.lock().unwrap().clone()
    }

    fn has(&self, kind: &str, field: &str, value: &str) -> bool {
        let is = |event: &CloudEvent| {
            event.short_type() == kind && event.data.get(field).is_some_and(|at| at == value)
        };
        self.told().iter().any(is)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It may have ended with its host.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// What a host says of a topic; absent where nobody ever registered.
fn topic(host: &Host, wanted: &str) -> Option<WatchedTopic> {
    let status: EventsStatus = host.steadfast_as(&["-o", "json", "events", "status"]).ok()?;
    status.topics.into_iter().find(|topic| topic.topic == wanted)
}

fn wait_listener(trial: &Trial, host: &Host, wanted: &str, state: &str) {
    trial.wait(&format!("the listener of {} for {wanted} to be {state}", host.name()), || {
        let topic = topic(host, wanted);
        let found = topic.as_ref().map_or("off", |topic| topic.listener.as_str());
        (found == state).then_some(())
    });
}

fn wait_active(trial: &Trial, host: &Host, wanted: &str, active: bool) {
    trial.wait(&format!("{} to be active on {}: {active}", wanted, host.name()), || {
        (topic(host, wanted).is_some_and(|topic| topic.active) == active).then_some(())
    });
}

/// A folder of the test, as every host sees it.
fn folder(trial: &Trial) -> PathBuf {
    let folder = trial.bed.base().join("watched");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn write(folder: &Path, name: &str) {
    std::fs::write(folder.join(name), b"x").unwrap();
}

#[test]
fn a_producer_is_active_for_whoever_registered_and_for_nobody_else() {
    let trial = Trial::with(builder());
    let [alpha, beta, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    let folder = folder(&trial);
    let watched = format!("file.change[path={}]", folder.display());
    let filter = format!("type=file.change and path={}", folder.display());
    let on_beta = format!("{filter} and node={}", beta.name());
    for host in trial.bed.hosts() {
        assert!(topic(host, &watched).is_none(), "nobody registered");
    }

    let remote = Listener::start(alpha, &on_beta, &[]);
    wait_listener(&trial, beta, &watched, "registered");
    let seen = topic(beta, &watched).unwrap();
    assert!(seen.active && seen.consumers == 0 && seen.told_to == [alpha.name()], "{seen:?}");
    for host in [alpha, gamma] {
        assert!(!topic(host, &watched).is_some_and(|topic| topic.active), "{}", host.name());
    }
    let local = Listener::start(beta, &on_beta, &[]);
    wait_listener(&trial, beta, &watched, "observing");
    assert!(topic(beta, &watched).unwrap().active);
    write(&folder, "both");
    for listener in [&remote, &local] {
        trial.wait("both to hear of the file", || listener.has("file.change", "name", "both").then_some(()));
    }
    drop(local);
    wait_listener(&trial, beta, &watched, "registered");
    write(&folder, "one");
    trial.wait("the other to hear of the file", || remote.has("file.change", "name", "one").then_some(()));
    drop(remote);
    wait_active(&trial, beta, &watched, false);

    // Without a node it is every node's, and each tells for itself.
    let all = Listener::start(gamma, &filter, &[]);
    for host in trial.bed.hosts() {
        wait_active(&trial, host, &watched, true);
    }
    write(&folder, "all");
    for host in trial.bed.hosts() {
        let source = format!("/nodes/{}", host.name());
        trial.wait(&format!("{} to tell of the file", host.name()), || {
            let told = all.told();
            let is = |event: &CloudEvent| event.source.ends_with(&source) && event.data["name"] == "all";
            told.iter().any(is).then_some(())
        });
    }
    // Its subscriber's machine dies: nobody watches any more.
    gamma.power_off().unwrap();
    for host in [alpha, beta] {
        wait_active(&trial, host, &watched, false);
    }
}

#[test]
fn a_listener_that_is_handed_over_again_and_again_leaves_no_hole() {
    let trial = Trial::with(builder());
    let [alpha, beta, _] = trial.bed.hosts() else { panic!("a bed of three") };
    let folder = folder(&trial);
    let watched = format!("file.change[path={}]", folder.display());
    let filter = format!("type=file.change and path={} and node={}", folder.display(), beta.name());
    let remote = Listener::start(alpha, &filter, &[]);
    wait_listener(&trial, beta, &watched, "registered");
    let writer = {
        let folder = folder.clone();
        std::thread::spawn(move || {
            for number in 0..FILES {
                write(&folder, &format!("file-{number}"));
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        })
    };
    while !writer.is_finished() {
        let local = Listener::start(beta, &filter, &[]);
        wait_listener(&trial, beta, &watched, "observing");
        drop(local);
        wait_listener(&trial, beta, &watched, "registered");
    }
    writer.join().unwrap();
    let last = format!("file-{}", FILES - 1);
    trial.wait("the last file to be heard of", || remote.has("file.change", "name", &last).then_some(()));
    let told = remote.told();
    let sequence: Vec<u64> = told.iter().map(|event| event.sequence.parse().unwrap()).collect();
    assert!(told.iter().all(|event| event.short_type() == "file.change"), "{told:?}");
    assert!(sequence.windows(2).all(|pair| pair[1] == pair[0] + 1), "{sequence:?}");
    for number in 0..FILES {
        let name = format!("file-{number}");
        assert!(told.iter().any(|event| event.data["name"] == name.as_str()), "{name} was not heard of");
    }
}

#[test]
fn what_happens_in_the_cluster_is_heard_on_any_node_and_later() {
    let trial = Trial::with(builder());
    let [alpha, beta, gamma] = trial.bed.hosts() else { panic!("a bed of three") };
    let cluster = Listener::start(
        alpha,
        "type~node.* or type~container.* or type~checkpoint.* or type=user.hello",
        &[],
    );
    wait_active(&trial, gamma, "user", true);
    trial.start_counter(gamma.number());
    trial.wait("the start to be told", || {
        cluster.has("container.started", "container", "counter").then_some(())
    });
    trial.checkpoint();
    trial.wait("the checkpoint to be told", || {
        cluster.has("checkpoint.committed", "container", "counter").then_some(())
    });
    trial.wait("gamma to be followed", || {
        beta.steadfast_text(&["events", "emit", "user.hello", "from=beta"]).ok()?;
        gamma.steadfast_text(&["events", "emit", "user.hello", "from=gamma"]).ok()?;
        (cluster.has("user.hello", "from", "beta") && cluster.has("user.hello", "from", "gamma"))
            .then_some(())
    });
    let epoch = trial.counter().epoch;
    gamma.power_off().unwrap();
    trial.wait("the suspicion to be told", || {
        cluster.has("node.suspected", "member", gamma.name()).then_some(())
    });
    trial
        .wait("the removal to be told", || cluster.has("node.removed", "member", gamma.name()).then_some(()));
    trial.wait("its source to be gone", || {
        let told = cluster.told();
        told.iter().any(|event| event.short_type() == "source.down").then_some(())
    });
    trial.wait_recovered(epoch);
    trial.wait("the restore to be told", || {
        cluster.has("container.restored", "container", "counter").then_some(())
    });
    trial.bring_back(gamma);
    trial.wait("its return to be told", || cluster.has("node.joined", "member", gamma.name()).then_some(()));
    trial.wait("its new life to be told", || {
        let told = cluster.told();
        told.iter().any(|event| event.short_type() == "source.restarted").then_some(())
    });
    // Another node knows the same of it, for whoever asks later.
    let later = beta.steadfast_text(&["-o", "json", "events", "--filter", "type~node.*"]).unwrap();
    let later: Vec<CloudEvent> = later.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let is =
        |event: &CloudEvent| event.short_type() == "node.removed" && event.data["member"] == gamma.name();
    assert!(later.iter().any(is), "{later:?}");

    let refused = |arguments: &[&str], words: &[&str]| {
        let error = alpha.steadfast_text(arguments).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{arguments:?}: {error}");
        }
    };
    // Who changes something leaves word of it, whatever came of it.
    let audit = alpha.steadfast_text(&["-o", "json", "events", "--filter", "type=audit.change"]).unwrap();
    let audit: Vec<CloudEvent> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let is = |event: &&CloudEvent| event.data["what"] == "/v1/containers" && event.data["outcome"] == "done";
    let started = audit.iter().find(is).unwrap();
    assert!(started.source.ends_with(alpha.name()) && started.data["who"] != "", "{started:?}");

    refused(&["events", "--filter", "type=disk.usge"], &["SF-0031", "disk.usage", "^"]);
    refused(&["events", "--filter", "percent>"], &["SF-0031", "^"]);
    refused(&["events", "--filter", "node=nobody"], &["SF-0011"]);
    refused(&["events", "emit", "disk.usage", "percent=99"], &["SF-0031", "user."]);
    refused(&["events", "--since", "yesterday"], &["SF-0031", "since"]);
}
