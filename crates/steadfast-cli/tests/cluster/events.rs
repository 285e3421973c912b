//! Events on real agents (PROTOCOLS 4.3): who is active for whom, what everybody hears, and what a failure of either end
//! leaves behind.

use std::fs::{File, remove_file};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use steadfast_cli::api::client::Client;
use steadfast_cli::api::event_client::EventsOf;
use steadfast_cli::api::event_types::{EventsStatus, WatchedTopic};
use steadfast_cli::bed::Host;
use steadfast_cli::events::cloud::CloudEvent;
use tokio::sync::oneshot;

use super::support::{PATIENCE, Trial, builder};

/// How many events flow while a listener is handed over again and again, and how many each second at most.
const CHANGES: u64 = 60_000;
const PER_SECOND: u32 = 12_000;
/// How many of them may be on their way: on a machine that is busy with other things they come more slowly.
const AHEAD_MAX: u64 = 2_000;

/// `steadfast events --follow` on one host, and what it has told.
pub(super) struct Listener {
    child: Child,
    told: Arc<Mutex<Vec<CloudEvent>>>,
    reader: Option<JoinHandle<()>>,
}

impl Listener {
    pub(super) fn start(host: &Host, filter: &str, further: &[&str]) -> Listener {
        Listener::start_with(host, host.steadfast_command(), filter, further)
    }

    /// With a command line of its own up to the socket.
    pub(super) fn start_with(host: &Host, mut command: Command, filter: &str, further: &[&str]) -> Listener {
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

    pub(super) fn told(&self) -> Vec<CloudEvent> {
        self.told.lock().unwrap().clone()
    }

    pub(super) fn has(&self, kind: &str, field: &str, value: &str) -> bool {
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

/// What a [`Follower`] heard: types, and why there is a gap, with the numbers of their sequence.
#[derive(Default)]
struct Heard {
    all: Mutex<Vec<(String, u64)>>,
    more: Condvar,
}

impl Heard {
    fn all(&self) -> Vec<(String, u64)> {
        self.all.lock().unwrap().clone()
    }

    fn wait_count(&self, count: u64) {
        let all = self.all.lock().unwrap();
        let (all, waited) =
            self.more.wait_timeout_while(all, PATIENCE, |all| (all.len() as u64) < count).unwrap();
        assert!(!waited.timed_out(), "{} of {count} events were heard, the last {:?}", all.len(), all.last());
    }

    /// Holds the caller back until then.
    fn pace(&self, until: Instant) {
        let all = self.all.lock().unwrap();
        let left = until.saturating_duration_since(Instant::now());
        drop(self.more.wait_timeout_while(all, left, |_| true).unwrap());
    }
}

/// A Rust program that follows events by the agent of a host.
struct Follower {
    heard: Arc<Heard>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    fn start(host: &Host, filter: &str) -> Follower {
        let (heard, (end, ended)) = (Arc::<Heard>::default(), oneshot::channel::<()>());
        let (client, noted) = (Client::new(host.socket()), Arc::clone(&heard));
        let wanted = EventsOf { filter: Some(filter.to_owned()), since: None };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let follow = async {
                let mut events = pin!(client.follow_events(wanted));
                while let Some(event) = events.next().await {
                    let event = event.unwrap();
                    let reason = event.data.get("reason").map(|why| format!(": {why}")).unwrap_or_default();
                    let one = (format!("{}{reason}", event.short_type()), event.sequence.parse().unwrap());
                    noted.all.lock().unwrap().push(one);
                    noted.more.notify_all();
                }
            };
            runtime.block_on(async {
                tokio::select! { () = follow => {}, _ = ended => {} }
            });
        });
        Follower { heard, end: Some(end), thread: Some(thread) }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a host says of a topic; absent where nobody ever registered.
pub(super) fn topic(host: &Host, wanted: &str) -> Option<WatchedTopic> {
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

pub(super) fn wait_active(trial: &Trial, host: &Host, wanted: &str, active: bool) {
    trial.wait(&format!("{} to be active on {}: {active}", wanted, host.name()), || {
        (topic(host, wanted).is_some_and(|topic| topic.active) == active).then_some(())
    });
}

/// A folder of the test, as every host sees it.
pub(super) fn folder(trial: &Trial) -> PathBuf {
    let folder = trial.bed.base().join("watched");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

pub(super) fn write(folder: &Path, name: &str) {
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
fn ten_thousand_events_a_second_go_through_hand_overs_without_a_hole() {
    let trial = Trial::with(builder());
    let [alpha, beta, _] = trial.bed.hosts() else { panic!("a bed of three") };
    let folder = folder(&trial);
    let watched = format!("file.change[path={}]", folder.display());
    let filter = format!("type=file.change and path={} and node={}", folder.display(), beta.name());
    let remote = Follower::start(alpha, &filter);
    wait_listener(&trial, beta, &watched, "registered");
    let started = Instant::now();
    let writer = {
        let (folder, heard) = (folder.clone(), Arc::clone(&remote.heard));
        std::thread::spawn(move || {
            let mut hundred = Instant::now();
            for number in 0..CHANGES {
                let file = folder.join(format!("file-{}", number / 2));
                // Each is one event: made, removed, made, removed.
                if number % 2 == 0 {
                    drop(File::create(file).unwrap())
                } else {
                    remove_file(file).unwrap()
                }
                if number % 100 == 99 {
                    heard.wait_count(number.saturating_sub(AHEAD_MAX));
                    heard.pace(hundred + Duration::from_secs(100) / PER_SECOND);
                    // What a busy machine held up is not made up for: that would be more than a topic's rate.
                    hundred = Instant::now();
                }
            }
        })
    };
    let mut visits = 0;
    while !writer.is_finished() {
        let local = Follower::start(beta, &filter);
        wait_listener(&trial, beta, &watched, "observing");
        // After the last event there is nothing more to hear.
        trial.wait("it to hear some too", || {
            (local.heard.all.lock().unwrap().len() >= 100 || writer.is_finished()).then_some(())
        });
        drop(local);
        wait_listener(&trial, beta, &watched, "registered");
        visits += 1;
    }
    writer.join().unwrap();
    remote.heard.wait_count(CHANGES);
    let took = started.elapsed();
    let heard = remote.heard.all();
    eprintln!(
        "{CHANGES} events in {took:.1?}, {:.0} each second, through {} hand-overs",
        f64::from(u32::try_from(CHANGES).unwrap()) / took.as_secs_f64(),
        2 * visits
    );
    assert!(visits > 0);
    assert!(
        heard.iter().all(|(kind, _)| kind == "file.change"),
        "{:?}",
        heard.iter().find(|(kind, _)| kind != "file.change")
    );
    assert!(heard.windows(2).all(|pair| pair[1].1 == pair[0].1 + 1), "a hole, or an event twice");
    assert_eq!(heard.len() as u64, CHANGES);
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
