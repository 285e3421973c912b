//! Tests of the log on a simulated disk, of both on a real one, and of what they are made of.

mod crashes;
mod damage;
mod form;
mod index;
mod keeper;
mod model;
mod real;
#[cfg(feature = "postgresql")]
#[path = "../../../../steadfast-cli/src/bed/postgresql.rs"]
mod postgresql;
#[cfg(feature = "postgresql")]
mod server;
#[cfg(feature = "postgresql")]
mod shared;

use super::log::{Log, OpenError, Settings};
use super::simulated::SimulatedDisk;

const SALT: u64 = 0xA11CE;

fn settings(segment_bytes: u64) -> Settings {
    Settings { segment_bytes, salt: SALT }
}

fn open(disk: &SimulatedDisk, segment_bytes: u64) -> Result<(Log, Vec<Vec<u8>>), OpenError> {
    let (log, records) = Log::open(Box::new(disk.clone()), settings(segment_bytes))?;
    let oldest = log.oldest().0;
    let mut read = Vec::new();
    for (place, (lsn, bytes)) in records.enumerate() {
        assert_eq!(lsn.0, oldest + place as u64, "the numbers have no gap");
        read.push(bytes.to_vec());
    }
    assert_eq!(log.committed().0 + 1, oldest + read.len() as u64);
    Ok((log, read))
}

/// A record that tells its number and its life, of a size that both decide.
fn record(lsn: u64, life: u64) -> Vec<u8> {
    let length = 8 + (lsn * 37 + life * 11) % 150;
    let mut bytes = format!("{life}.{lsn}:").into_bytes();
    bytes.resize(usize::try_from(length).unwrap().max(bytes.len()), u8::try_from(lsn % 251).unwrap());
    bytes
}

fn append(log: &mut Log, bytes: &[u8]) -> Result<u64, super::LogError> {
    log.append(|buffer| buffer.extend_from_slice(bytes)).map(|lsn| lsn.0)
}
