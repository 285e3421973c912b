//! Device names with real agents: shared images behind loop devices, each host with devices and an order of its own.
//!
//! Loop devices are the machine's, so each host's configuration says which of them are its own. Every device is detached and
//! removed also when a test panics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use steadfast::devices::{Devices, Roots, label_bytes, probe};
use steadfast_cli::api::device_types::{Device, DeviceReport};
use steadfast_cli::bed::{Bed, Host, wait_for};
use steadfast_proto::devices::{DeviceId, PREFIX};
use tempfile::TempDir;

use super::support::{PATIENCE, builder};

const IMAGES: usize = 32;
/// Loop devices of one host.
const SLOTS: usize = 40;
/// Removes the loop device whose number is the argument (LOOP_CTL_REMOVE).
const REMOVE: &str =
    "import fcntl, os, sys; fcntl.ioctl(os.open('/dev/loop-control', os.O_RDWR), 0x4C81, int(sys.argv[1]))";

/// Images, and the loop devices of each host over them.
struct Shelf {
    folder: TempDir,
    first: usize,
    attached: BTreeSet<usize>,
}

impl Shelf {
    fn new() -> Shelf {
        // Other tests of this machine have other process ids.
        let first = 10_000 + usize::try_from(std::process::id()).unwrap() % 1000 * 256;
        Shelf { folder: tempfile::tempdir().unwrap(), first, attached: BTreeSet::new() }
    }

