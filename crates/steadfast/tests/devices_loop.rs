//! Names of real block devices: loop devices over shared images, with the kernel's own announcements.
//!
//! Four nodes see the same images, each through devices of its own in an order of its own, as machines see the disks
//! of one storage network. Needs root; every device is detached and every mount undone also when a test panics.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use steadfast::devices::uevent::{Changed, Uevents};
use steadfast::devices::{Devices, ProofError, Roots, Unidentified, label_bytes};
use steadfast_proto::devices::registry::{Decision, DeviceRows, Sharing, assign, name};
use steadfast_proto::devices::{DeviceId, DeviceKey, DeviceName, DeviceRow, PREFIX, ProofRow};
use steadfast_proto::ids::NodeId;
use tempfile::TempDir;

const IMAGES: usize = 32;
const NODES: usize = 4;

fn run(program: &str, arguments: &[&str]) -> String {
    assert!(rustix::process::geteuid().is_root(), "these tests make loop devices: run them as root");
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A loop device for as long as this lives.
struct Loop(PathBuf);

impl Loop {
    fn attach(image: &Path) -> Loop {
        Loop(run("losetup", &["--find", "--show", image.to_str().unwrap()]).into())
    }

    fn name(&self) -> &str {
        self.0.file_name().unwrap().to_str().unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// A mount for as long as this lives.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn uuid(image: usize) -> u128 {
    0x5ead_fa57_6f0a_4a53_9d4e_2f6b_1c8d_0000 + u128::try_from(image).unwrap()
}

fn id(image: usize) -> DeviceId {
    format!("label:{}", uuid::Uuid::from_u128(uuid(image))).parse().unwrap()
}

fn make_image(folder: &Path, image: usize) -> PathBuf {
    let path = folder.join(format!("image{image}"));
    let mut content = label_bytes(uuid(image));
    content.resize(1 << 20, 0);
    fs::write(&path, content).unwrap();
    path
}

/// One machine: the loop devices that it sees, its table and its links.
struct Node {
    folder: TempDir,
    loops: BTreeMap<usize, Loop>,
}

impl Node {
    fn new(images: &[PathBuf], order: impl Fn(usize) -> usize) -> Node {
        let mut node = Node { folder: tempfile::tempdir().unwrap(), loops: BTreeMap::new() };
        fs::create_dir_all(node.path("sys/class/block")).unwrap();
        for place in 0..images.len() {
            node.attach(order(place), &images[order(place)]);
        }
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn attach(&mut self, image: usize, path: &Path) {
        let device = Loop::attach(path);
        let shown = self.path("sys/class/block").join(device.name());
        symlink(Path::new("/sys/devices/virtual/block").join(device.name()), shown).unwrap();
        self.loops.insert(image, device);
    }

    fn open(&self, state: &Path) -> Devices {
        let roots = Roots { sys: self.path("sys"), ..Roots::default() };
        let mut devices = Devices::open_at(state, &self.path("links"), roots).unwrap();
        devices.scan().unwrap();
        devices
    }

    /// The UUID behind each link.
    fn names(&self) -> BTreeMap<String, String> {
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(self.path("links")).unwrap() {
            let entry = entry.unwrap();
            let mut label = vec![0; 4096];
            std::io::Read::read_exact(&mut fs::File::open(entry.path()).unwrap(), &mut label).unwrap();
            let content = steadfast::devices::probe(&label, &[]);
            let name = entry.file_name().into_string().unwrap();
            names.insert(name, content.identity().unwrap().to_string());
        }
        names
    }
}

/// The catalog's rows, written by the real decisions.
#[derive(Default)]
struct Catalog {
    rows: DeviceRows,
    revision: u64,
}

impl Catalog {
    fn see(&mut self, node: u128, devices: &Devices) {
        let row = steadfast_proto::catalog::encode_row(&devices.seen_row()).unwrap();
        self.revision += 1;
        self.rows.learn(&DeviceKey::Seen(NodeId(node)).encode(), Some((self.revision, &row))).unwrap();
    }

    fn put<T: serde::Serialize>(&mut self, key: &DeviceKey, row: &T) {
        let row = steadfast_proto::catalog::encode_row(row).unwrap();
        self.revision += 1;
        self.rows.learn(&key.encode(), Some((self.revision, &row))).unwrap();
    }

    fn commit(&mut self, decision: Decision) -> DeviceName {
        let Decision::Commit { claim, row } = decision else { panic!("it is new") };
        self.revision += 1;
        for (key, bytes) in claim.puts {
            assert!(self.rows.learn(&key, Some((self.revision, &bytes))).unwrap());
        }
        row.name
    }

    fn give(&mut self, image: usize, text: &str) {
        let decision = name(&self.rows, &id(image), &text.parse().unwrap(), 0).unwrap();
        self.commit(decision);
    }
}

/// The ends of the records of a journal, each a state that a crash may leave.
fn record_ends(journal: &[u8]) -> Vec<usize> {
    let mut ends = vec![0];
    while let Some(length) = journal.get(ends[ends.len() - 1] + 8..).and_then(|rest| rest.first_chunk::<4>())
    {
        ends.push(ends[ends.len() - 1] + 16 + usize::try_from(u32::from_le_bytes(*length)).unwrap());
    }
    ends
}

#[tokio::test(flavor = "current_thread")]
async fn four_nodes_show_32_shared_images_under_the_same_names() {
    let folder = tempfile::tempdir().unwrap();
    let images: Vec<PathBuf> = (0..=IMAGES).map(|image| make_image(folder.path(), image)).collect();
    let mut uevents = Uevents::open().unwrap();
    let orders: [fn(usize) -> usize; NODES] = [
        |place| place,
        |place| IMAGES - 1 - place,
        |place| (place * 13 + 5) % IMAGES,
        |place| (place * 27 + 11) % IMAGES,
    ];
    let mut nodes: Vec<Node> = orders.map(|order| Node::new(&images[..IMAGES], order)).into();
    let mut catalog = Catalog::default();
    for (number, node) in nodes.iter().enumerate() {
        let mut devices = node.open(&node.path("state"));
        assert_eq!(devices.seen().len(), IMAGES);
        catalog.see(number.try_into().unwrap(), &devices);
        // Each node comes with names of its own: rings of 32, of 8, pairs, and none at all.
        let shift = [1, 4, 16, 0][number];
        for image in 0..IMAGES {
            let own = format!("data{}", (image + shift) % IMAGES);
            devices.name_locally(&id(image), &own.parse().unwrap(), PREFIX).unwrap();
        }
        devices.follow().unwrap();
    }
    (0..IMAGES).for_each(|image| catalog.give(image, &format!("data{image}")));
    let expected: BTreeMap<String, String> =
        (0..IMAGES).map(|image| (format!("data{image}"), id(image).to_string())).collect();
    for node in &nodes {
        let mut devices = node.open(&node.path("state"));
        fs::create_dir(node.path("before")).unwrap();
        fs::copy(node.path("state/devices.table"), node.path("before/devices.table")).unwrap();
        let report = devices.apply(&catalog.rows).unwrap();
        assert!(report.deferred.is_empty() && report.refused.is_empty() && report.in_the_way.is_empty());
        drop(devices);
        let journal = fs::read(node.path("state/devices.journal")).unwrap();
        for end in record_ends(&journal) {
            // The state in which a crash after this step leaves the node, under whatever links there are.
            let crashed = node.path("crashed");
            fs::create_dir(&crashed).unwrap();
            fs::copy(node.path("before/devices.table"), crashed.join("devices.table")).unwrap();
            fs::write(crashed.join("devices.journal"), &journal[..end]).unwrap();
            let mut devices = node.open(&crashed);
            devices.follow().unwrap();
            devices.apply(&catalog.rows).unwrap();
            assert!(devices.apply(&catalog.rows).unwrap().steps.is_empty(), "N5");
            assert_eq!(node.names(), expected, "N2 after a crash at byte {end} of the journal");
            fs::remove_dir_all(&crashed).unwrap();
        }
        assert_eq!(node.names(), expected, "N2");
    }
    plug_in_one_more(&mut nodes, &mut catalog, &mut uevents, &images[IMAGES]).await;
}

async fn plug_in_one_more(nodes: &mut [Node], catalog: &mut Catalog, uevents: &mut Uevents, image: &Path) {
    let mut given = BTreeSet::new();
    for (number, node) in nodes.iter_mut().enumerate() {
        node.attach(IMAGES, image);
        let kernel_name = node.loops[&IMAGES].name().to_owned();
        loop {
            let changed = tokio::time::timeout(Duration::from_secs(60), uevents.next()).await;
            match changed.expect("the kernel announces a new device").unwrap() {
                Changed::Names(names) if names.contains(&kernel_name) => break,
                Changed::Names(_) => {}
                Changed::Anything => break,
            }
        }
        let mut devices = node.open(&node.path("state"));
        catalog.see(number.try_into().unwrap(), &devices);
        match assign(&catalog.rows, &id(IMAGES), 0).unwrap() {
            Decision::Already(row) => given.insert(row.name),
            decision @ Decision::Commit { .. } => given.insert(catalog.commit(decision)),
        };
        devices.apply(&catalog.rows).unwrap();
    }
    assert_eq!(given, [format!("{PREFIX}1").parse().unwrap()].into(), "one device, one name");
    let names: Vec<_> = nodes.iter().map(Node::names).collect();
    assert!(names.iter().all(|one| one.len() == IMAGES + 1 && *one == names[0]), "N2: {names:?}");
}

#[test]
fn paths_copies_and_file_systems_of_real_devices() {
    let folder = tempfile::tempdir().unwrap();
    let image = make_image(folder.path(), 0);
    let mut node = Node::new(&[], |place| place);
    node.attach(0, &image);
    node.attach(1, &image);
    let mut devices = node.open(&node.path("state"));
    let [seen] = devices.seen() else { panic!("one file, one device: {:?}", devices.seen()) };
    assert_eq!((seen.identity.as_ref(), seen.paths.len(), seen.bytes), (Ok(&id(0)), 2, 1 << 20));
    let copy = folder.path().join("copy");
    fs::copy(&image, &copy).unwrap();
    node.attach(2, &copy);
    let seen = devices.scan().unwrap();
    assert!(seen.iter().all(
        |seen| matches!(&seen.identity, Err(Unidentified::Duplicate { others, .. }) if others.len() == 3)
    ));
    // The copy gets a file system, and so an identity of its own; then it is used.
    node.loops.remove(&2);
    fs::remove_dir_all(node.path("sys/class/block")).unwrap();
    fs::create_dir_all(node.path("sys/class/block")).unwrap();
    let own = "0b9c5b8e-6f0a-4a53-9d4e-2f6b1c8d7e90";
    run("mkfs.ext4", &["-q", "-F", "-U", own, copy.to_str().unwrap(), "1M"]);
    node.attach(2, &copy);
    let device: DeviceId = format!("ext4:{own}").parse().unwrap();
    assert_eq!(devices.scan().unwrap()[0].identity, Ok(device.clone()));
    let mut catalog = Catalog::default();
    catalog.see(1, &devices);
    devices.name_locally(&device, &"mine".parse().unwrap(), PREFIX).unwrap();
    let target = folder.path().join("mounted");
    fs::create_dir(&target).unwrap();
    let link = node.path("links/mine");
    run("mount", &[link.to_str().unwrap(), target.to_str().unwrap()]);
    let mount = Mount(target);
    let decision = name(&catalog.rows, &device, &"data1".parse().unwrap(), 0).unwrap();
    catalog.commit(decision);
    assert!(devices.scan().unwrap()[0].in_use);
    let report = devices.apply(&catalog.rows).unwrap();
    assert_eq!(report.links.keys().collect::<Vec<_>>(), ["data1", "mine"], "both names, while it is in use");
    assert_eq!(report.deferred.len(), 1);
    drop(mount);
    devices.scan().unwrap();
    let report = devices.apply(&catalog.rows).unwrap();
    assert_eq!(report.links.keys().collect::<Vec<_>>(), ["data1"]);
}

#[test]
fn a_device_is_called_shared_once_it_is_proved_and_private_twins_never_are() {
    let folder = tempfile::tempdir().unwrap();
    let images = [make_image(folder.path(), 0), make_image(folder.path(), 1)];
    let copy = folder.path().join("copy");
    fs::copy(&images[1], &copy).unwrap();
    let mut nodes = [Node::new(&images, |place| place), Node::new(&images[..1], |place| place)];
    // What the second node sees is a copy of the disk that the first one sees.
    nodes[1].attach(1, &copy);
    let mut catalog = Catalog::default();
    let mut devices: Vec<Devices> = nodes.iter().map(|node| node.open(&node.path("state"))).collect();
    for (number, one) in devices.iter().enumerate() {
        catalog.see(number.try_into().unwrap(), one);
    }
    for image in 0..2 {
        assert_eq!(catalog.rows.sharing(&id(image)), Sharing::Claimed);
        let number = devices[0].challenge(&id(image)).unwrap();
        catalog.put(&DeviceKey::Proof(id(image)), &ProofRow { node: NodeId(0), number });
    }
    for (number, one) in devices.iter_mut().enumerate() {
        let own = NodeId(number.try_into().unwrap());
        assert!(one.answer(own, &catalog.rows) && !one.answer(own, &catalog.rows));
        catalog.see(own.0, one);
    }
    assert_eq!(catalog.rows.sharing(&id(0)), Sharing::Proved([NodeId(0), NodeId(1)].into()));
    assert_eq!(catalog.rows.sharing(&id(1)), Sharing::Twins { writer: NodeId(0), reader: NodeId(1) });
    assert!(assign(&catalog.rows, &id(1), 0).unwrap_err().to_string().contains("two devices"));
    // A name from before the twin came leads to neither of them.
    for image in 0..2 {
        let text = format!("data{image}");
        let row =
            DeviceRow { id: id(image), name: text.parse().unwrap(), added_unix_ms: 0, is_retired: false };
        catalog.put(&DeviceKey::Device(id(image)), &row);
    }
    for one in &mut devices {
        assert_eq!(one.apply(&catalog.rows).unwrap().links.keys().collect::<Vec<_>>(), ["data0"]);
    }
    devices[0].hold([id(0)].into());
    assert!(matches!(devices[0].challenge(&id(0)), Err(ProofError::InUse)));
    assert!(matches!(devices[0].challenge(&id(7)), Err(ProofError::Unseen)));
    // A file system was made since the scan: nothing is written into it.
    let own = "0b9c5b8e-6f0a-4a53-9d4e-2f6b1c8d7e90";
    run("mkfs.ext4", &["-q", "-F", "-U", own, nodes[1].loops[&1].0.to_str().unwrap()]);
    assert!(matches!(devices[1].challenge(&id(1)), Err(ProofError::NoRoom)));
}
