//! What the first bytes of a device say of it: partition tables, file systems, swap, LVM, and our own label.
//!
//! Pure: it is given bytes and gives marks. It never guesses: a structure whose checksum is wrong is damage and not
//! absence, because a device that falls back to another mark would change its identity. Several file systems at
//! once are said so, and the caller refuses. Layouts are those that the tools of each format write (tested on
//! images that those tools made). Read next: `identify`, which weighs these marks against the hardware's.

use std::fmt;

use crate::envelope::Format;

/// How much of a device's start is looked at: btrfs has its superblock at 64 KiB.
pub(super) const START_BYTES: usize = 68 << 10;
/// How much of a device's end is looked at, where that is asked for.
pub(super) const END_BYTES: usize = 4 << 10;

/// Our own label on an image file or an otherwise empty disk.
pub(super) const LABEL: Format = Format { magic: *b"SFlb", version: 1, version_min: 1, body_bytes_max: 480 };

/// What a mark was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The disk's UUID in a GPT.
    Gpt,
    /// The 32-bit signature of an MBR.
    Mbr,
    /// ext2, ext3 or ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// One device of a btrfs; its own UUID, as all devices share the file system's.
    Btrfs,
    /// FAT12, FAT16 or FAT32; its volume number has 32 bits only.
    Vfat,
    /// A swap area.
    Swap,
    /// An LVM physical volume.
    Lvm,
    /// A LUKS header.
    Luks,
    /// Our own label.
    Label,
}

impl Source {
    /// The kind of id that it makes.
    pub const fn kind(self) -> &'static str {
        match self {
            Source::Gpt => "gpt",
            Source::Mbr => "mbr",
            Source::Ext4 => "ext4",
            Source::Xfs => "xfs",
            Source::Btrfs => "btrfs",
            Source::Vfat => "vfat",
            Source::Swap => "swap",
            Source::Lvm => "lvm",
            Source::Luks => "luks",
            Source::Label => "label",
        }
    }

    const fn rank(self) -> u8 {
        match self {
            // What lies behind a partition table belongs to it, or is a leftover.
            Source::Gpt | Source::Mbr => 0,
            Source::Ext4
            | Source::Xfs
            | Source::Btrfs
            | Source::Vfat
            | Source::Swap
            | Source::Lvm
            | Source::Luks => 1,
            Source::Label => 2,
        }
    }
}

/// Something that a device's content says of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// What it was read from.
    pub source: Source,
    /// The identifier as text.
    pub value: String,
}

impl fmt::Display for Mark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.source.kind(), self.value)
    }
}

/// What the content says of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// All marks, in the order of [`Source`].
    pub marks: Vec<Mark>,
    /// The kinds whose structures are there and damaged.
    pub damaged: Vec<Source>,
}

/// Why a content identifies nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unclear {
    /// It has no mark.
    Empty,
    /// It has several marks of equal weight.
    Several,
    /// A structure that would outweigh the rest is damaged.
    Damaged(Source),
}

impl Content {
    /// The one mark that identifies the content.
    ///
    /// # Errors
    /// There is none, or more than one, or a damaged one might say something else.
    pub fn identity(&self) -> Result<&Mark, Unclear> {
        let rank = self.marks.iter().map(|mark| mark.source.rank()).min();
        if let Some(source) = self.damaged.iter().find(|source| rank.is_none_or(|rank| source.rank() <= rank))
        {
            return Err(Unclear::Damaged(*source));
        }
        let mut best = self.marks.iter().filter(|mark| Some(mark.source.rank()) == rank);
        match (best.next(), best.next()) {
            (None, _) => Err(Unclear::Empty),
            (Some(mark), None) => Ok(mark),
            (Some(_), Some(_)) => Err(Unclear::Several),
        }
    }

    fn add(&mut self, source: Source, found: Found) {
        match found {
            Found::Absent => {}
            Found::Damaged => self.damaged.push(source),
            Found::Here(value) => self.marks.push(Mark { source, value }),
        }
    }
}

/// Whether the device's last bytes have to be read as well: a GPT is promised and its first copy is not sound.
pub(super) fn wants_end(start: &[u8]) -> bool {
    is_protective(start) && !matches!(gpt(start), Found::Here(_))
}

/// Reads marks out of a device's first `START_BYTES`, and its last `END_BYTES` where `wants_end` says so.
pub fn probe(start: &[u8], end: &[u8]) -> Content {
    let mut content = Content::default();
    let vfat = vfat(start);
    if is_protective(start) {
        let found = match gpt(start) {
            Found::Here(value) => Found::Here(value),
            Found::Absent | Found::Damaged => gpt_backup(end),
        };
        content.add(Source::Gpt, found);
    } else if vfat == Found::Absent {
        content.add(Source::Mbr, mbr(start));
    }
    content.add(Source::Ext4, ext4(start));
    content.add(Source::Xfs, xfs(start));
    content.add(Source::Btrfs, btrfs(start));
    content.add(Source::Vfat, vfat);
    content.add(Source::Swap, swap(start));
    content.add(Source::Lvm, lvm(start));
    content.add(Source::Luks, luks(start));
    content.add(Source::Label, label(start));
    content
}

