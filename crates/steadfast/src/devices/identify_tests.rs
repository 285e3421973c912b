//! Recorded trees: disks of SCSI, NVMe and virtio, with and without several paths, as this kernel lays them out.

use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::devices::probe::label_bytes;

/// A tree like `/sys`, with files in place of device nodes.
pub(in crate::devices) struct Tree {
    folder: TempDir,
}

impl Tree {
    pub(in crate::devices) fn new() -> Tree {
        let tree = Tree { folder: tempfile::tempdir().unwrap() };
        for folder in ["sys/class/block", "sys/devices", "dev"] {
            fs::create_dir_all(tree.path(folder)).unwrap();
        }
        fs::write(tree.path("mountinfo"), "1 0 0:1 / / rw - tmpfs tmpfs rw\n").unwrap();
        fs::write(tree.path("swaps"), "Filename Type Size Used Priority\n").unwrap();
        tree
    }

    pub(in crate::devices) fn roots(&self) -> Roots {
        let path = |name| self.path(name);
        Roots {
            sys: path("sys"),
            dev: path("dev"),
            mountinfo: path("mountinfo"),
            swaps: path("swaps"),
            ..Roots::default()
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn attribute(&self, device: &str, name: &str, value: &[u8]) {
        let path = self.path("sys/class/block").join(device).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value).unwrap();
    }

    /// A disk of 1 MiB with these attributes and this content.
    pub(in crate::devices) fn disk(&self, name: &str, attributes: &[(&str, &str)], content: &[u8]) {
        let place = self.path("sys/devices").join(name).join("block").join(name);
        fs::create_dir_all(&place).unwrap();
        symlink(&place, self.path("sys/class/block").join(name)).unwrap();
        let number = format!("8:{}", fs::read_dir(self.path("dev")).unwrap().count());
        for (attribute, value) in [("size", "2048"), ("dev", &number)].iter().chain(attributes) {
            self.attribute(name, attribute, format!("{value}\n").as_bytes());
        }
        self.write(name, content);
    }

    pub(in crate::devices) fn remove(&self, name: &str) {
        fs::remove_file(self.path("sys/class/block").join(name)).unwrap();
        fs::remove_dir_all(self.path("sys/devices").join(name)).unwrap();
        fs::remove_file(self.path("dev").join(name)).unwrap();
    }

    fn write(&self, name: &str, content: &[u8]) {
        let mut bytes = content.to_vec();
        bytes.resize(1 << 20, 0);
        fs::write(self.path("dev").join(name), bytes).unwrap();
    }

    fn partition(&self, disk: &str, name: &str, number: u32) {
        let place = self.path("sys/class/block").join(disk).join(name);
        fs::create_dir_all(&place).unwrap();
        symlink(place.canonicalize().unwrap(), self.path("sys/class/block").join(name)).unwrap();
        for (attribute, value) in
            [("size", "1024".to_owned()), ("dev", format!("9:{number}")), ("partition", number.to_string())]
        {
            self.attribute(name, attribute, value.as_bytes());
        }
    }

    /// Makes `whole` one of `parts`, as the device mapper does.
    fn hold(&self, whole: &str, parts: &[&str]) {
        for part in parts {
            self.attribute(part, &format!("holders/{whole}"), b"");
            self.attribute(whole, &format!("slaves/{part}"), b"");
        }
    }

    fn scan(&self) -> Vec<Seen> {
        scan(&self.roots()).unwrap()
    }
}

fn seen<'a>(all: &'a [Seen], name: &str) -> &'a Seen {
    all.iter().find(|seen| seen.kernel_name == name).unwrap_or_else(|| panic!("no {name} in {all:?}"))
}

fn id_of(all: &[Seen], name: &str) -> String {
    seen(all, name).identity.as_ref().map_or_else(ToString::to_string, ToString::to_string)
}

