//! A row of the catalog, as every kind of row. Whatever is accepted must survive being written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::fmt::Debug;
use steadfast_proto::catalog::{
    ClusterRow, ContainerRow, InviteRow, NameRow, NodeRow, View, ViewRecord, decode_change, decode_row,
    encode_row,
};

fuzz_target!(|bytes: &[u8]| {
    read_again::<ClusterRow>(bytes);
    read_again::<View>(bytes);
    read_again::<NodeRow>(bytes);
    read_again::<InviteRow>(bytes);
    read_again::<ViewRecord>(bytes);
    read_again::<NameRow>(bytes);
    read_again::<ContainerRow>(bytes);

    let Some((&length, rest)) = bytes.split_first() else { return };
    let Some((key, row)) = rest.split_at_checked(usize::from(length)) else { return };
    if let Ok(key) = std::str::from_utf8(key) {
        let _ = decode_change(key, Some(row));
        let _ = decode_change(key, None);
    }
});

fn read_again<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(row) = decode_row::<T>(bytes) else { return };
    let again = encode_row(&row).expect("what was read fits a row");
    assert_eq!(decode_row::<T>(&again).expect("what was written can be read"), row);
}