/// The label that names an image file or an empty disk, to be written at its start. It takes the first 8 KiB: the
/// second half is where nodes prove to each other that they see one device.
pub fn label_bytes(uuid: u128) -> Vec<u8> {
    LABEL.wrap(&uuid.to_be_bytes())
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    Absent,
    Damaged,
    Here(String),
}

impl Found {
    /// A UUID; one of zeroes says that the tool gave none.
    fn uuid(bytes: Option<[u8; 16]>) -> Found {
        bytes
            .filter(|bytes| *bytes != [0; 16])
            .map_or(Found::Absent, |bytes| Found::Here(uuid_text(u128::from_be_bytes(bytes))))
    }
}

fn label(start: &[u8]) -> Found {
    if !start.starts_with(&LABEL.magic) {
        return Found::Absent;
    }
    let length = bytes::<4>(start, 8).map_or(usize::MAX, |length| number(&length));
    let whole = length.checked_add(crate::envelope::HEADER_BYTES).and_then(|end| start.get(..end));
    let body = whole.and_then(|whole| LABEL.unwrap(whole).ok()).and_then(|(_, body)| bytes(body, 0));
    body.map_or(Found::Damaged, |uuid| Found::uuid(Some(uuid)))
}

/// Whether the first sector promises a GPT.
fn is_protective(start: &[u8]) -> bool {
    has_signature(start) && partitions(start).any(|entry| entry.get(4) == Some(&0xee))
}

fn has_signature(start: &[u8]) -> bool {
    bytes(start, 510) == Some([0x55, 0xaa])
}

fn partitions(start: &[u8]) -> impl Iterator<Item = &[u8]> {
    start.get(446..510).unwrap_or_default().chunks_exact(16)
}

fn gpt(start: &[u8]) -> Found {
    // Disks have sectors of 512 or 4096 bytes; the header is in the second one and says so itself.
    let here = [512, 4096].into_iter().find_map(|sector| gpt_header(start.get(sector..)?, Some(1)));
    here.map_or(Found::Damaged, |uuid| Found::uuid(Some(uuid)))
}

fn gpt_backup(end: &[u8]) -> Found {
    let here = [512, 4096]
        .into_iter()
        .find_map(|sector| gpt_header(end.get(end.len().checked_sub(sector)?..)?, None));
    here.map_or(Found::Damaged, |uuid| Found::uuid(Some(uuid)))
}

fn gpt_header(header: &[u8], own_sector: Option<u64>) -> Option<[u8; 16]> {
    if !header.starts_with(b"EFI PART") {
        return None;
    }
    let length = number(&bytes::<4>(header, 12)?);
    if !(92..=512).contains(&length) {
        return None;
    }
    let mut whole = header.get(..length)?.to_vec();
    let sum = u32::from_le_bytes(bytes(&whole, 16)?);
    whole.get_mut(16..20)?.fill(0);
    let is_own = own_sector.is_none_or(|own| bytes(&whole, 24).map(u64::from_le_bytes) == Some(own));
    if !is_own || !crc32(&whole, u32::MAX) != sum {
        return None;
    }
    // The first three fields of this UUID are little-endian.
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes::<16>(&whole, 56)?;
    let [i, j, k, l, m, n, o, p] = rest;
    Some([d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p])
}

fn mbr(start: &[u8]) -> Found {
    let is_sound = partitions(start).all(|entry| matches!(entry.first(), Some(0 | 0x80)));
    let is_used = partitions(start).any(|entry| entry.get(4).is_some_and(|kind| *kind != 0));
    match bytes(start, 440).map(u32::from_le_bytes) {
        Some(signature) if signature != 0 && has_signature(start) && is_sound && is_used => {
            Found::Here(format!("{signature:08x}"))
        }
        Some(_) | None => Found::Absent,
    }
}

fn ext4(start: &[u8]) -> Found {
    const HAS_CHECKSUM: u32 = 0x400;
    let Some(block) = start.get(1024..2048) else { return Found::Absent };
    let word = |place| bytes(block, place).map_or(0, u32::from_le_bytes);
    // Two bytes of magic are few: the block size, revision and count of inodes must make sense too.
    if bytes(block, 0x38) != Some([0x53, 0xef]) || word(0x18) > 6 || word(0x4c) > 1 || word(0) == 0 {
        return Found::Absent;
    }
    let sum = block.get(..0x3fc).map(|summed| !crc32c::crc32c(summed));
    if word(0x64) & HAS_CHECKSUM != 0 && sum != Some(word(0x3fc)) {
        return Found::Damaged;
    }
    Found::uuid(bytes(block, 0x68))
}

