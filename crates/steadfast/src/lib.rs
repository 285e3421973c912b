//! The library that runs a node: sockets, disk, memory, time, the catalog's engine, and the loop around the core.
//!
//! It knows tokio and the operating system, and neither HTTP, JSON, containers nor what a message means: that is
//! `steadfast_proto`'s. (Programs beside an agent speak to it by HTTP: feature `agent`, [`group::AgentRegister`] alone.)
//! It accepts anything that carries out a job ([`node::Worker`]), so a program that embeds it without containers compiles
//! none of their code. Read next: [`node`], then [`catalog`], [`net`], [`memory`].

mod buffers;
pub mod catalog;
pub mod devices;
pub mod envelope;
pub mod episodes;
pub mod events;
pub mod group;
pub mod identity;
pub mod memory;
pub mod net;
pub mod token;
pub mod node;
