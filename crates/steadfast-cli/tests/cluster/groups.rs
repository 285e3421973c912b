//! A process group whose row lies in the catalog of real agents: `steadfast replace --group` under continuous writes, a kill
//! after each, and what is refused.
//!
//! The mirrored key-value program runs in the hosts' name spaces. Of a killed process the test tells the others, as whoever
//! supervises it would; of a host without power the agents do.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use steadfast_cli::api::group_types::{Group, GroupMember};
use steadfast_cli::bed::Host;
use steadfast_proto::ids::NodeId;

use super::support::{Trial, builder};

const HOSTS: usize = 5;
const REPLACEMENTS: usize = 20;
/// Where members listen to one another; people's port is the next one.
const PORT: u16 = 7500;

/// How much time a writer leaves between two writes.
const WRITE_EVERY: Duration = Duration::from_millis(1);

/// The program under test, where Cargo puts an example of the workspace.
fn example() -> PathBuf {
    let steadfast = Path::new(env!("CARGO_BIN_EXE_steadfast"));
    let program = steadfast.with_file_name("examples").join("mirrored_kv");
    assert!(program.exists(), "build it first: cargo build -p steadfast --example mirrored_kv");
    program
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The processes of the group, by the number of their host.
struct Members<'a> {
    trial: &'a Trial,
    ids: Vec<String>,
    lives: Vec<u64>,
    running: Vec<Option<Process>>,
}

impl<'a> Members<'a> {
    fn new(trial: &'a Trial) -> Members<'a> {
        let nodes = trial.some_host().nodes().unwrap();
        let id = |host: &Host| nodes.iter().find(|node| node.name == host.name()).unwrap().id.clone();
        let hosts = trial.bed.hosts();
        let running = hosts.iter().map(|_| None).collect();
        Members { trial, ids: hosts.iter().map(id).collect(), lives: vec![0; hosts.len()], running }
    }

    fn start(&mut self, host: usize, role: &str) -> GroupMember {
        self.lives[host] += 1;
        let (there, life) = (self.trial.bed.host(host), self.lives[host]);
        let book = self.ids.iter().zip(self.trial.bed.hosts());
        let book: Vec<String> =
            book.map(|(id, host)| format!("{id}={}:{PORT}", host.addresses()[0].ip())).collect();
        let log = self.trial.bed.base().join(format!("kv-{}-{life}.log", there.name()));
        let mut command = Command::new(example());
        command.args(["member", &self.ids[host], &life.to_string(), &book.join(","), role, "--agent"]);
        command
            .arg(there.socket())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(log).unwrap());
        self.running[host] = Some(Process(there.spawn(&mut command).unwrap()));
        GroupMember { node: there.name().to_owned(), id: self.ids[host].clone(), incarnation: life }
    }

    /// Starts both founders; returns when the group is there.
    fn found(&mut self) -> Group {
        let role = format!("found:{},{}", self.ids[0], self.ids[1]);
        self.start(0, &role);
        self.start(1, &role);
        self.trial.wait("the founded group", || self.group())
    }

    /// Starts a process that waits for a place; returns when the cluster knows it.
    fn start_standby(&mut self, host: usize) -> GroupMember {
        let member = self.start(host, "standby");
        self.wait_standby(&member);
        member
    }

    fn wait_standby(&self, member: &GroupMember) {
        let waits = || self.group().filter(|group| group.standbys.contains(member));
        self.trial.wait(&format!("{member:?} to wait for a place"), waits);
    }

    fn group(&self) -> Option<Group> {
        let host = self.trial.bed.hosts().iter().find(|host| host.has_answering_agent())?;
        let groups: Vec<Group> = host.steadfast_as(&["groups", "-o", "json"]).ok()?;
        groups.into_iter().find(|group| group.name == "kv")
    }

    fn wait_view(&self, view: u64, why: &str) -> Group {
        let mut last = None;
        let found = self.trial.try_wait(|| {
            last = self.group();
            last.clone().filter(|group| group.view >= view)
        });
        let Some(group) = found else { panic!("no view {view} {why}: {last:?}") };
        assert_eq!((group.view, group.change.as_str()), (view, why), "{group:?}");
        group
    }

    fn kill(&mut self, host: usize) {
        self.running[host] = None;
    }

    /// A host with power on which no process of the group runs; each in its turn.
    fn spare(&self, turn: usize) -> usize {
        let is_free = |host: &usize| self.running[*host].is_none() && self.trial.bed.host(*host).is_on();
        (turn..turn + HOSTS).map(|host| host % HOSTS).find(is_free).unwrap()
    }

    fn host_of(&self, member: &GroupMember) -> usize {
        self.ids.iter().position(|id| *id == member.id).unwrap()
    }

