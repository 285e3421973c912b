//! Cluster-unique names of block devices on this machine: what is seen, how it is called, and the links to it.
//!
//! [`Devices`] joins four parts that each know nothing of the others: `identify` says what is there, the pure
//! planner of `steadfast_proto::devices` says what to change, `store` makes that durable, `links` show it. It never
//! invents a name, never gives one to a device whose identity is in doubt, and keeps all names while the catalog
//! can't be reached. [`uevent`] says when to look again. Read next: `identify`, then `store`.

mod hardware;
mod identify;
mod label;
mod links;
mod probe;
mod proof;
mod store;
mod sysfs;
pub mod uevent;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use steadfast_proto::devices::plan::{Deferred, Use, reconcile};
use steadfast_proto::devices::registry::DeviceRows;
use steadfast_proto::devices::table::{LocalName, LocalNameError, Step, StepError, Table};
use steadfast_proto::devices::{Answer, DeviceId, DeviceName, SEEN_MAX, SeenRow, Sighting};
use steadfast_proto::ids::NodeId;

use self::links::Links;
use self::store::Store;

pub use self::identify::{Seen, Unidentified};
pub use self::label::{LabelError, write_label};
pub use self::links::InTheWay;
pub use self::probe::{Content, Mark, Source, Unclear, label_bytes, probe};
pub use self::proof::ProofError;
#[doc(hidden)]
pub use self::store::read_state;
pub use self::sysfs::Roots;

/// Where links are made unless the configuration says otherwise.
pub const LINKS: &str = "/dev/steadfast";

/// Why names of devices can't be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// The operating system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The table does not pass its checks. Nothing was changed.
    #[error(
        "{path} is damaged: remove it and devices.journal beside it; the names come again from the catalog"
    )]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
    },
    /// A write failed before, so what is on disk is not known. Open again to find out.
    #[error("an earlier write of the table of device names failed: it has to be opened again")]
    Failed,
    /// A step does not fit the table. Nothing was changed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The name is none that this node may give by itself. Nothing was changed.
    #[error(transparent)]
    LocalName(#[from] LocalNameError),
}

impl DevicesError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DevicesError {
        let path = path.to_path_buf();
        move |source| DevicesError::Io { action, path, source }
    }
}

/// What came of following the catalog.
#[derive(Debug, Default)]
pub struct Report {
    /// The steps that were taken, in order.
    pub steps: Vec<Step>,
    /// The devices that can't have the name they should have, and why.
    pub deferred: Vec<Deferred>,
    /// The devices that are seen and not identified, by the kernel's names for them.
    pub refused: Vec<(String, Unidentified)>,
    /// What is in the way of links.
    pub in_the_way: Vec<InTheWay>,
    /// The names that lead to a device now, and to which node.
    pub links: BTreeMap<String, PathBuf>,
}

/// This machine's names of devices.
///
/// Open it once; [`Devices::scan`] at the start and whenever [`uevent::Uevents`] tells of a change; then
/// [`Devices::apply`] with the catalog's rows, or [`Devices::follow`] while there are none. All of these wait for
/// disks, so they belong on a thread that may.
///
/// ```no_run
/// use steadfast::devices::{Devices, LINKS};
/// use steadfast_proto::devices::registry::DeviceRows;
/// let mut devices = Devices::open("/var/lib/steadfast".as_ref(), LINKS.as_ref())?;
/// for seen in devices.scan()? {
///     println!("{} is {:?}", seen.kernel_name, seen.identity);
/// }
/// let report = devices.apply(&DeviceRows::default())?;
/// println!("{} names lead to a device", report.links.len());
/// # Ok::<(), steadfast::devices::DevicesError>(())
/// ```
#[derive(Debug)]
pub struct Devices {
    roots: Roots,
    store: Store,
    links: Links,
    seen: Vec<Seen>,
    held: BTreeSet<DeviceId>,
    answers: BTreeMap<DeviceId, Answer>,
    /// Of which another node sees a twin, by the rows that were applied last.
    doubted: BTreeSet<DeviceId>,
}

impl Devices {
    /// Opens the table under `directory` (making it where there is none) and the folder of links.
    ///
    /// # Errors
    /// A folder can't be used, or the table is damaged.
    pub fn open(directory: &Path, links: &Path) -> Result<Devices, DevicesError> {
        Devices::open_at(directory, links, Roots::default())
    }

