//! Decoding against images that the real tools made, and against every damage.

use super::*;
use proptest::prelude::*;

const IMAGES: &str = include_str!("../../tests/fixtures/superblocks.txt");

struct Image {
    name: &'static str,
    id: &'static str,
    start: Vec<u8>,
    end: Vec<u8>,
}

fn images() -> Vec<Image> {
    let mut images: Vec<Image> = Vec::new();
    for line in IMAGES.lines().filter(|line| !line.starts_with('#')) {
        if let Some(rest) = line.strip_prefix("image ") {
            let (name, id) = rest.split_once(' ').unwrap();
            images.push(Image { name, id, start: vec![0; START_BYTES], end: vec![0; END_BYTES] });
            continue;
        }
        let image = images.last_mut().unwrap();
        let (place, hex) = line.split_once(' ').unwrap();
        let place: isize = place.parse().unwrap();
        let (bytes, place) = match usize::try_from(place) {
            Ok(place) => (&mut image.start, place),
            Err(_) => (&mut image.end, END_BYTES - place.unsigned_abs()),
        };
        for (index, pair) in hex.as_bytes().chunks(2).enumerate() {
            bytes[place + index] = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        }
    }
    images
}

fn image(name: &str) -> Image {
    images().into_iter().find(|image| image.name == name).unwrap()
}

fn identity(start: &[u8], end: &[u8]) -> Result<String, Unclear> {
    probe(start, end).identity().map(ToString::to_string)
}

#[test]
fn what_the_real_tools_write_is_recognised() {
    let images = images();
    assert_eq!(images.len(), 10);
    for image in images {
        assert_eq!(identity(&image.start, &[]).as_deref(), Ok(image.id), "{}", image.name);
        assert!(!wants_end(&image.start), "{}", image.name);
    }
}

#[test]
fn a_gpt_whose_first_copy_is_damaged_is_read_from_its_second() {
    let mut gpt = image("gpt");
    gpt.start[512 + 60] ^= 1;
    assert!(wants_end(&gpt.start));
    assert_eq!(identity(&gpt.start, &gpt.end).as_deref(), Ok(gpt.id));
    let last = END_BYTES - 512;
    gpt.end[last + 60] ^= 1;
    assert_eq!(identity(&gpt.start, &gpt.end), Err(Unclear::Damaged(Source::Gpt)));
    // A file system left over behind a damaged table must not become the disk's identity.
    gpt.start[1024..2048].copy_from_slice(&image("ext4").start[1024..2048]);
    assert_eq!(identity(&gpt.start, &gpt.end), Err(Unclear::Damaged(Source::Gpt)));
}

#[test]
fn what_has_a_checksum_and_is_damaged_identifies_nothing() {
    for (name, place, source) in [
        ("ext4", 1024 + 0x68, Source::Ext4),
        ("xfs", 32, Source::Xfs),
        ("btrfs", 0x10000 + 0x10b, Source::Btrfs),
        ("lvm", 512 + 32, Source::Lvm),
    ] {
        let mut image = image(name);
        image.start[place] ^= 1;
        assert_eq!(identity(&image.start, &[]), Err(Unclear::Damaged(source)), "{name}");
    }
}

#[test]
fn two_file_systems_at_once_are_not_weighed() {
    let mut both = image("btrfs");
    both.start[1024..2048].copy_from_slice(&image("ext4").start[1024..2048]);
    assert_eq!(identity(&both.start, &[]), Err(Unclear::Several));
    assert_eq!(probe(&both.start, &[]).marks.len(), 2);
}

#[test]
fn our_label_counts_where_nothing_else_does() {
    let uuid = 0x0b9c_5b8e_6f0a_4a53_9d4e_2f6b_1c8d_7e90;
    let mut start = vec![0; START_BYTES];
    assert_eq!(identity(&start, &[]), Err(Unclear::Empty));
    let label = label_bytes(uuid);
    start[..label.len()].copy_from_slice(&label);
    assert_eq!(identity(&start, &[]).as_deref(), Ok("label:0b9c5b8e-6f0a-4a53-9d4e-2f6b1c8d7e90"));
    start[1024..2048].copy_from_slice(&image("ext4").start[1024..2048]);
    assert!(identity(&start, &[]).unwrap().starts_with("ext4:"));
    let mut start = vec![0; START_BYTES];
    start[..label.len()].copy_from_slice(&label);
    start[label.len() - 1] ^= 1;
    assert_eq!(identity(&start, &[]), Err(Unclear::Damaged(Source::Label)));
}

#[test]
fn luks_headers_are_recognised() {
    let mut start = vec![0; START_BYTES];
    start[..6].copy_from_slice(b"LUKS\xba\xbe");
    assert_eq!(identity(&start, &[]), Err(Unclear::Damaged(Source::Luks)));
    start[168..204].copy_from_slice(b"5b9c5b8e-6f0a-4a53-9d4e-2f6b1c8d7e90");
    assert_eq!(identity(&start, &[]).as_deref(), Ok("luks:5b9c5b8e-6f0a-4a53-9d4e-2f6b1c8d7e90"));
}

#[test]
fn images_cut_anywhere_are_read_without_a_panic() {
    for image in images() {
        for end in (0..=4096).chain([0x10000, 0x10100, 0x10fff]) {
            let _ = probe(&image.start[..end], &image.end[..end.min(END_BYTES)]);
        }
    }
}

proptest! {
    #[test]
    fn damage_never_makes_a_panic(which in 0usize..10, hits in proptest::collection::vec((0usize..4096, any::<u8>()), 1..20), far in any::<bool>()) {
        let image = images().swap_remove(which);
        let mut start = image.start;
        for (place, byte) in hits {
            start[if far { 0x10000 + place } else { place }] = byte;
        }
        let content = probe(&start, &image.end);
        let _ = content.identity();
        for mark in &content.marks {
            let id = mark.to_string();
            prop_assert!(id.parse::<steadfast_proto::devices::DeviceId>().is_ok(), "{id}");
        }
    }
}
