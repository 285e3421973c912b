//! This crate's inner decoders as `fuzz/` reaches them: bytes or text in, and what was made of them out.
//!
//! It decides nothing and is no part of the interface: only the fuzz targets call it. The decoders themselves are in
//! `protocol`, `shim::plan`, `criu::rpc`, `criu::reason`, `network::{netlink, sockets, arp}`, `log` and `bundle`.

use std::{net::Ipv4Addr, path::Path};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    HostConfig, Spec, bundle,
    criu::{self, find, reason, rpc},
    layout::Layout,
    log::{self, LogLine},
    network::{
        arp,
        netlink::{self, is_verdict, verdict},
        sockets,
    },
    protocol::{Prepared, Reply},
    shim::plan::Plan,
};

/// A shim's answer, written again where it is accepted.
pub fn reply(line: &[u8]) -> Option<Vec<u8>> {
    json::<Reply>(line)
}

/// A shim's first line, written again where it is accepted.
pub fn prepared(line: &[u8]) -> Option<Vec<u8>> {
    json::<Prepared>(line)
}

/// What a shim is told, written again where it is accepted.
pub fn plan(file: &[u8]) -> Option<Vec<u8>> {
    json::<Plan>(file)
}

fn json<T: Serialize + DeserializeOwned>(text: &[u8]) -> Option<Vec<u8>> {
    let value: T = serde_json::from_slice(text).ok()?;
    Some(serde_json::to_vec(&value).expect("these types hold nothing that JSON cannot"))
}

/// A message of CRIU's: its kind, and the stage that it names.
pub fn criu_response(bytes: &[u8]) -> Option<(u64, Option<String>)> {
    rpc::response(bytes).map(|response| (response.kind, response.script))
}

/// runc's request to CRIU as the relay passes it on, where it changes it.
pub fn criu_request(bytes: &[u8]) -> Option<Vec<u8>> {
    rpc::without_freezer(bytes)
}

/// What CRIU's `stats-dump` says about how long the program stood still, microseconds.
pub fn criu_statistics(bytes: &[u8]) -> Option<u64> {
    rpc::frozen_us(bytes)
}

/// What a person is told of CRIU's log.
pub fn criu_log(text: &str) -> Option<String> {
    reason::explain_text(text)
}

/// The last error in runc's log.
pub fn runc_log(text: &str) -> Option<String> {
    reason::last_error(text)
}

/// The version in a line of `criu --version`.
pub fn criu_version(line: &str) -> Option<(u32, u32, u32)> {
    find::parse_version(line)
}

/// Model and features in `/proc/cpuinfo`.
pub fn processor(text: &str) -> String {
    criu::processor(text)
}

/// A datagram of the kernel's, every message of it read in every way that we read one; how many there were.
pub fn kernel_datagram(bytes: &[u8]) -> usize {
    let messages = netlink::split(bytes);
    for (header, payload) in &messages {
        let _ = (is_verdict(*header), verdict(payload));
        let _ = sockets::connection(payload);
        let _ = sockets::unix_peer(payload);
    }
    messages.len()
}

/// Who else uses or wants `address`, as an ARP frame shows.
pub fn arp_conflict(frame: &[u8], address: Ipv4Addr, own: [u8; 6]) -> Option<[u8; 6]> {
    arp::conflict(frame, address, own)
}

/// A line of a container's log.
pub fn log_line(line: &[u8]) -> Option<LogLine> {
    log::parse(line)
}

/// Our configuration for runc, made of a stranger's bundle and a spec that leaves everything to it.
pub fn bundle(config: &[u8]) -> Option<Vec<u8>> {
    let folder = Path::new("/nowhere");
    let foreign = bundle::parse_foreign(folder, config).ok()?;
    let spec: Spec = serde_json::from_str(r#"{"name":"fuzz","command":[]}"#).expect("a legal spec");
    let host = HostConfig {
        scope: "fuzz".into(),
        run_dir: folder.into(),
        data_dir: folder.into(),
        image_dir: folder.into(),
        runc: "runc".into(),
        criu: "criu".into(),
        shim: Vec::new(),
        bridge: None,
        log_bytes_max: 1 << 20,
        log_files_max: 1,
        hidden: Vec::new(),
    };
    let made = bundle::configuration(&Layout::new(&host, "fuzz"), &spec, &foreign).ok()?;
    Some(serde_json::to_vec(&made).expect("a JSON value can be written"))
}

/// The fields of a name in the text of `/etc/passwd` or `/etc/group`.
pub fn account(text: &str, name: &str) -> Option<Vec<String>> {
    bundle::account(text, name)
}
