//! The failure detector alone, over two UDP sockets: two networks on loopback, no agent, no catalog.
//!
//! `detect_udp COUNT` starts nodes 1 to COUNT as processes of their own; stop, continue or kill one and read what the
//! others conclude. `detect_udp COUNT INDEX PORT` is one of them, with the port PORT + INDEX on each network. Nothing is
//! sealed here: give a detector only what you know to be authentic.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "it brings the clock")]

use std::collections::BTreeMap;
use std::error::Error;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use steadfast_proto::detect::{Detector, Evidence, Input, Members, Output, Settings};
use steadfast_proto::ids::{Incarnation, NetworkId, NodeId};
use steadfast_proto::machine::Machine;
use steadfast_proto::time::Time;
use steadfast_proto::wire::Heartbeat;

fn main() -> Result<(), Box<dyn Error>> {
    let numbers: Vec<u16> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    match numbers[..] {
        [count @ 2..=64] => start(count),
        [count @ 2..=64, index, port @ ..=60_000] if (1..=count).contains(&index) => run(count, index, port),
        _ => Err("usage: detect_udp COUNT [INDEX PORT], with COUNT from 2 to 64 and INDEX from 1".into()),
    }
}

fn start(count: u16) -> Result<(), Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let arguments = |index| [count, index, 7_500].map(|number: u16| number.to_string());
    let start = |index| Command::new(&program).args(arguments(index)).spawn();
    let children: Vec<_> = (1..=count).map(start).collect::<Result<_, _>>()?;
    children.iter().zip(1..).for_each(|(child, index)| println!("node {index} is process {}", child.id()));
    Ok(children.into_iter().try_for_each(|mut child| child.wait().map(drop))?)
}

fn run(count: u16, index: u16, port: u16) -> Result<(), Box<dyn Error>> {
    let id = |index: u16| NodeId(u128::from(index) << 96);
    let address = |index: u16, network: u8| (Ipv4Addr::new(127, 0, network, 1), port + index);
    // A later start needs a higher number and a clock that goes on; a real node sees to both.
    let (clock, unix) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?);
    let time = move |at: Instant| Time::ZERO + unix + at.duration_since(clock);
    let (own, started) = (id(index), u64::try_from(unix.as_nanos())?);
    let (sender, arrivals) = mpsc::channel();
    let sockets = [UdpSocket::bind(address(index, 0))?, UdpSocket::bind(address(index, 1))?];
    for (socket, network) in sockets.iter().zip(0..) {
        let (socket, sender) = (socket.try_clone()?, sender.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 1_500];
            while let Ok((length, _)) = socket.recv_from(&mut bytes) {
                let _ = sender.send((NetworkId(network), Instant::now(), bytes[..length].to_vec()));
            }
        });
    }
    // Connected, so that the peer's kernel can refuse; the detector says when to ask it.
    let mut questions = BTreeMap::new();
    for peer in (1..=count).filter(|peer| *peer != index) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(address(peer, 0))?;
        questions.insert(id(peer), socket);
    }
    let mut members: BTreeMap<_, _> = (1..=count).map(|peer| (id(peer), Incarnation(0))).collect();
    members.insert(own, Incarnation(started));
    let (settings, networks) = (Settings::default(), vec![NetworkId(0), NetworkId(1)]);
    let mut detector = Detector::new(settings, own, Incarnation(started), started, networks, time(clock));
    let mut inputs = vec![Input::Members(Arc::new(Members::new(members.clone(), 0)))];
    loop {
        for input in std::mem::take(&mut inputs) {
            let mut output = Output::default();
            detector.step(time(Instant::now()), input, &mut output);
            for (to, network, heartbeat) in output.send {
                let mut bytes = [&own.0.to_le_bytes()[..], &started.to_le_bytes()].concat();
                heartbeat.encode(&mut bytes);
                let to = address(u16::try_from(to.0 >> 96)?, u8::try_from(network.0)?);
                let _ = sockets[usize::from(network.0)].send_to(&bytes, to); // What is lost will be missed.
            }
            output.opinions.iter().for_each(|opinion| println!("node {index}: {opinion:?}"));
            for peer in output.probe {
                // What its kernel answers to one question, the next one reports.
                if questions[&peer].send(&[]).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
                {
                    let (incarnation, at) = (members[&peer], time(Instant::now()));
                    inputs.push(Input::Evidence { peer, incarnation, evidence: Evidence::Gone, at });
                }
            }
        }
        // All that waits is handed over before a deadline.
        let due = detector.deadline().unwrap_or_default();
        let wait = if inputs.is_empty() { due.since(time(Instant::now())) } else { Duration::ZERO };
        let first = arrivals.recv_timeout(wait).ok();
        for (network, at, bytes) in first.into_iter().chain(arrivals.try_iter()) {
            let Some((from, incarnation, heartbeat)) = read(&bytes) else { continue };
            if members.get(&from).is_some_and(|known| *known < incarnation) {
                members.insert(from, incarnation); // A cluster agrees on this; here each believes what it hears.
                inputs.push(Input::Members(Arc::new(Members::new(members.clone(), 0))));
            }
            inputs.push(Input::Heard { from, incarnation, network, received_at: time(at), heartbeat });
        }
        if due <= time(Instant::now()) {
            inputs.push(Input::Deadline);
        }
    }
}

/// A datagram is its sender, the sender's incarnation, and a heartbeat.
fn read(bytes: &[u8]) -> Option<(NodeId, Incarnation, Heartbeat)> {
    let (from, rest) = bytes.split_first_chunk()?;
    let (incarnation, rest) = rest.split_first_chunk()?;
    let from = NodeId(u128::from_le_bytes(*from));
    Some((from, Incarnation(u64::from_le_bytes(*incarnation)), Heartbeat::decode(rest).ok()?))
}