    /// Says something to every running process; who does not listen yet, or any more, is told again.
    fn tell(&self, line: &str) {
        for host in (0..self.ids.len()).filter(|host| self.running[*host].is_some()) {
            let _ = Client::default().ask(self.trial, host, line);
        }
    }
}

/// One connection to one process, made when it is needed.
#[derive(Default)]
struct Client {
    host: usize,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    fn ask(&mut self, trial: &Trial, host: usize, line: &str) -> io::Result<String> {
        if self.host != host || self.stream.is_none() {
            let there = trial.bed.host(host);
            let address = SocketAddr::new(there.addresses()[0].ip(), PORT + 1);
            let stream = there.with_spaces(|spaces| spaces.tcp_connect(address, Duration::from_secs(1)));
            let stream = stream.map_err(io::Error::other)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.set_nodelay(true)?;
            self.host = host;
            self.stream = Some(BufReader::new(stream));
        }
        let answer = self.stream.as_mut().ok_or(io::ErrorKind::NotConnected.into()).and_then(|stream| {
            stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
            let mut answer = String::new();
            match stream.read_line(&mut answer)? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(answer.trim_end().to_owned()),
            }
        });
        if answer.is_err() {
            self.stream = None;
        }
        answer
    }
}

/// Writes one key after the other until told to stop; gives the keys that were acknowledged.
fn write(
    trial: &Trial,
    ids: &[String],
    writer: usize,
    ended: &AtomicBool,
    count: &AtomicUsize,
) -> Vec<String> {
    let numbers: Vec<String> = ids.iter().map(|id| id.parse::<NodeId>().unwrap().0.to_string()).collect();
    let (mut client, mut acknowledged, mut to) = (Client::default(), Vec::new(), 0);
    while !ended.load(Ordering::Relaxed) {
        let key = format!("w{writer}-{}", acknowledged.len());
        let next = (to + 1) % ids.len();
        to = match client.ask(trial, to, &format!("PUT {key} of-{key}")) {
            Ok(answer) if answer.starts_with("DONE") => {
                acknowledged.push(key);
                count.fetch_add(1, Ordering::Relaxed);
                // A lone member takes writes faster than a candidate can follow a state that grows as fast.
                std::thread::sleep(WRITE_EVERY);
                to
            }
            Ok(answer) => {
                let leader = answer.strip_prefix("LEADER ");
                let leader = numbers.iter().position(|number| Some(number.as_str()) == leader);
                leader.filter(|leader| *leader != to).unwrap_or(next)
            }
            Err(_) => {
                std::thread::sleep(Duration::from_millis(5));
                next
            }
        };
    }
    acknowledged
}

/// Ends the writers, also when the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn twenty_replacements_of_a_groups_members_lose_no_acknowledged_write() {
    let trial = Trial::with(builder().hosts(HOSTS));
    let mut members = Members::new(&trial);
    let group = members.found();
    let (ended, count, ids) = (AtomicBool::new(false), AtomicUsize::new(0), members.ids.clone());
    let (acknowledged, group) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                scope.spawn({
                    let (trial, ids, ended, count) = (&trial, &ids, &ended, &count);
                    move || write(trial, ids, writer, ended, count)
                })
            })
            .collect();
        let ends = Ends(&ended);
        let mut group = group;
        for round in 0..REPLACEMENTS {
            let before = count.load(Ordering::Relaxed);
            trial.wait("writes", || (count.load(Ordering::Relaxed) >= before + 20).then_some(()));
            group = replace_and_kill(&mut members, &group, round);
        }
        drop(ends);
        let acknowledged: Vec<String> =
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        (acknowledged, group)
    });
    println!("{} writes acknowledged in {} views", acknowledged.len(), group.view);
    assert_eq!(group.view, 1 + 3 * REPLACEMENTS as u64);
    for member in &group.members {
        let (mut client, host) = (Client::default(), members.host_of(member));
        for key in &acknowledged {
            assert_eq!(
                client.ask(&trial, host, &format!("GET {key}")).unwrap(),
                format!("VALUE of-{key}"),
                "{member:?}"
            );
        }
    }
}

