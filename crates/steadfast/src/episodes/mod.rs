//! The loop around the machine of episodes, and the stores in which instances outlast it.
//!
//! [`keeper`] gives a [`Store`] each record of its machine and lets out what rests on them when they are committed. [`Embedded`] is the store on
//! a node's own disk, `shared` the one of all nodes. Its log and index store bytes and know nothing of what they mean. The order is always the same: records
//! go to the [`Log`] and are committed, many at a time; what follows from them goes to the [`Index`], which is settled now and
//! then; what the index holds durably is trimmed from the log.
//! Read next: [`keeper`], [`store`], [`embedded`], [`disk`] (what a folder can do), `segment` (the form of the log), [`log`],
//! [`index`]; [`typed`] for programs in Rust.

pub mod disk;
pub mod embedded;
#[doc(hidden)]
pub mod fuzzing;
pub mod in_catalog;
pub mod index;
pub mod keeper;
pub mod log;
pub mod mirrored;
mod recovery;
mod segment;
#[cfg(feature = "postgresql")]
pub mod shared;
#[doc(hidden)]
pub mod simulated;
#[cfg(feature = "programs")]
mod served;
pub mod store;
#[cfg(feature = "programs")]
pub mod typed;
mod workshop;

#[cfg(test)]
mod tests;

pub use self::disk::{Disk, Folder};
pub use self::embedded::Embedded;
pub use self::in_catalog::InCatalog;
pub use self::index::{Index, IndexError};
pub use self::keeper::{Carrier, Deployment, Done, Keeper, KeeperError, Known, Parts, RunHere, Runner};
pub use self::log::{Log, LogError, OpenError, Records, Settings};
pub use self::mirrored::{MirrorError, Mirrored};
#[cfg(feature = "programs")]
pub use self::served::serve;
#[cfg(feature = "postgresql")]
pub use self::shared::{Shared, SharedError};
pub use self::store::{Adopted, Store, StoreError};
#[cfg(feature = "programs")]
pub use self::typed::{Context, Durable, Then, runner};

/// The number of a record of the log: 1 for the first, and one more for each that follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl std::fmt::Display for Lsn {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}
