//! Names, table and links together, over recorded trees: the world ends between any two changes of a file or link.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use steadfast_proto::catalog::encode_row;
use steadfast_proto::devices::{DeviceKey, DeviceNameRow, DeviceRow, PREFIX};
use tempfile::TempDir;

use super::identify::tests::Tree;
use super::store::faults;
use super::*;

const COUNT: usize = 12;

fn uuid(disk: usize) -> u128 {
    0x0b9c_5b8e_6f0a_4a53_9d4e_2f6b_1c8d_0000 + u128::try_from(disk).unwrap()
}

fn id(disk: usize) -> DeviceId {
    format!("label:{}", uuid::Uuid::from_u128(uuid(disk))).parse().unwrap()
}

fn name(text: &str) -> DeviceName {
    text.parse().unwrap()
}

/// The rows that name disk `n` as `names(n)`.
fn rows(names: impl IntoIterator<Item = (usize, String)>) -> DeviceRows {
    let mut rows = DeviceRows::default();
    let mut learn =
        |key: DeviceKey, bytes: Vec<u8>| assert!(rows.learn(&key.encode(), Some((1, &bytes))).unwrap());
    for (disk, text) in names {
        let row = DeviceRow { id: id(disk), name: name(&text), added_unix_ms: 0, is_retired: false };
        learn(DeviceKey::Device(id(disk)), encode_row(&row).unwrap());
        learn(DeviceKey::Name(name(&text)), encode_row(&DeviceNameRow { device: id(disk) }).unwrap());
    }
    rows
}

/// A machine that sees [`COUNT`] disks in an order of its own.
struct Machine {
    tree: Tree,
    state: TempDir,
    links: TempDir,
    slots: BTreeMap<usize, String>,
}

impl Machine {
    fn new(slot_of: impl Fn(usize) -> usize) -> Machine {
        let mut machine = Machine {
            tree: Tree::new(),
            state: tempfile::tempdir().unwrap(),
            links: tempfile::tempdir().unwrap(),
            slots: BTreeMap::new(),
        };
        for disk in 0..COUNT {
            machine.attach(disk, slot_of(disk));
        }
        machine
    }

    fn attach(&mut self, disk: usize, slot: usize) {
        let name = format!("loop{slot}");
        self.tree.disk(&name, &[("diskseq", &format!("{}", 100 + disk))], &label_bytes(uuid(disk)));
        self.slots.insert(disk, name);
    }

    fn open(&self) -> Result<Devices, DevicesError> {
        Devices::open_at(self.state.path(), self.links.path(), self.tree.roots())
    }

    fn opened(&self) -> Devices {
        let mut devices = self.open().unwrap();
        devices.scan().unwrap();
        devices
    }

    /// Which disk each link leads to.
    fn shown(&self) -> BTreeMap<String, usize> {
        let mut shown = BTreeMap::new();
        for entry in std::fs::read_dir(self.links.path()).unwrap() {
            let path = entry.unwrap().path();
            let node = std::fs::read_link(&path).unwrap();
            let slot = node.file_name().unwrap().to_str().unwrap().to_owned();
            let disk = self.slots.iter().find(|(_, name)| **name == slot).unwrap().0;
            shown.insert(path.file_name().unwrap().to_str().unwrap().to_owned(), *disk);
        }
        shown
    }

    fn name_locally(&self, bears: impl Fn(usize) -> usize) {
        let mut devices = self.opened();
        for disk in 0..COUNT {
            devices.name_locally(&id(disk), &name(&format!("data{}", bears(disk))), PREFIX).unwrap();
        }
        devices.follow().unwrap();
    }
}

fn data(disks: impl IntoIterator<Item = usize>) -> impl Iterator<Item = (usize, String)> {
    disks.into_iter().map(|disk| (disk, format!("data{disk}")))
}