    fn image(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("image{number}"))
    }

    fn make(&self, number: usize) {
        let mut content = label_bytes(uuid(number));
        content.resize(1 << 20, 0);
        fs::write(self.image(number), content).unwrap();
    }

    /// The kernel's name of a host's loop device.
    fn slot(&self, host: &Host, slot: usize) -> String {
        format!("loop{}", self.first + host.number() * SLOTS + slot)
    }

    fn attach(&mut self, host: &Host, slot: usize, image: &Path) {
        let number = self.first + host.number() * SLOTS + slot;
        self.attached.insert(number);
        run("losetup", &[&format!("/dev/loop{number}"), image.to_str().unwrap()]);
    }

    fn detach(&mut self, host: &Host, slot: usize) {
        let number = self.first + host.number() * SLOTS + slot;
        run("losetup", &["--detach", &format!("/dev/loop{number}")]);
    }

    /// Lets a host look at its own loop devices, and no others.
    fn show(&self, host: &Host) {
        let names: Vec<String> = (0..SLOTS).map(|slot| format!("\"{}\"", self.slot(host, slot))).collect();
        let config = fs::read_to_string(host.config()).unwrap();
        let shown = config.replace("include = []", &format!("include = [{}]", names.join(", ")));
        assert_ne!(shown, config);
        fs::write(host.config(), shown).unwrap();
    }

    /// Gives a host names of its own, as one that was set up before it joined has them.
    fn name_locally(&self, host: &Host, shift: usize) {
        let include = (0..SLOTS).map(|slot| self.slot(host, slot)).collect();
        let roots = Roots { include, ..Roots::default() };
        let mut devices = Devices::open_at(&host.data(), &host.device_links(), roots).unwrap();
        assert_eq!(devices.scan().unwrap().len(), IMAGES);
        for image in 0..IMAGES {
            let name = format!("data{}", (image + shift) % IMAGES).parse().unwrap();
            devices.name_locally(&id(image), &name, PREFIX).unwrap();
        }
        devices.follow().unwrap();
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        for number in &self.attached {
            let device = format!("/dev/loop{number}");
            let _ = Command::new("losetup").args(["--detach", &device]).output();
            let _ = Command::new("python3").args(["-c", REMOVE, &number.to_string()]).output();
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn uuid(image: usize) -> u128 {
    0x5ead_fa57_6f0a_4a53_9d4e_2f6b_1c8d_0000 + u128::try_from(image).unwrap()
}

fn id(image: usize) -> DeviceId {
    format!("label:{}", uuid::Uuid::from_u128(uuid(image))).parse().unwrap()
}

/// What the device behind each name says of itself, read through the link.
fn names(host: &Host) -> BTreeMap<String, String> {
    let read = |entry: fs::DirEntry| {
        let mut label = vec![0; 4096];
        std::io::Read::read_exact(&mut fs::File::open(entry.path()).ok()?, &mut label).ok()?;
        let id = probe(&label, &[]).identity().ok()?.to_string();
        Some((entry.file_name().into_string().ok()?, id))
    };
    let entries = fs::read_dir(host.device_links()).into_iter().flatten().flatten();
    entries.filter_map(read).collect()
}

fn wait_names(host: &Host, expected: &BTreeMap<String, String>) {
    let waited = wait_for(&format!("the names on {}", host.name()), PATIENCE, || {
        (names(host) == *expected).then_some(())
    });
    waited.unwrap_or_else(|error| {
        let said = host.steadfast_text(&["device", "list"]);
        panic!("{error}: {:?}\n{said:?}\n{}", names(host), host.log_tail(60))
    });
}

fn report(host: &Host) -> DeviceReport {
    host.steadfast_as(&["-o", "json", "device", "list"]).unwrap()
}

fn device(host: &Host, id: &DeviceId) -> Option<Device> {
    report(host).devices.into_iter().find(|device| device.id == id.to_string())
}

fn wait_device(host: &Host, id: &DeviceId, what: &str, condition: impl Fn(&Device) -> bool) {
    let waited =
        wait_for(&format!("{id} to be {what}"), PATIENCE, || device(host, id).filter(&condition).map(drop));
    waited.unwrap_or_else(|error| panic!("{error}: {:?}\n{}", report(host), host.log_tail(60)));
}

/// A cluster of which only the first agent runs; the others have joined.
fn found(bed: &Bed) {
    let first = bed.host(0);
    let config = first.config().display().to_string();
    first.steadfast_text(&["init", "trial", "--config", &config]).unwrap();
    first.start_agent().unwrap();
    first.wait_ready().unwrap();
    for host in bed.hosts().iter().skip(1) {
        host.join_through(first).unwrap();
    }
}

fn start(bed: &Bed) {
    for host in bed.hosts().iter().filter(|host| host.agent_pid().is_none()) {
        host.start_agent().unwrap();
        host.wait_ready().unwrap();
    }
    bed.wait_members(bed.hosts().len()).unwrap();
}

#[test]
fn four_nodes_with_names_of_their_own_agree_on_32_shared_devices_although_their_agents_are_killed() {
    let mut shelf = Shelf::new();
    let bed = builder().hosts(4).networks(1).build().unwrap();
    (0..=IMAGES).for_each(|image| shelf.make(image));
    let orders: [fn(usize) -> usize; 4] = [
        |slot| slot,
        |slot| IMAGES - 1 - slot,
        |slot| (slot * 13 + 5) % IMAGES,
        |slot| (slot * 27 + 11) % IMAGES,
    ];
    for (host, order) in bed.hosts().iter().zip(orders) {
        for slot in 0..IMAGES {
            let image = shelf.image(order(slot));
            shelf.attach(host, slot, &image);
        }
    }
    // Rings of 32, of 32 the other way, of 8, and pairs; only the first one looks at devices until all have names.
    let sees = |host: &Host| {
        shelf.show(host);
        shelf.name_locally(host, [1, IMAGES - 1, 4, 16][host.number()]);
    };
    sees(bed.host(0));
    found(&bed);
    start(&bed);
    for image in 0..IMAGES {
        let name = format!("data{image}");
        bed.host(0).steadfast_text(&["device", "name", &id(image).to_string(), &name]).unwrap();
    }
    let mut expected: BTreeMap<String, String> =
        (0..IMAGES).map(|image| (format!("data{image}"), id(image).to_string())).collect();
    wait_names(bed.host(0), &expected);
    // Each of the others finds all names at once; it is killed while it follows, a little further each time.
    for host in bed.hosts().iter().skip(1) {
        host.kill_agent().unwrap();
        sees(host);
        for changes in [1, 6, 18] {
            let before = names(host);
            host.start_agent().unwrap();
            wait_for(&format!("{changes} changes of links on {}", host.name()), PATIENCE, || {
                let now = names(host);
                let changed = before.iter().filter(|(name, id)| now.get(*name) != Some(id)).count();
                (changed >= changes || now == expected).then_some(())
            })
            .unwrap();
            host.kill_agent().unwrap();
        }
        host.start_agent().unwrap();
        host.wait_ready().unwrap();
    }
    start(&bed);
    bed.hosts().iter().for_each(|host| wait_names(host, &expected));
    // They prove to each other that each is one device, by themselves.
    for image in 0..IMAGES {
        wait_device(bed.host(0), &id(image), "proved shared", |device| {
            device.sharing == "shared" && device.nodes.len() == 4
        });
    }
    // One more, at all of them: it gets the next automatic name.
    let image = shelf.image(IMAGES);
    bed.hosts().iter().for_each(|host| shelf.attach(host, IMAGES, &image));
    expected.insert(format!("{PREFIX}1"), id(IMAGES).to_string());
    bed.hosts().iter().for_each(|host| wait_names(host, &expected));
    // And it is gone from one of them.
    shelf.detach(bed.host(3), IMAGES);
    expected.remove(&format!("{PREFIX}1"));
    wait_names(bed.host(3), &expected);
    for kind in ["device.appeared", "device.removed"] {
        let filter = format!("type={kind} and node={}", bed.host(3).name());
        wait_for(&format!("{kind} to be told of it"), PATIENCE, || {
            let told = bed.host(0).steadfast_text(&["events", "--filter", &filter]).ok()?;
            told.contains(id(IMAGES).as_str()).then_some(())
        })
        .unwrap();
    }
    names_stay_without_a_catalog(&bed, &expected);
}

/// Alone after a start, with no majority anywhere, a node still shows its names.
fn names_stay_without_a_catalog(bed: &Bed, expected: &BTreeMap<String, String>) {
    bed.hosts().iter().for_each(|host| host.kill_agent().unwrap());
    let last = bed.host(3);
    fs::remove_dir_all(last.device_links()).unwrap();
    last.start_agent().unwrap();
    wait_names(last, expected);
    let refused = last.steadfast_raw(&["device", "unname", "data1"]).unwrap();
    assert_eq!(refused.status, Some(4), "no quorum: {}", refused.stderr);
    wait_names(last, expected);
}

/// What a command says when it refuses, with its status.
fn refused(host: &Host, words: &[&str]) -> (Option<i32>, String) {
    let finished = host.steadfast_raw(words).unwrap();
    assert!(finished.stdout.is_empty(), "{}", finished.stdout);
    (finished.status, finished.stderr)
}

#[test]
fn every_name_that_can_not_be_given_is_refused_with_its_reason_and_nothing_is_changed() {
    let mut shelf = Shelf::new();
    let bed = builder().hosts(2).networks(1).build().unwrap();
    (0..5).for_each(|image| shelf.make(image));
    let copy = |image: usize, to: &str| {
        let path = shelf.folder.path().join(to);
        fs::copy(shelf.image(image), &path).unwrap();
        path
    };
    let (clone, twin) = (copy(2, "clone"), copy(3, "twin"));
    let (alpha, beta) = (bed.host(0), bed.host(1));
    let images: Vec<PathBuf> = (0..4).map(|image| shelf.image(image)).collect();
    for host in bed.hosts() {
        shelf.show(host);
        shelf.attach(host, 0, &images[0]);
        shelf.attach(host, 1, &images[1]);
    }
    // A snapshot beside its origin on one node, and a private twin on each.
    shelf.attach(alpha, 2, &images[2]);
    shelf.attach(alpha, 3, &clone);
    shelf.attach(alpha, 4, &images[3]);
    shelf.attach(beta, 4, &twin);
    found(&bed);
    // Given before the twin came: it leads to neither of the two afterwards.
    alpha.steadfast_text(&["device", "name", &id(3).to_string(), "doubtful"]).unwrap();
    start(&bed);
    let auto = |image| {
        wait_device(alpha, &id(image), "named automatically", |device| device.name.is_some());
        device(alpha, &id(image)).unwrap().name.unwrap()
    };
    let (first, second) = (auto(0), auto(1));
    assert_eq!([&first, &second].map(|name| name.starts_with(PREFIX)), [true; 2]);
    alpha.steadfast_text(&["device", "rename", &first, "data1"]).unwrap();
    alpha.steadfast_text(&["device", "unname", &second]).unwrap();
    wait_device(alpha, &id(3), "known for twins", |device| device.sharing == "twins");
    let before = state(alpha);
    let slot = |slot| shelf.slot(alpha, slot);
    let (unseen, seen, alike, twins) =
        (id(4).to_string(), id(1).to_string(), id(2).to_string(), id(3).to_string());
    let (snapshot, own) = (slot(3), slot(1));
    #[rustfmt::skip]
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["name", &unseen, "data9"], 3, &["SF-0047", &unseen, "no node sees", "device list"]),
        (&["name", "sdzz", "data9"], 3, &["SF-0047", "sdzz", "device list"]),
        (&["name", &alike, "data9"], 5, &["SF-0048", "alpha", "copies of a disk"]),
        (&["name", &snapshot, "data9"], 5, &["SF-0048", &snapshot, "copies of a disk"]),
        (&["rename", "doubtful", "data9"], 5, &["SF-0048", "alpha", "beta", "two devices"]),
        (&["name", &twins, "data9"], 5, &["SF-0049", "doubtful"]),
        (&["name", &seen, "data1"], 5, &["SF-0049", "data1", "is taken"]),
        (&["rename", "data1", &second], 5, &["SF-0049", &second, "is retired"]),
        (&["name", &own, "disk-77"], 2, &["SF-0050", "disk-77", "reserved"]),
        (&["name", &own, "no/name"], 2, &["SF-0050", "no/name", "a device name"]),
        (&["name", "naa:", "data9"], 2, &["SF-0050", "naa:", "a device id"]),
        (&["name", "--local", &own], 2, &["SF-0050", "--local"]),
        (&["rename", "data77", "data9"], 3, &["SF-0047", "data77"]),
        (&["unname", "data77"], 3, &["SF-0047", "data77"]),
        (&["unname", &first], 3, &["SF-0047", &first]),
        (&["label", "/nowhere/disk"], 1, &["/nowhere/disk"]),
    ];
    for (words, status, expected) in cases {
        let (ended, said) = refused(alpha, &[&["device"], *words].concat());
        assert_eq!(ended, Some(*status), "{words:?}: {said}");
        for word in *expected {
            assert!(said.contains(word), "{words:?} does not say {word:?}: {said}");
        }
        assert_eq!(state(alpha), before, "{words:?} changed something");
    }
    // What is in doubt has no link; the rest has.
    for host in bed.hosts() {
        wait_names(host, &[("data1".to_owned(), id(0).to_string())].into());
    }
    local_names(&bed, &own, &seen);
    shelf.detach(beta, 4);
    wait_device(alpha, &id(3), "free of its twin", |device| device.sharing == "one-node");
    let found = |name: &str| names(alpha).contains_key(name);
    wait_for("the name of what has no twin any more", PATIENCE, || found("doubtful").then_some(())).unwrap();
}