    /// Opens with another view of the kernel's devices than this machine's own.
    ///
    /// # Errors
    /// See [`Devices::open`].
    pub fn open_at(directory: &Path, links: &Path, roots: Roots) -> Result<Devices, DevicesError> {
        let (store, links) = (Store::open(directory)?, Links::open(links)?);
        Ok(Devices {
            roots,
            store,
            links,
            seen: Vec::new(),
            held: BTreeSet::new(),
            answers: BTreeMap::new(),
            doubted: BTreeSet::new(),
        })
    }

    /// Looks at all block devices; gives each once, identified or not.
    ///
    /// # Errors
    /// The kernel's list can't be read; what was seen before stays.
    pub fn scan(&mut self) -> Result<&[Seen], DevicesError> {
        let place = self.roots.sys.join("class/block");
        let seen = identify::scan(&self.roots).map_err(DevicesError::io("list", &place))?;
        let before = std::mem::replace(&mut self.seen, seen);
        let attachment = |all: &[Seen], id: &DeviceId| {
            let lead = all.iter().find(|seen| seen.identity.as_ref() == Ok(id));
            lead.map(|seen| (seen.kernel_name.clone(), seen.diskseq))
        };
        // What was proved of a device says nothing of another that was attached in its place.
        self.answers.retain(|id, _| attachment(&before, id) == attachment(&self.seen, id));
        Ok(&self.seen)
    }

    /// What the last scan saw.
    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// The row that tells the cluster what the last scan saw.
    pub fn seen_row(&self) -> SeenRow {
        let mut row = SeenRow::default();
        for seen in &self.seen {
            match &seen.identity {
                Ok(id) if row.devices.len() < SEEN_MAX => {
                    let paths = u16::try_from(seen.paths.len()).unwrap_or(u16::MAX);
                    let in_use = seen.in_use || self.held.contains(id);
                    let kernel_name = seen.kernel_name.clone();
                    let (bytes, answer) = (seen.bytes, self.answers.get(id).copied());
                    let sighting = Sighting { kernel_name, bytes, paths, in_use, answer };
                    row.devices.insert(id.clone(), sighting);
                }
                Err(Unidentified::Duplicate { id, .. }) if row.duplicates.len() < SEEN_MAX => {
                    row.duplicates.insert(id.clone());
                }
                Ok(_) | Err(_) => {}
            }
        }
        row
    }

    /// Says which devices containers use by their names; the kernel does not show uses in other name spaces.
    pub fn hold(&mut self, devices: BTreeSet<DeviceId>) {
        self.held = devices;
    }

    /// This node's names.
    pub fn table(&self) -> &Table {
        self.store.table()
    }

    /// The node of the device that `name` leads to, if it is here and in no doubt.
    pub fn node(&self, name: &DeviceName) -> Option<&Path> {
        let id = self.table().bearer(&LocalName::Named(name.clone()))?;
        self.undoubted(id).map(|seen| seen.node.as_path())
    }

    /// The node of the device `id`, if it is here now and in no doubt.
    pub fn node_of(&self, id: &DeviceId) -> Option<&Path> {
        let seen = self.undoubted(id).filter(|seen| self.is_still_there(seen))?;
        Some(seen.node.as_path())
    }

    /// Writes a random number to a device, for the others to find; put it into the catalog as a `ProofRow`.
    ///
    /// # Errors
    /// See [`ProofError`]; only devices that bear our label alone, and that nothing uses, are written to.
    pub fn challenge(&self, id: &DeviceId) -> Result<u128, ProofError> {
        let seen = self.lead(id).ok_or(ProofError::Unseen)?;
        if seen.in_use || self.held.contains(id) {
            return Err(ProofError::InUse);
        }
        let number = u128::from_be_bytes(crate::identity::random());
        proof::write(&self.roots, seen, number)?;
        Ok(number)
    }

    /// Looks for the numbers of which the catalog's `ProofRow`s speak; the answers of this node, `own`, are part of
    /// [`Devices::seen_row`]. Gives whether one is new. What this node wrote itself is read again every time: it may have
    /// been overwritten since.
    pub fn answer(&mut self, own: NodeId, rows: &DeviceRows) -> bool {
        let mut answers = BTreeMap::new();
        for seen in &self.seen {
            let Ok(id) = &seen.identity else { continue };
            let Some(row) = rows.proof(id) else { continue };
            let known = self.answers.get(id).filter(|answer| answer.number == row.number && row.node != own);
            let answer = known.copied().or_else(|| match proof::read(seen) {
                Ok(found) => Some(Answer { number: row.number, is_there: found == Some(row.number) }),
                Err(error) => {
                    tracing::warn!(device = %id, %error, "whether the device is shared can't be told");
                    None
                }
            });
            answers.extend(answer.map(|answer| (id.clone(), answer)));
        }
        let is_new = answers != self.answers;
        self.answers = answers;
        is_new
    }

