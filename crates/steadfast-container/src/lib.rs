//! Runs containers on one Linux host, and takes them from one host to another.
//!
//! A container runs under runc beside a small *shim* that owns its output, its exit status and its *fence*: it runs only
//! while its lease is renewed, is frozen before the lease ends, and goes on when a fresh one comes. It can be imaged by
//! CRIU, files and memory of the same instant, into memory, and brought back on another host.
//!
//! Knows one host and no cluster: who gives leases, and where images go, is the caller's. Everything blocks; nothing
//! here is asynchronous. Start with [`Host::open`], [`Host::create`] and [`Container::renew`].

mod bundle;
mod cgroup;
mod clean;
mod clock;
mod config;
mod container;
pub mod criu;
mod fence;
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod host_files;
mod layout;
mod log;
mod network;
mod preflight;
mod protocol;
mod root;
pub mod shim;
mod sys;

pub use bundle::BundleError;
pub use cgroup::NoFreezer;
pub use clean::RemoveError;
pub use clock::boottime_ns;
pub use config::{Address, AddressError, BridgeConfig, Device, HostConfig, Root, Spec, SpecError, Volume};
pub use container::{Container, ExecError, OWN_SOCKET, ShimError};
pub use criu::{CheckpointError, RestoreMode};
pub use fence::{FREEZE_MAX_NS, Lateness};
pub use host::{AdoptError, CreateError, Host, OpenError};
pub use host_files::{Hash, HostFile, Mismatch, verify_host_files};
pub use log::{LogLine, LogReader, Stream};
pub use network::NetworkError;
pub use preflight::{Finding, Obstacle, preflight};
pub use protocol::{
    Capture, Event, Exit, LineError, REQUEST_BYTES_MAX, Reply, Request, State, Status, decode_request,
};