/// A name that one node gives by itself is its own until the cluster gives the device another.
fn local_names(bed: &Bed, kernel_name: &str, id: &str) {
    let (alpha, beta) = (bed.host(0), bed.host(1));
    alpha.steadfast_text(&["device", "name", "--local", kernel_name, "scratch"]).unwrap();
    assert_eq!(names(alpha).get("scratch").map(String::as_str), Some(id));
    assert!(!names(beta).contains_key("scratch"));
    beta.steadfast_text(&["device", "name", id, "data2"]).unwrap();
    let renamed = |host: &Host| {
        let names = names(host);
        (names.get("data2").map(String::as_str) == Some(id) && !names.contains_key("scratch")).then_some(())
    };
    bed.hosts().iter().for_each(|host| wait_for("the cluster's name", PATIENCE, || renamed(host)).unwrap());
}

/// Everything that lasts about names.
fn state(host: &Host) -> Vec<(String, Option<String>, Option<String>)> {
    report(host).devices.into_iter().map(|device| (device.id, device.name, device.retired)).collect()
}

/// Reads the label of its device again and again, holding it open for an instant only: a checkpoint carries no open device.
const READER: &str = "
import os, sys, time
while True:
    device = os.open('/dev/steadfast/data1', os.O_RDWR)
    found = os.pread(device, 4, 0)
    os.close(device)
    print(found.decode(), flush=True)
    time.sleep(0.3)
