//! Which of the identifiers that hardware gives counts, and which is worth nothing.
//!
//! Pure. A worldwide name is taken from the most specific place; a serial number counts where there is none, unless
//! it is one of those that whole batches of devices share. What is locally assigned or blank is no name at all.
//! Read next: `identify`.

use std::fmt::Write as _;

use steadfast_proto::devices::DeviceId;

use super::sysfs::Hardware;

/// The longest identifier that is kept whole; of a longer one the start and a hash are.
const VALUE_BYTES_MAX: usize = 100;

/// What the hardware says of itself, weighed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// A name that no other device in the world has; several paths may lead to it.
    Worldwide(DeviceId),
    /// A serial number; two devices with one are two devices.
    Serial(DeviceId),
    /// A serial number that many devices share.
    Worthless(String),
    /// Nothing.
    Nothing,
}

/// Weighs what the hardware says.
pub(super) fn weigh(hardware: &Hardware) -> Named {
    if let Some(id) = worldwide(hardware) {
        return Named::Worldwide(id);
    }
    let serial = match page_80(&hardware.page_80) {
        serial if serial.is_empty() => hardware.serial.clone(),
        serial => serial,
    };
    if serial.is_empty() {
        return Named::Nothing;
    }
    if is_worthless(&serial) {
        return Named::Worthless(serial);
    }
    let parts = [&hardware.vendor, &hardware.model, &serial, &hardware.namespace];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).map(String::as_str).collect();
    id("serial", &parts.join(" ")).map_or(Named::Worthless(serial), Named::Serial)
}

fn worldwide(hardware: &Hardware) -> Option<DeviceId> {
    // An old kernel shows the NGUID as the UUID where there is none, so the NGUID comes first.
    let nvme = [("nguid", &hardware.nguid), ("eui", &hardware.eui), ("uuid", &hardware.uuid)];
    let nvme = nvme.into_iter().find_map(|(kind, text)| id(kind, &hexadecimal(text)?));
    nvme.or_else(|| page_83(&hardware.page_83)).or_else(|| wwid(&hardware.wwid))
}

/// The kernel's own summary, such as `naa.5000c500a1b2c3d4`.
fn wwid(text: &str) -> Option<DeviceId> {
    let (kind, value) = text.split_once('.')?;
    match kind {
        "naa" => naa(&hexadecimal(value)?),
        "eui" | "uuid" => id(kind, &hexadecimal(value)?),
        _ => None,
    }
}

/// A registered name; those that begin with 3 are given by whoever set the device up.
fn naa(value: &str) -> Option<DeviceId> {
    let is_registered =
        matches!((value.as_bytes().first(), value.len()), (Some(b'2' | b'5'), 16) | (Some(b'6'), 32));
    is_registered.then(|| id("naa", value)).flatten()
}

/// The designators of SCSI's identification page (SPC-4 7.8.6): the one that says most.
fn page_83(page: &[u8]) -> Option<DeviceId> {
    const NAA: u8 = 3;
    const EUI: u8 = 2;
    const OF_LOGICAL_UNIT: u8 = 0;
    let length = usize::from(u16::from_be_bytes(*page.get(2..)?.first_chunk()?));
    let mut rest = page.get(4..)?;
    rest = rest.get(..length).unwrap_or(rest);
    let mut found: Vec<(u8, DeviceId)> = Vec::new();
    while let Some(([_, kind, _, length], tail)) = rest.split_first_chunk::<4>() {
        let Some((value, tail)) = tail.split_at_checked(usize::from(*length)) else { break };
        rest = tail;
        if (kind >> 4) & 3 != OF_LOGICAL_UNIT {
            continue;
        }
        let text: String = value.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        let Some(text) = hexadecimal(&text) else { continue };
        let designator = match kind & 0xf {
            NAA => naa(&text).map(|id| (9 - text.as_bytes().first().map_or(0, |digit| digit & 7), id)),
            EUI => id("eui", &text).map(|id| (9, id)),
            _ => None,
        };
        found.extend(designator);
    }
    found.into_iter().min().map(|(_, id)| id)
}

/// The serial number of SCSI's serial number page.
fn page_80(page: &[u8]) -> String {
    let length =
        page.get(2..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u16::from_be_bytes(*bytes));
    let text = page.get(4..).unwrap_or_default();
    let text = text.get(..usize::from(length)).unwrap_or(text);
    String::from_utf8_lossy(text).trim_matches(['\0', ' ']).to_owned()
}

/// The digits of `text` in lower case, unless they say nothing.
fn hexadecimal(text: &str) -> Option<String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let digits: String = digits.chars().filter(|character| !matches!(character, '-' | ' ')).collect();
    let digits = digits.to_ascii_lowercase();
    let is_blank = digits.bytes().all(|digit| digit == b'0') || digits.bytes().all(|digit| digit == b'f');
    let is_hexadecimal = digits.len() >= 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    (is_hexadecimal && !is_blank).then_some(digits)
}

/// Whether whole batches of devices have this serial number.
fn is_worthless(serial: &str) -> bool {
    const KNOWN: [&str; 12] = [
        "none",
        "unknown",
        "default string",
        "to be filled by o.e.m.",
        "not specified",
        "serial",
        "n/a",
        "null",
        "invalid",
        "qemu harddisk",
        "drive-scsi0",
        "qm00001",
    ];
    let serial = serial.to_ascii_lowercase();
    let alphanumeric: Vec<u8> = serial.bytes().filter(u8::is_ascii_alphanumeric).collect();
    let is_run = alphanumeric.windows(2).all(|pair| matches!(pair, [first, second] if first == second));
    let counts_up = alphanumeric.windows(2).all(
        |pair| matches!(pair, [first, second] if *second == first.wrapping_add(1) || (*first == b'9' && matches!(second, b'0' | b'a'))),
    );
    let is_number_like = alphanumeric.len() < 4 || is_run || counts_up;
    is_number_like || KNOWN.contains(&serial.as_str())
}