/// One member for one that waits, by the command; then another member fails, and a new one is added. Three views.
fn replace_and_kill(members: &mut Members<'_>, group: &Group, round: usize) -> Group {
    let trial = members.trial;
    let victim = group.members[round % 2].clone();
    let candidate = members.start_standby(members.spare(round));
    let replace = ["replace", "--group", "kv", &written(&victim), &candidate.node, "-o", "json"];
    let replaced: Group = trial.some_host().steadfast_as(&replace).unwrap();
    assert_eq!((replaced.view, replaced.change.as_str()), (group.view + 1, "replaced"), "{replaced:?}");
    assert!(replaced.members.contains(&candidate) && !replaced.members.contains(&victim), "{replaced:?}");
    assert_eq!((replaced.members.len(), replaced.request.is_none()), (2, true), "{replaced:?}");

    let killed = replaced.members[(round / 2) % 2].clone();
    let host = members.host_of(&killed);
    members.kill(members.host_of(&victim));
    let loses_power = round % 7 == 6;
    if loses_power {
        trial.bed.host(host).power_off().unwrap();
    }
    members.kill(host);
    let told = !loses_power;
    let failed = trial.try_wait(|| {
        if told {
            members.tell(&format!("FENCED {}/{}", killed.id, killed.incarnation));
        }
        members.group().filter(|group| group.view > replaced.view)
    });
    let failed = failed.unwrap_or_else(|| panic!("no view without {killed:?} after {replaced:?}"));
    assert_eq!((failed.view, failed.change.as_str()), (replaced.view + 1, "failed"), "{failed:?}");
    assert_eq!(failed.members.len(), 1, "{failed:?}");

    let added = members.start(members.spare(round + 2), "add");
    let full = trial.try_wait(|| {
        members.tell(&format!("PASS {}/{}", added.id, added.incarnation));
        members.group().filter(|group| group.view > failed.view)
    });
    let full = full.unwrap_or_else(|| panic!("no view with {added:?} after {failed:?}"));
    assert_eq!(
        (full.view, full.change.as_str(), full.members.len()),
        (failed.view + 1, "added", 2),
        "{full:?}"
    );
    if loses_power {
        let host = trial.bed.host(host);
        host.power_on().unwrap();
        host.start_agent().unwrap();
        host.wait_ready().unwrap();
        trial.bed.wait_members(HOSTS).unwrap();
    }
    println!(
        "round {round}: {} for {}, then without {}: view {}",
        written(&candidate),
        written(&victim),
        written(&killed),
        full.view
    );
    full
}

#[test]
fn a_replacement_in_a_group_is_done_or_refused_and_then_nothing_has_changed() {
    let trial = Trial::new();
    let mut members = Members::new(&trial);
    let ask = |arguments: &[&str]| trial.some_host().steadfast_raw(arguments).unwrap();
    let lone = ask(&["replace", "--group", "kv", "alpha", "gamma"]);
    assert_eq!(lone.status, Some(3), "{lone:?}");
    let group = members.found();
    let refused = [
        (["replace", "--group", "kw", "alpha", "gamma"], 3, "did you mean \"kv\""),
        (["replace", "--group", "Kv!", "alpha", "gamma"], 2, "is not a name"),
        (["replace", "--group", "kv", "delta", "gamma"], 1, "no full member"),
        (["replace", "--group", "kv", "alpha/9", "gamma"], 1, "no full member"),
        (["replace", "--group", "kv", "alpha", "gamma"], 1, "does not wait"),
        (["replace", "--group", "kv", "alpha", "alpha"], 1, "its own place"),
        (["replace", "--group", "kv", "alpha", "beta"], 1, "full member already"),
    ];
    for (arguments, status, why) in refused {
        let finished = ask(&arguments);
        assert!(
            finished.status == Some(status) && finished.stderr.contains(why),
            "{arguments:?}: {finished:?}"
        );
    }
    assert_eq!(members.group().unwrap().row, group.row);

    // One that waits, and then stands still: nothing is done in time, and its request is withdrawn.
    let candidate = members.start_standby(2);
    signal(&members, 2, Signal::STOP);
    let late = ask(&["replace", "--group", "kv", "alpha", "gamma", "--timeout", "2s"]);
    assert!(late.status == Some(1) && late.stderr.contains("withdrawn"), "{late:?}");
    let after = members.group().unwrap();
    assert_eq!((after.view, after.members), (group.view, group.members.clone()));
    assert_eq!(after.request.unwrap().state, "withdrawn");

    // It comes to itself, and back in its next life, which can be named.
    signal(&members, 2, Signal::CONT);
    members.wait_standby(&GroupMember { incarnation: candidate.incarnation + 1, ..candidate });
    let done = ask(&["replace", "--group", "kv", "alpha", "gamma"]);
    assert!(done.success() && done.stdout.contains("gamma/2 took the place of alpha/1"), "{done:?}");
    members.wait_view(group.view + 1, "replaced");
}

fn signal(members: &Members<'_>, host: usize, signal: Signal) {
    let id = members.running[host].as_ref().unwrap().0.id();
    kill_process(Pid::from_raw(i32::try_from(id).unwrap()).unwrap(), signal).unwrap();
}

fn written(member: &GroupMember) -> String {
    format!("{}/{}", member.node, member.incarnation)
}