";

#[test]
fn a_container_gets_its_device_and_goes_on_only_where_that_is_seen() {
    let mut shelf = Shelf::new();
    let bed = builder().networks(1).build().unwrap();
    (0..2).for_each(|image| shelf.make(image));
    let (shared, private) = (shelf.image(0), shelf.image(1));
    let (alpha, beta, gamma) = (bed.host(0), bed.host(1), bed.host(2));
    bed.hosts().iter().for_each(|host| shelf.show(host));
    // Beta and gamma see it, under different kernel names; alpha does not.
    shelf.attach(beta, 3, &shared);
    shelf.attach(gamma, 7, &shared);
    shelf.attach(alpha, 0, &private);
    bed.init_cluster("trial").unwrap();
    wait_device(alpha, &id(0), "named automatically", |device| device.name.is_some());
    alpha.steadfast_text(&["device", "rename", "disk-1", "data1"]).unwrap();
    alpha.steadfast_text(&["device", "name", &shelf.slot(alpha, 0), "mine"]).unwrap();
    let program = ["--every", "never", "--", "/usr/bin/python3", "-c", READER];
    let run = |words: &[&'static str]| [&["run", "--name", "reader"], words, &program].concat();
    #[rustfmt::skip]
    let wrong: &[(&[&'static str], i32, &str)] = &[
        (&["--device", "data7"], 3, "no device is named data7"),
        (&["--device", "data1", "--node", "alpha"], 1, "surely sees the device data1"),
        (&["--device", "data1", "--device", "mine"], 1, "sees all the devices"),
        (&["--device", "no/name"], 2, "--device"),
        (&["--domain", "rack-9"], 1, "failure domain rack-9"),
    ];
    for (words, status, expected) in wrong {
        let (ended, said) = refused(alpha, &run(words));
        assert!(ended == Some(*status) && said.contains(expected), "{words:?}: {ended:?} {said}");
    }
    alpha.steadfast_text(&run(&["--device", "data1"])).unwrap();
    let running = bed.wait_container("reader", "running", |one| one.state == "running").unwrap();
    assert_eq!(running.spec.require_devices, ["data1"]);
    let owner = bed.host_named(&running.node).unwrap();
    assert_ne!(owner.name(), "alpha");
    wait_read(&bed);
    // A container keeps its device under the name that it asks for.
    alpha.steadfast_text(&["device", "rename", "data1", "archive"]).unwrap();
    let (ended, said) = refused(alpha, &["device", "unname", "archive"]);
    assert!(ended == Some(5) && said.contains("container reader asks for"), "{said}");
    wait_device(alpha, &id(0), "in use where the container is", |device| {
        device.nodes.iter().any(|node| node.in_use && node.node == running.node)
    });
    wait_for("a checkpoint", PATIENCE, || {
        alpha.steadfast_raw(&["checkpoint", "reader"]).ok().filter(|one| one.success()).map(drop)
    })
    .unwrap();
    owner.power_off().unwrap();
    let recovered = bed
        .wait_container("reader", "running elsewhere", |one| {
            one.state == "running" && one.epoch > running.epoch
        })
        .unwrap();
    let expected = if running.node == "beta" { "gamma" } else { "beta" };
    assert_eq!(recovered.node, expected, "the only other node that sees the device");
    wait_read(&bed);
}

/// Waits until the program has read its device once more.
fn wait_read(bed: &Bed) {
    let host = bed.hosts().iter().find(|host| host.has_answering_agent()).unwrap();
    let count = || -> usize {
        let said = host.steadfast_raw(&["logs", "reader"]).map(|one| one.stdout).unwrap_or_default();
        said.matches("SFlb").count()
    };
    let before = count();
    let waited = wait_for("another read of the device", PATIENCE, || (count() > before).then_some(()));
    waited.unwrap_or_else(|error| {
        let said = host.steadfast_raw(&["logs", "reader"]);
        let shown: Option<Value> = host.steadfast(&["-o", "json", "ps"]).ok();
        panic!("{error}: {said:?} {shown:?}")
    });
}