#[test]
fn a_ring_of_names_survives_the_end_of_the_world_between_any_two_changes() {
    let machine = Machine::new(|disk| (disk * 7 + 3) % COUNT);
    let expected: BTreeMap<String, usize> = data(0..COUNT).map(|(disk, name)| (name, disk)).collect();
    let rows = rows(data(0..COUNT));
    let bears = |disk| (disk + 1) % COUNT;
    let mut left = 0;
    let mut is_done = false;
    while !is_done {
        std::fs::remove_dir_all(machine.state.path()).unwrap();
        machine.name_locally(bears);
        let mut devices = machine.opened();
        faults::allow(Some(left));
        is_done = devices.apply(&rows).is_ok();
        faults::allow(None);
        drop(devices);
        for (name, disk) in machine.shown() {
            // Each name leads to the disk that bore it or to the one that is to, or is a temporary or unfinished one.
            let Some(number) = name.strip_prefix("data") else { continue };
            let number: usize = number.parse().unwrap();
            assert!(disk == number || bears(disk) == number, "after {left} changes {name} leads to {disk}");
        }
        // The agent comes back: first without the catalog, and the world ends once more on the way.
        faults::allow(Some(left % 5));
        let _ = machine.open().and_then(|mut devices| devices.scan().map(|_| ()));
        faults::allow(None);
        let mut devices = machine.opened();
        devices.follow().unwrap();
        let table = devices.table().entries().iter().map(|(id, entry)| (entry.name.to_string(), id.clone()));
        let shown = machine.shown().into_iter().map(|(name, disk)| (name, id(disk)));
        assert_eq!(shown.collect::<BTreeMap<_, _>>(), table.collect(), "the links are the table's");
        devices.apply(&rows).unwrap();
        assert_eq!(machine.shown(), expected, "N2 after {left} changes");
        let again = devices.apply(&rows).unwrap();
        assert!(again.steps.is_empty() && again.deferred.is_empty(), "N5");
        left += 1;
    }
    assert!(left > 36, "every step was cut: {left}");
}

#[test]
fn names_stay_while_the_catalog_is_away_and_links_follow_the_disk() {
    let mut machine = Machine::new(|disk| disk);
    let mut devices = machine.opened();
    devices.apply(&rows(data(0..COUNT))).unwrap();
    assert_eq!(devices.node(&name("data5")), Some(machine.tree.roots().dev.join("loop5").as_path()));
    machine.tree.remove("loop5");
    machine.slots.remove(&5);
    devices.scan().unwrap();
    devices.follow().unwrap();
    assert!(!machine.shown().contains_key("data5"), "no link to nothing");
    machine.tree.remove("loop6");
    // Disk 5 comes back under a kernel name that was another's.
    machine.attach(5, 6);
    machine.slots.remove(&6);
    drop(devices);
    let mut devices = machine.opened();
    let report = devices.follow().unwrap();
    assert_eq!(report.links.get("data5"), Some(&machine.tree.roots().dev.join("loop6")));
    assert!(!report.links.contains_key("data6") && report.steps.is_empty());
    assert_eq!(devices.table().entries().len(), COUNT, "a name waits for its disk");
}

#[test]
fn a_copy_of_a_disk_takes_the_name_from_both_until_it_is_gone() {
    let mut machine = Machine::new(|disk| disk);
    let mut devices = machine.opened();
    let rows = rows(data(0..COUNT));
    devices.apply(&rows).unwrap();
    let original = machine.slots.clone();
    machine.attach(5, 77);
    devices.scan().unwrap();
    let report = devices.apply(&rows).unwrap();
    let refused: Vec<&str> = report.refused.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(refused, ["loop5", "loop77"]);
    assert!(report.refused[0].1.to_string().contains("copies of a disk"), "{:?}", report.refused[0].1);
    assert_eq!(devices.seen_row().duplicates, [id(5)].into());
    assert!(!report.links.contains_key("data5") && devices.node(&name("data5")).is_none());
    machine.tree.remove("loop77");
    machine.slots = original;
    devices.scan().unwrap();
    devices.apply(&rows).unwrap();
    assert_eq!(machine.shown().get("data5"), Some(&5));
}

#[test]
fn a_disk_that_a_container_uses_answers_to_both_names_until_it_is_released() {
    let machine = Machine::new(|disk| disk);
    let mut devices = machine.opened();
    devices.apply(&rows(data(0..COUNT))).unwrap();
    devices.hold([id(5)].into());
    let renamed =
        rows(data(0..COUNT).map(|(disk, name)| (disk, if disk == 5 { "other".into() } else { name })));
    let report = devices.apply(&renamed).unwrap();
    assert_eq!(report.deferred.len(), 1);
    let shown = machine.shown();
    assert_eq!((shown.get("data5"), shown.get("other")), (Some(&5), Some(&5)));
    devices.hold(BTreeSet::new());
    let report = devices.apply(&renamed).unwrap();
    assert!(report.deferred.is_empty());
    let shown = machine.shown();
    assert_eq!((shown.get("data5"), shown.get("other")), (None, Some(&5)));
}

#[test]
fn what_somebody_put_under_a_name_is_left_alone_and_reported() {
    let machine = Machine::new(|disk| disk);
    let place: PathBuf = machine.links.path().join("data3");
    std::fs::write(&place, "somebody's").unwrap();
    let mut devices = machine.opened();
    let report = devices.apply(&rows(data(0..COUNT))).unwrap();
    assert_eq!(report.in_the_way, [InTheWay { path: place.clone() }]);
    assert_eq!(report.links.len(), COUNT - 1);
    std::fs::remove_file(&place).unwrap();
    assert_eq!(devices.follow().unwrap().links.len(), COUNT);
    let _: &Path = &std::fs::read_link(&place).unwrap();
}
