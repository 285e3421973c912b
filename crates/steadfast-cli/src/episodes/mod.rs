//! What an agent adds to episodes that the core must not know: how programs are run, and how people write what they wait for.
//!
//! When an episode begins and what its end changes is decided by `steadfast_proto::episode`; nothing here may decide that.
//! Read [`programs`] for one run of a program, [`filter`] for the filters of waits.

pub(crate) mod effects;
pub mod filter;
pub mod programs;
pub(crate) mod tls;