fn xfs(start: &[u8]) -> Found {
    let block_bytes = bytes(start, 4).map_or(0, u32::from_be_bytes);
    if !start.starts_with(b"XFSB") || !block_bytes.is_power_of_two() || !(512..=65536).contains(&block_bytes)
    {
        return Found::Absent;
    }
    let is_version_5 = bytes(start, 100).map_or(0, u16::from_be_bytes) & 0xf == 5;
    let sector_bytes = usize::from(bytes(start, 102).map_or(0, u16::from_be_bytes));
    if is_version_5 {
        let Some(mut sector) = start.get(..sector_bytes).filter(|_| sector_bytes >= 512).map(<[u8]>::to_vec)
        else {
            return Found::Damaged;
        };
        let sum = bytes(&sector, 224).map(u32::from_le_bytes);
        if let Some(field) = sector.get_mut(224..228) {
            field.fill(0);
        }
        if sum != Some(crc32c::crc32c(&sector)) {
            return Found::Damaged;
        }
    }
    Found::uuid(bytes(start, 32))
}

fn btrfs(start: &[u8]) -> Found {
    const CRC32C: [u8; 2] = [0, 0];
    let Some(block) = start.get(0x10000..0x11000) else { return Found::Absent };
    if bytes(block, 0x40) != Some(*b"_BHRfS_M") {
        return Found::Absent;
    }
    let sum = block.get(0x20..).map(crc32c::crc32c);
    if bytes(block, 0xc4) == Some(CRC32C) && bytes(block, 0).map(u32::from_le_bytes) != sum {
        return Found::Damaged;
    }
    Found::uuid(bytes(block, 0x10b))
}

fn vfat(start: &[u8]) -> Found {
    let place = if bytes(start, 82) == Some(*b"FAT32   ") {
        67
    } else if bytes(start, 54) == Some(*b"FAT12   ") || bytes(start, 54) == Some(*b"FAT16   ") {
        39
    } else {
        return Found::Absent;
    };
    let volume = bytes(start, place).map_or(0, u32::from_le_bytes);
    if !has_signature(start) || volume == 0 {
        return Found::Absent;
    }
    Found::Here(format!("{volume:08x}"))
}

fn swap(start: &[u8]) -> Found {
    let page_bytes = [4096, 8192, 16384, 32768, 65536];
    let is_here = |page: &usize| bytes(start, page - 10) == Some(*b"SWAPSPACE2");
    if !page_bytes.iter().any(is_here) {
        return Found::Absent;
    }
    Found::uuid(bytes(start, 1024 + 12))
}

fn lvm(start: &[u8]) -> Found {
    const INITIAL: u32 = 0xf597_a6cf;
    for sector in 0..4 {
        let Some(label) = start.get(sector * 512..(sector + 1) * 512) else { return Found::Absent };
        if !label.starts_with(b"LABELONE") || bytes(label, 24) != Some(*b"LVM2 001") {
            continue;
        }
        let own = bytes(label, 8).map(u64::from_le_bytes);
        let sum = label.get(20..).map(|summed| crc32(summed, INITIAL));
        if own != u64::try_from(sector).ok() || bytes(label, 16).map(u32::from_le_bytes) != sum {
            return Found::Damaged;
        }
        let place = bytes::<4>(label, 20).map_or(usize::MAX, |place| number(&place));
        let uuid = place.checked_add(32).and_then(|end| label.get(place..end)).unwrap_or_default();
        return match std::str::from_utf8(uuid) {
            Ok(text) if text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                Found::Here(text.to_owned())
            }
            Ok(_) | Err(_) => Found::Damaged,
        };
    }
    Found::Absent
}

fn luks(start: &[u8]) -> Found {
    if !start.starts_with(b"LUKS\xba\xbe") {
        return Found::Absent;
    }
    let field = start.get(168..208).unwrap_or_default();
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
    match std::str::from_utf8(text).ok().and_then(|text| uuid::Uuid::parse_str(text).ok()) {
        Some(uuid) => Found::Here(uuid.to_string()),
        None => Found::Damaged,
    }
}

fn uuid_text(uuid: u128) -> String {
    uuid::Uuid::from_u128(uuid).to_string()
}

/// A little-endian number as a length or place.
fn number(bytes: &[u8; 4]) -> usize {
    usize::try_from(u32::from_le_bytes(*bytes)).unwrap_or(usize::MAX)
}

fn bytes<const N: usize>(from: &[u8], place: usize) -> Option<[u8; N]> {
    from.get(place..)?.first_chunk().copied()
}

/// The checksum of GPT and LVM (IEEE 802.3, reflected), without the last inversion; both cover a few hundred bytes.
fn crc32(bytes: &[u8], initial: u32) -> u32 {
    bytes.iter().fold(initial, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    })
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