/// SCSI's identification page with one registered name.
fn page_83(tail: u8) -> Vec<u8> {
    vec![0, 0x83, 0, 12, 1, 3, 0, 8, 0x50, 0, 0xc5, 0, 0xa1, 0xb2, 0xc3, tail]
}

fn ext4() -> Vec<u8> {
    let mut image = vec![0; 4096];
    let block = &mut image[1024..2048];
    block[0] = 16;
    block[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
    block[0x4c] = 1;
    block[0x68..0x78].copy_from_slice(&[7; 16]);
    image
}

#[test]
fn scsi_disks_are_known_by_their_worldwide_names_and_partitions_by_their_disks() {
    let tree = Tree::new();
    tree.disk("sda", &[("device/vendor", "SEAGATE "), ("device/model", "ST4000NM0023    ")], &[]);
    tree.attribute("sda", "device/vpd_pg83", &page_83(1));
    tree.partition("sda", "sda1", 1);
    tree.disk(
        "sdb",
        &[("device/vendor", "ATA"), ("device/model", "ST500"), ("device/wwid", "t10.ATA ST500 Z3")],
        &[],
    );
    tree.attribute("sdb", "device/vpd_pg80", b"\0\x80\0\x08Z3P0A1B2");
    tree.disk("sr0", &[], &[]);
    tree.disk("ram0", &[], &[]);
    let all = tree.scan();
    assert_eq!(all.len(), 3, "{all:?}");
    assert_eq!(id_of(&all, "sda"), "naa:5000c500a1b2c301");
    assert_eq!(id_of(&all, "sda1"), "naa:5000c500a1b2c301-part1");
    assert_eq!(id_of(&all, "sdb"), "serial:ATA_ST500_Z3P0A1B2");
    assert!(!seen(&all, "sda").in_use);
    fs::write(tree.path("mountinfo"), "30 1 9:1 / /mnt rw - ext4 /dev/sda1 rw\n").unwrap();
    let all = tree.scan();
    assert!(seen(&all, "sda1").in_use && seen(&all, "sda").in_use && !seen(&all, "sdb").in_use);
}

#[test]
fn nvme_name_spaces_are_known_by_their_own_names() {
    let tree = Tree::new();
    let controller =
        [("device/serial", "S3EVNX0K123456      "), ("device/model", "Samsung SSD"), ("nsid", "1")];
    tree.disk(
        "nvme0n1",
        &[controller[0], controller[1], controller[2], ("eui", "00 25 38 8b 01 23 45 67")],
        &[],
    );
    let second = [controller[0], controller[1], ("nsid", "2")];
    tree.disk("nvme0n2", &second, &[]);
    // The kernel made nvme1n1 of two paths and shows these for completeness.
    let guid = ("nguid", "0025388b-0123-4567-89ab-cdef01234567");
    tree.disk("nvme1n1", &[guid], &[]);
    for path in ["nvme1c0n1", "nvme1c1n1"] {
        tree.disk(path, &[guid, ("hidden", "1")], &[]);
    }
    let all = tree.scan();
    assert_eq!(all.len(), 3, "{all:?}");
    assert_eq!(id_of(&all, "nvme0n1"), "eui:0025388b01234567");
    assert_eq!(id_of(&all, "nvme0n2"), "serial:Samsung_SSD_S3EVNX0K123456_2", "two name spaces, two devices");
    assert_eq!(id_of(&all, "nvme1n1"), "nguid:0025388b0123456789abcdef01234567");
    assert_eq!(seen(&all, "nvme1n1").paths, ["nvme1n1", "nvme1c0n1", "nvme1c1n1"]);
}

#[test]
fn several_paths_are_one_device_with_and_without_the_device_mapper() {
    let tree = Tree::new();
    for path in ["sda", "sdb", "sdaa"] {
        tree.disk(path, &[], &ext4());
        tree.attribute(path, "device/vpd_pg83", &page_83(1));
        tree.partition(path, &format!("{path}2"), 2);
    }
    let all = tree.scan();
    assert_eq!(all.len(), 2, "{all:?}");
    assert_eq!(seen(&all, "sda").paths, ["sda", "sdb", "sdaa"]);
    assert_eq!(seen(&all, "sda2").paths, ["sda2", "sdb2", "sdaa2"]);
    tree.disk("dm-0", &[("dm/uuid", "mpath-35000c500a1b2c301")], &ext4());
    tree.hold("dm-0", &["sda", "sdb", "sdaa"]);
    let all = tree.scan();
    let whole = seen(&all, "dm-0");
    assert_eq!(whole.identity.as_ref().unwrap().as_str(), "naa:5000c500a1b2c301");
    assert_eq!(whole.paths, ["dm-0", "sda", "sdb", "sdaa"]);
    assert!(!whole.in_use, "being made of paths is no use");
    tree.disk("dm-1", &[("dm/uuid", "LVM-AbC-1")], &[]);
    tree.hold("dm-1", &["dm-0"]);
    let all = tree.scan();
    assert!(seen(&all, "dm-0").in_use);
    assert_eq!(id_of(&all, "dm-1"), "mapped:LVM-AbC-1");
}

#[test]
fn devices_that_claim_one_name_and_are_not_one_are_all_refused() {
    let tree = Tree::new();
    for (name, size, serial) in
        [("sda", "2048", "Z3P0A1B2"), ("sdb", "2048", "Z3P0A1B2"), ("sdc", "2048", "Z3P0A1B3")]
    {
        tree.disk(name, &[("size", size), ("device/serial", serial)], &[]);
    }
    for name in ["sdd", "sde"] {
        tree.disk(name, &[("size", if name == "sdd" { "2048" } else { "4096" })], &[]);
        tree.attribute(name, "device/vpd_pg83", &page_83(2));
    }
    for name in ["vda", "vdb"] {
        tree.disk(name, &[("serial", "")], &ext4());
    }
    tree.disk("vdc", &[("serial", "0000")], &[]);
    tree.disk("vdd", &[("serial", "")], &[]);
    let all = tree.scan();
    for (first, second) in [("sda", "sdb"), ("sdd", "sde"), ("vda", "vdb")] {
        for name in [first, second] {
            let Err(Unidentified::Duplicate { others, .. }) = &seen(&all, name).identity else {
                panic!("{name}")
            };
            assert_eq!(others, &[first, second]);
        }
    }
    assert_eq!(id_of(&all, "sdc"), "serial:Z3P0A1B3");
    assert!(id_of(&all, "vdc").contains("'0000' is one that many devices share"));
    assert!(id_of(&all, "vdd").contains("no content that identifies it"));
    assert!(matches!(seen(&all, "vdd").identity, Err(Unidentified::Nothing)));
}

#[test]
fn two_disks_of_one_name_with_different_content_are_no_paths() {
    let tree = Tree::new();
    tree.disk("sda", &[], &ext4());
    tree.disk("sdb", &[], &label_bytes(9));
    for name in ["sda", "sdb"] {
        tree.attribute(name, "device/vpd_pg83", &page_83(1));
    }
    assert!(tree.scan().iter().all(|seen| matches!(seen.identity, Err(Unidentified::Duplicate { .. }))));
}

#[test]
fn loop_devices_over_one_file_are_one_device_and_over_a_copy_two() {
    let tree = Tree::new();
    let backed = |name: &str, file: &str| {
        tree.disk(
            name,
            &[("loop/backing_file", file), ("loop/offset", "0"), ("loop/sizelimit", "0")],
            &label_bytes(5),
        );
    };
    backed("loop1", "/images/a");
    backed("loop2", "/images/a");
    let all = tree.scan();
    assert_eq!(all.len(), 1);
    assert_eq!(id_of(&all, "loop1"), "label:00000000-0000-0000-0000-000000000005");
    assert_eq!(seen(&all, "loop1").paths, ["loop1", "loop2"]);
    backed("loop3", "/images/copy of a");
    assert!(tree.scan().iter().all(|seen| matches!(seen.identity, Err(Unidentified::Duplicate { .. }))));
    tree.remove("loop3");
    backed("loop3", "/images/a (deleted)");
    let all = tree.scan();
    assert!(all.iter().all(|seen| seen.identity.is_err()), "another file may have the path: {all:?}");
}

#[test]
fn what_holds_two_file_systems_or_a_damaged_one_is_refused_unless_the_hardware_knows_better() {
    let tree = Tree::new();
    let mut both = ext4();
    both[..4].copy_from_slice(b"XFSB");
    both[4..8].copy_from_slice(&4096u32.to_be_bytes());
    both[32..48].fill(3);
    tree.disk("vda", &[], &both);
    let mut damaged = label_bytes(4);
    damaged[20] ^= 1;
    tree.disk("vdb", &[], &damaged);
    tree.disk("vdc", &[("serial", "DATA-0042-X")], &both);
    let all = tree.scan();
    assert!(id_of(&all, "vda").contains("ext4:") && id_of(&all, "vda").contains("xfs:"), "{all:?}");
    assert!(id_of(&all, "vdb").contains("its label structure is damaged"));
    assert_eq!(id_of(&all, "vdc"), "serial:DATA-0042-X");
    assert_eq!(seen(&all, "vdc").marks.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_order_of_attachment_ever_shows_the_wrong_device(
        order in Just((0..14u8).collect::<Vec<_>>()).prop_shuffle(),
        present in proptest::collection::vec(any::<bool>(), 14),
    ) {
        // What each disk is: its true number is in its content, behind everything that identifies it.
        let tree = Tree::new();
        let mut names = BTreeMap::new();
        for (slot, disk) in order.into_iter().enumerate().filter(|(_, disk)| present[usize::from(*disk)]) {
            let name = format!("sd{}", char::from(b'a' + u8::try_from(slot).unwrap()));
            let mut content = vec![0; 80 << 10];
            content[79 << 10] = disk;
            match disk {
                // Worldwide names, good serials, labels; then pairs that share a serial, a label; then worthless ones.
                0..=2 => tree.disk(&name, &[("wwid", &format!("naa.5000c500a1b2c3{disk:02x}"))], &content),
                3..=4 => tree.disk(&name, &[("serial", &format!("SN-77-{disk}X"))], &content),
                5..=6 | 9..=10 => {
                    let label = label_bytes(u128::from(if disk > 8 { 99 } else { disk }));
                    content[..label.len()].copy_from_slice(&label);
                    tree.disk(&name, &[], &content);
                }
                7..=8 => tree.disk(&name, &[("serial", "SAME-SERIAL-1")], &content),
                11 => tree.disk(&name, &[("serial", "0000")], &content),
                _ => tree.disk(&name, &[("serial", "")], &content),
            }
            names.insert(disk, name);
        }
        let all = tree.scan();
        prop_assert_eq!(all.len(), names.len());
        for seen in all {
            let (disk, _) = names.iter().find(|(_, name)| **name == seen.kernel_name).unwrap();
            let twin = match disk { 7 => Some(8), 8 => Some(7), 9 => Some(10), 10 => Some(9), _ => None };
            let expected = match disk {
                0..=2 => Some(format!("naa:5000c500a1b2c3{disk:02x}")),
                3..=4 => Some(format!("serial:SN-77-{disk}X")),
                5..=6 => Some(format!("label:{}", uuid::Uuid::from_u128(u128::from(*disk)))),
                11.. => None,
                _ if twin.is_some_and(|twin| names.contains_key(&twin)) => None,
                7..=8 => Some("serial:SAME-SERIAL-1".to_owned()),
                _ => Some(format!("label:{}", uuid::Uuid::from_u128(99))),
            };
            prop_assert_eq!(seen.identity.ok().map(|id| id.to_string()), expected);
        }
    }
}