    /// Gives a device a name of this node's own choice, until the cluster gives it one.
    ///
    /// # Errors
    /// The name begins with the reserved `prefix` or is borne, the device has one, or it can't be kept.
    pub fn name_locally(
        &mut self,
        id: &DeviceId,
        name: &DeviceName,
        prefix: &str,
    ) -> Result<(), DevicesError> {
        let step = self.table().name_locally(id, name, prefix)?;
        self.carry_out(std::slice::from_ref(&step))
    }

    /// Makes the names here those of the catalog, as far as what is in use allows.
    ///
    /// # Errors
    /// The table or the links can't be written. Repeat it: it goes on where it ended. After a failed write of the
    /// table, open again first.
    pub fn apply(&mut self, rows: &DeviceRows) -> Result<Report, DevicesError> {
        let ids = self.seen.iter().filter_map(|seen| seen.identity.as_ref().ok());
        self.doubted = ids.filter(|id| rows.has_twins(id)).cloned().collect();
        let uses = self.seen.iter().filter_map(|seen| {
            let id = seen.identity.as_ref().ok().filter(|id| !self.doubted.contains(id))?;
            let is_busy = seen.in_use || self.held.contains(id);
            Some((id.clone(), if is_busy { Use::Busy } else { Use::Idle }))
        });
        let plan = reconcile(self.table(), rows, &uses.collect());
        self.carry_out(&plan.steps)?;
        let report = self.follow()?;
        Ok(Report { steps: plan.steps, deferred: plan.deferred, ..report })
    }

    /// Makes the links follow the table as it is, without a word from the catalog.
    ///
    /// # Errors
    /// The links can't be listed or made.
    pub fn follow(&mut self) -> Result<Report, DevicesError> {
        let mut links = BTreeMap::new();
        for (id, entry) in self.table().entries() {
            let Some(seen) = self.undoubted(id).filter(|seen| self.is_still_there(seen)) else { continue };
            links.insert(entry.name.to_string(), seen.node.clone());
            links.extend(entry.alias.as_ref().map(|alias| (alias.to_string(), seen.node.clone())));
        }
        let in_the_way = self.links.show(&links)?;
        for one in &in_the_way {
            links.retain(|name, _| self.links.directory().join(name) != one.path);
        }
        let refused = self
            .seen
            .iter()
            .filter_map(|seen| Some((seen.kernel_name.clone(), seen.identity.as_ref().err()?.clone())));
        Ok(Report { refused: refused.collect(), in_the_way, links, ..Report::default() })
    }

    /// Makes steps durable, then lets the links take each of them.
    fn carry_out(&mut self, steps: &[Step]) -> Result<(), DevicesError> {
        self.store.commit(steps)?;
        for step in steps {
            match step {
                Step::Take { id, name, .. } | Step::Alias { id, name } => self.link(id, name.as_str())?,
                Step::Move { id, from, to } => {
                    self.link(id, &to.to_string())?;
                    self.links.remove(&from.to_string())?;
                }
                Step::Release { from, .. } => self.links.remove(&from.to_string())?,
                Step::DropAlias { name, .. } => self.links.remove(name.as_str())?,
            }
        }
        Ok(())
    }

    fn link(&self, id: &DeviceId, name: &str) -> Result<(), DevicesError> {
        match self.undoubted(id).filter(|seen| self.is_still_there(seen)) {
            Some(seen) if self.links.in_the_way(name).is_none() => self.links.set(name, &seen.node),
            Some(_) | None => self.links.remove(name),
        }
    }

    fn lead(&self, id: &DeviceId) -> Option<&Seen> {
        self.seen.iter().find(|seen| seen.identity.as_ref() == Ok(id))
    }

    /// What is called `id` here, unless another node sees a twin of it.
    fn undoubted(&self, id: &DeviceId) -> Option<&Seen> {
        self.lead(id).filter(|_| !self.doubted.contains(id))
    }

    /// Whether the kernel's name still leads to what was looked at.
    fn is_still_there(&self, seen: &Seen) -> bool {
        // A partition shows the attachment of its disk.
        let shown = sysfs::diskseq(&self.roots, &seen.kernel_name);
        shown.is_none() || shown == seen.diskseq
    }
}

#[cfg(test)]
mod tests;