/// An id out of any text: what may not stand in an id is escaped, so that two texts never make one id.
pub(super) fn id(kind: &str, text: &str) -> Option<DeviceId> {
    let mut value = String::new();
    for byte in text.trim().bytes() {
        match byte {
            b' ' => value.push('_'),
            b'.' | b'-' => value.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => value.push(char::from(byte)),
            _ => {
                let _ = write!(value, "+{byte:02X}");
            }
        }
    }
    if value.len() > VALUE_BYTES_MAX {
        let hash = blake3::hash(value.as_bytes()).to_hex();
        let start: String = value.chars().take(VALUE_BYTES_MAX - 33).collect();
        value = format!("{start}-{}", hash.get(..32)?);
    }
    format!("{kind}:{value}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(change: impl FnOnce(&mut Hardware)) -> Named {
        let mut hardware = Hardware::default();
        change(&mut hardware);
        weigh(&hardware)
    }

    fn worldwide(text: &str) -> Named {
        Named::Worldwide(text.parse().unwrap())
    }

    #[test]
    fn worldwide_names_come_before_serial_numbers() {
        let nvme = |uuid: &str, nguid: &str, eui: &str| {
            named(|hardware| {
                hardware.uuid = uuid.into();
                hardware.nguid = nguid.into();
                hardware.eui = eui.into();
                hardware.serial = "S3EVNX0K123456".into();
            })
        };
        let zero = "00000000-0000-0000-0000-000000000000";
        let eui = "00 25 38 8b 01 23 45 67";
        assert_eq!(
            nvme("", "0025388B-0123-4567-89ab-cdef01234567", eui),
            worldwide("nguid:0025388b0123456789abcdef01234567")
        );
        assert_eq!(nvme(zero, zero, eui), worldwide("eui:0025388b01234567"));
        assert_eq!(
            nvme(zero, zero, "ff ff ff ff ff ff ff ff"),
            Named::Serial("serial:S3EVNX0K123456".parse().unwrap())
        );
        assert_eq!(named(|one| one.wwid = "naa.5000c500a1b2c3d4".into()), worldwide("naa:5000c500a1b2c3d4"));
        assert_eq!(named(|one| one.wwid = "naa.3000c500a1b2c3d4".into()), Named::Nothing, "locally assigned");
        assert_eq!(named(|one| one.wwid = "t10.ATA     QEMU HARDDISK".into()), Named::Nothing);
    }

    #[test]
    fn the_most_specific_designator_of_the_logical_unit_counts() {
        let mut page = vec![0, 0x83, 0, 0];
        let mut add = |kind: u8, value: &[u8]| {
            page.extend([1, kind, 0, u8::try_from(value.len()).unwrap()]);
            page.extend(value);
        };
        add(0x13, &[0x50, 0, 0xc5, 0, 1, 2, 3, 4]); // the port's
        add(0x01, b"ATA     MODEL SERIAL");
        add(0x03, &[0x50, 0, 0xc5, 0, 9, 9, 9, 9]);
        add(0x03, &[0x60, 0, 0xc5, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        let length = u16::try_from(page.len() - 4).unwrap();
        page[2..4].copy_from_slice(&length.to_be_bytes());
        let with = |page: &[u8]| named(|hardware| hardware.page_83 = page.to_vec());
        assert_eq!(with(&page), worldwide("naa:6000c5000102030405060708090a0b0c"));
        for end in 0..page.len() {
            let _ = with(&page[..end]);
        }
        assert_eq!(with(&page[..54]), worldwide("naa:5000c50009090909"));
    }

    #[test]
    fn serial_numbers_that_batches_share_are_worth_nothing() {
        for serial in [
            "0000",
            "00000000",
            "123456789",
            "0123456789ABCDEF",
            "none",
            "To be filled by O.E.M.",
            "AAAA",
            "x1",
            "1234567890",
        ] {
            assert_eq!(named(|one| one.serial = serial.into()), Named::Worthless(serial.into()));
        }
        let serial = named(|one| {
            one.vendor = "ATA".into();
            one.model = "ST 4000".into();
            one.page_80 = b"\0\x80\0\x08 ZDH12AB".to_vec();
        });
        assert_eq!(serial, Named::Serial("serial:ATA_ST_4000_ZDH12AB".parse().unwrap()));
        assert_eq!(named(|_| ()), Named::Nothing, "virtio disks often have an empty one");
    }

    proptest! {
        #[test]
        fn whatever_the_hardware_says_makes_an_id_or_none(page in proptest::collection::vec(any::<u8>(), 0..80), text in any::<String>()) {
            let _ = weigh(&Hardware { page_83: page.clone(), page_80: page, serial: text.clone(), model: text.clone(), ..Hardware::default() });
            let _ = weigh(&Hardware { wwid: format!("naa.{text}"), nguid: text, ..Hardware::default() });
        }

        #[test]
        fn two_texts_never_make_one_id(first in "[ -~]{4,20}", second in "[ -~]{4,20}") {
            prop_assume!(first.trim() != second.trim());
            prop_assert_ne!(id("serial", &first), id("serial", &second).filter(|_| !second.trim().is_empty()));
        }
    }
}
