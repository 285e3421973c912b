//! The HTTP API: its JSON types, its client, and its server.
//!
//! Every agent serves the same API on its owner-only Unix socket and, to other agents of the cluster, over mutual
//! TLS. The command line uses this and nothing else.

mod audit;
pub mod client;
pub mod convert;
pub mod device_types;
pub mod devices;
pub mod episode_types;
pub mod episode_words;
mod episodes;
pub mod event_client;
pub mod event_types;
pub mod events;
mod exchange;
pub mod exchange_types;
pub mod frames;
pub mod group_types;
pub mod groups;
pub mod link_client;
pub mod link_types;
pub mod link_words;
pub mod links;
pub mod metrics;
pub mod openapi;
pub(crate) mod own;
pub(crate) mod page;
pub mod page_types;
pub mod proxy;
pub mod roles;
pub mod server;
pub mod token_types;
mod tokens;
pub mod types;
pub mod view_types;
pub mod views;
