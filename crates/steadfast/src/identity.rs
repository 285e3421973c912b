//! Who this node is: its state directory, its persistent id, its incarnation, and its cluster secrets.
//!
//! It decides nothing about membership: it makes an id once and durable before anybody sees it (U3),
//! counts every start durably, and notices when the directory woke on another machine (U2, U4 are the
//! catalog's). It never invents a new id for a directory that has one, and never guesses around a
//! damaged file: it names the file and stops. Read next: `token` (how a node is invited), `net::tls`.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use steadfast_proto::flaw::{Flaw, is_planted};
use steadfast_proto::ids::{ClusterId, Incarnation, NodeId};

use crate::envelope::{EnvelopeError, Format, write_atomic};

const IDENTITY: Format = Format { magic: *b"SFid", version: 1, version_min: 1, body_bytes_max: 4096 };
const INCARNATION: Format = Format { magic: *b"SFin", version: 1, version_min: 1, body_bytes_max: 64 };
const MEMBERSHIP: Format = Format { magic: *b"SFmb", version: 1, version_min: 1, body_bytes_max: 64 * 1024 };

/// Most cluster keys a node keeps: the current one and those still accepted after a rotation.
pub const CLUSTER_KEYS_MAX: usize = 8;

/// Why a state directory can't be used. Nothing was changed unless a variant says so.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
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
    /// Another agent runs on this directory.
    #[error(
        "the state directory {path} is in use by another agent: stop that agent, or give this one its own directory"
    )]
    Locked {
        /// The state directory.
        path: PathBuf,
    },
    /// A file does not pass its checks.
    #[error(
        "{path} can't be trusted: {reason}; restore it from a backup, or remove the whole state directory and join the cluster again as a new node"
    )]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong with it.
        reason: CorruptReason,
    },
    /// The node belongs to a cluster, so its id can't be changed.
    #[error(
        "this node is a member of cluster {cluster:032x}: leave the cluster before taking a new identity"
    )]
    StillMember {
        /// The cluster's id.
        cluster: u128,
    },
    /// A value handed in is out of bounds; nothing was written.
    #[error("the membership has {found} bytes or keys where at most {max} fit")]
    TooLarge {
        /// What was given.
        found: usize,
        /// What fits.
        max: usize,
    },
}

/// What is wrong with a state file.
#[derive(Debug, thiserror::Error)]
pub enum CorruptReason {
    /// The envelope fails.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The checksum agrees but the content can't be read: another program wrote it.
    #[error("its content is not what this program writes")]
    Content,
    /// Identity is there, and a file that must accompany it is not.
    #[error("it is missing although the identity beside it exists")]
    Missing,
}

/// Marks by which a machine and a directory are told from their copies.
///
/// The directory's inode and birth time tell a copied directory from the original on one machine; the
/// machine and product ids tell a cloned disk. The device number is left out: it changes at reboots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// `/etc/machine-id`, empty where there is none.
    pub machine_id: String,
    /// The firmware's product id, empty where it can't be read.
    pub product_id: String,
    /// Inode number of the state directory.
    pub directory_inode: u64,
    /// Birth time of the state directory in ns since 1970, 0 where the file system keeps none.
    pub directory_birth_ns: u64,
}

impl Fingerprint {
    fn take(directory: &Path) -> Result<Self, IdentityError> {
        let metadata = std::fs::metadata(directory).map_err(io_error("look at", directory))?;
        let birth = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(Self {
            machine_id: read_mark("/etc/machine-id"),
            product_id: read_mark("/sys/class/dmi/id/product_uuid"),
            directory_inode: metadata.ino(),
            directory_birth_ns: birth
                .and_then(|time| u64::try_from(time.as_nanos()).ok())
                .unwrap_or_default(),
        })
    }

    /// A short name of this fingerprint, the same on every run: 16 hexadecimal digits.
    #[must_use]
    pub fn short(&self) -> String {
        let text = format!(
            "{}\n{}\n{}\n{}",
            self.machine_id, self.product_id, self.directory_inode, self.directory_birth_ns
        );
        blake3::hash(text.as_bytes()).to_hex().as_str().chars().take(16).collect()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = if self.machine_id.is_empty() { "without an id" } else { &self.machine_id };
        write!(f, "{} (machine {machine}, directory inode {})", self.short(), self.directory_inode)
    }
}

/// A 256-bit secret that never appears in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterKey {
    /// Key epoch: +1 at each rotation.
    pub epoch: u32,
    secret: [u8; 32],
}

impl ClusterKey {
    /// Takes a key that another node handed over.
    #[must_use]
    pub const fn new(epoch: u32, secret: [u8; 32]) -> Self {
        Self { epoch, secret }
    }

    /// Draws a new key from the operating system's random source.
    #[must_use]
    pub fn generate(epoch: u32) -> Self {
        Self { epoch, secret: random() }
    }

    /// The secret itself, for key derivation and for handing to a joiner.
    #[must_use]
    pub const fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// A name of the key that tells nothing of it: two keys of one epoch are told apart by it.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        blake3::derive_key("steadfast 2026 cluster key name", &self.secret)
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterKey").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// What a node keeps about the cluster it belongs to: names, keys, certificates.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The cluster's id, as a number.
    pub cluster: u128,
    /// The cluster's human name.
    pub cluster_name: String,
    /// This node's human name.
    pub node_name: String,
    /// Cluster keys, newest first; at most [`CLUSTER_KEYS_MAX`].
    pub cluster_keys: Vec<ClusterKey>,
    /// The cluster CA's certificate, DER.
    pub ca_certificate: Vec<u8>,
    /// The CA's private key, PKCS#8 DER, on nodes that may invite.
    pub ca_key: Option<Vec<u8>>,
    /// This node's certificate, DER.
    pub node_certificate: Vec<u8>,
    /// This node's private key, PKCS#8 DER.
    pub node_key: Vec<u8>,
    /// Opaque bytes of the agent: what it needs to find the cluster again (addresses, settings).
    pub extra: Vec<u8>,
}

impl Membership {
    /// The cluster's id.
    #[must_use]
    pub const fn cluster_id(&self) -> ClusterId {
        ClusterId(self.cluster)
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("cluster", &format_args!("{:032x}", self.cluster))
            .field("cluster_name", &self.cluster_name)
            .field("node_name", &self.node_name)
            .field("cluster_keys", &self.cluster_keys)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct IdentityRecord {
    node: u128,
    created_unix_s: u64,
    fingerprint: Fingerprint,
}

/// One node's identity, with its state directory locked for as long as this value lives.
///
/// ```no_run
/// use steadfast::identity::Identity;
/// let identity = Identity::open_for_start(std::path::Path::new("/var/lib/steadfast"))?;
/// println!("{:?} incarnation {:?}", identity.node(), identity.incarnation());
/// if let Some(was) = identity.moved_from() {
///     eprintln!("this directory was made on {was}: is its original still running?");
/// }
/// # Ok::<(), steadfast::identity::IdentityError>(())
/// ```
#[derive(Debug)]
pub struct Identity {
    directory: PathBuf,
    node: NodeId,
    incarnation: Incarnation,
    salt: [u8; 16],
    created_unix_s: u64,
    fingerprint: Fingerprint,
    recorded: Fingerprint,
    membership: Option<Membership>,
    _lock: File,
}

impl Identity {
    /// Opens the directory (making it and the id when there is none) and counts one more start.
    ///
    /// # Errors
    /// The directory is in use, damaged, or can't be written. The id and the incarnation are durable
    /// when this returns.
    pub fn open_for_start(directory: &Path) -> Result<Self, IdentityError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(directory).map_err(io_error("make the state directory", directory))?;
        let lock = lock(directory)?;
        let fingerprint = Fingerprint::take(directory)?;
        let record = match read(&directory.join("identity"), IDENTITY)? {
            Some(record) => record,
            None => make_identity(directory, &fingerprint)?,
        };
        let incarnation = count_start(directory)?;
        let membership = read(&directory.join("membership"), MEMBERSHIP)?;
        Ok(Self {
            directory: directory.to_path_buf(),
            node: NodeId(record.node),
            incarnation,
            salt: random(),
            created_unix_s: record.created_unix_s,
            fingerprint,
            recorded: record.fingerprint,
            membership,
            _lock: lock,
        })
    }

    /// The persistent id of this node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// How often this node was started, this start included.
    #[must_use]
    pub const fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Random bytes of this start, for the keys of its datagrams.
    #[must_use]
    pub const fn salt(&self) -> [u8; 16] {
        self.salt
    }

    /// When the id was made, in seconds since 1970.
    #[must_use]
    pub const fn created_unix_s(&self) -> u64 {
        self.created_unix_s
    }

    /// The marks of the machine and directory as they are now.
    #[must_use]
    pub const fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The marks under which the id was made, when they differ from now: a moved or copied directory.
    #[must_use]
    pub fn moved_from(&self) -> Option<&Fingerprint> {
        (self.recorded != self.fingerprint).then_some(&self.recorded)
    }

    /// Accepts that the directory lives here now, once the catalog showed that no other copy is active.
    ///
    /// # Errors
    /// The file can't be written; the old marks stay.
    pub fn accept_move(&mut self) -> Result<(), IdentityError> {
        self.write_record(self.node, self.created_unix_s)?;
        self.recorded = self.fingerprint.clone();
        Ok(())
    }

    /// The cluster this node belongs to, if any.
    #[must_use]
    pub const fn membership(&self) -> Option<&Membership> {
        self.membership.as_ref()
    }

    /// Makes a membership durable (owner-only file), replacing the one before.
    ///
    /// # Errors
    /// It is out of bounds or can't be written; the one before stays.
    pub fn store_membership(&mut self, membership: Membership) -> Result<(), IdentityError> {
        if membership.cluster_keys.len() > CLUSTER_KEYS_MAX {
            let found = membership.cluster_keys.len();
            return Err(IdentityError::TooLarge { found, max: CLUSTER_KEYS_MAX });
        }
        write(&self.directory.join("membership"), MEMBERSHIP, &membership)?;
        self.membership = Some(membership);
        Ok(())
    }

    /// Forgets the cluster: the last step of leaving it.
    ///
    /// # Errors
    /// The file can't be removed.
    pub fn forget_membership(&mut self) -> Result<(), IdentityError> {
        let path = self.directory.join("membership");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &path)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let directory = File::open(&self.directory).map_err(io_error("open", &self.directory))?;
        directory.sync_all().map_err(io_error("flush", &self.directory))?;
        self.membership = None;
        Ok(())
    }

    /// Takes a new id, the cure for a copied directory (U2: never while a member).
    ///
    /// # Errors
    /// The node is a member, or the file can't be written; the old id stays.
    pub fn reidentify(&mut self) -> Result<NodeId, IdentityError> {
        if let Some(membership) = &self.membership {
            return Err(IdentityError::StillMember { cluster: membership.cluster });
        }
        let node = NodeId(uuid::Uuid::new_v4().as_u128());
        let created_unix_s = unix_s();
        self.write_record(node, created_unix_s)?;
        self.node = node;
        self.created_unix_s = created_unix_s;
        self.recorded = self.fingerprint.clone();
        Ok(node)
    }

    /// The state directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn write_record(&self, node: NodeId, created_unix_s: u64) -> Result<(), IdentityError> {
        let record = IdentityRecord { node: node.0, created_unix_s, fingerprint: self.fingerprint.clone() };
        write(&self.directory.join("identity"), IDENTITY, &record)
    }
}

/// Draws bytes from the operating system's random source.
///
/// # Panics
/// When the kernel has no random source, where no secret can be made at all.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the kernel's random source never fails once up");
    bytes
}

fn lock(directory: &Path) -> Result<File, IdentityError> {
    let path = directory.join("lock");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(io_error("open", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(IdentityError::Locked { path: directory.to_path_buf() }),
        Err(error) => Err(io_error("lock", &path)(error.into())),
    }
}

fn make_identity(directory: &Path, fingerprint: &Fingerprint) -> Result<IdentityRecord, IdentityError> {
    for name in ["membership", "incarnation"] {
        let path = directory.join(name);
        // A crash between the two first writes leaves nothing but the identity, so a companion
        // without an identity means that the identity was lost.
        if path.exists() {
            let path = directory.join("identity");
            return Err(IdentityError::Corrupt { path, reason: CorruptReason::Missing });
        }
    }
    let record = IdentityRecord {
        node: uuid::Uuid::new_v4().as_u128(),
        created_unix_s: unix_s(),
        fingerprint: fingerprint.clone(),
    };
    if !is_planted(Flaw::IdentityLate) {
        write(&directory.join("identity"), IDENTITY, &record)?;
    }
    Ok(record)
}

fn count_start(directory: &Path) -> Result<Incarnation, IdentityError> {
    let path = directory.join("incarnation");
    let before: Option<u64> = read(&path, INCARNATION)?;
    // A membership shows that the node was started before: without its counter a start could repeat
    // an incarnation that peers have seen.
    if before.is_none() && directory.join("membership").exists() {
        return Err(IdentityError::Corrupt { path, reason: CorruptReason::Missing });
    }
    let next = before.unwrap_or(0).saturating_add(1);
    write(&path, INCARNATION, &next)?;
    Ok(Incarnation(next))
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path, format: Format) -> Result<Option<T>, IdentityError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let corrupt = |reason| IdentityError::Corrupt { path: path.to_path_buf(), reason };
    decode(format, &bytes).map(Some).map_err(corrupt)
}

fn decode<T: for<'de> Deserialize<'de>>(format: Format, bytes: &[u8]) -> Result<T, CorruptReason> {
    let (_, body) = format.unwrap(bytes)?;
    postcard::from_bytes(body).map_err(|_| CorruptReason::Content)
}

/// The entry for fuzzing: a file of the state directory, written again where it is accepted.
#[doc(hidden)]
#[must_use]
pub fn rewrite_record(bytes: &[u8]) -> Option<Vec<u8>> {
    fn rewritten<T: Serialize + for<'de> Deserialize<'de>>(format: Format, bytes: &[u8]) -> Option<Vec<u8>> {
        let value: T = decode(format, bytes).ok()?;
        Some(format.wrap(&postcard::to_allocvec(&value).expect("it was just read")))
    }
    rewritten::<IdentityRecord>(IDENTITY, bytes)
        .or_else(|| rewritten::<u64>(INCARNATION, bytes))
        .or_else(|| rewritten::<Membership>(MEMBERSHIP, bytes))
}

fn write<T: Serialize>(path: &Path, format: Format, value: &T) -> Result<(), IdentityError> {
    let body = postcard::to_allocvec(value).expect("state records have no unserializable field");
    let max = format.body_bytes_max as usize;
    if body.len() > max {
        return Err(IdentityError::TooLarge { found: body.len(), max });
    }
    write_atomic(path, 0o600, &format.wrap(&body)).map_err(io_error("write", path))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_path_buf();
    move |source| IdentityError::Io { action, path, source }
}

fn read_mark(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().chars().take(64).collect()
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        Membership {
            cluster: 7,
            cluster_name: "lab".into(),
            node_name: "alpha".into(),
            cluster_keys: vec![ClusterKey::generate(1)],
            ca_certificate: vec![1],
            ca_key: None,
            node_certificate: vec![2],
            node_key: vec![3],
            extra: Vec::new(),
        }
    }

    #[test]
    fn the_id_stays_and_every_start_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (node, salt) = {
            let identity = Identity::open_for_start(dir.path()).unwrap();
            assert_eq!(identity.incarnation(), Incarnation(1));
            (identity.node(), identity.salt())
        };
        let identity = Identity::open_for_start(dir.path()).unwrap();
        assert_eq!((identity.node(), identity.incarnation()), (node, Incarnation(2)));
        assert_ne!(identity.salt(), salt);
        assert!(identity.moved_from().is_none());
    }

    #[test]
    fn a_second_agent_is_refused_while_the_first_lives() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open_for_start(dir.path()).unwrap();
        let error = Identity::open_for_start(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Locked { .. }), "{error}");
        drop(first);
        Identity::open_for_start(dir.path()).unwrap();
    }

    #[test]
    fn a_copied_directory_is_noticed_and_may_take_a_new_id() {
        let dir = tempfile::tempdir().unwrap();
        let original = Identity::open_for_start(dir.path()).unwrap();
        let copy = tempfile::tempdir().unwrap();
        for name in ["identity", "incarnation"] {
            std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
        }
        let mut cloned = Identity::open_for_start(copy.path()).unwrap();
        assert_eq!(cloned.node(), original.node());
        assert_eq!(cloned.moved_from(), Some(original.fingerprint()));
        let node = cloned.reidentify().unwrap();
        assert_ne!(node, original.node());
        drop(cloned);
        let again = Identity::open_for_start(copy.path()).unwrap();
        assert_eq!(again.node(), node);
        assert!(again.moved_from().is_none());
    }

    #[test]
    fn secrets_are_owner_only_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = Identity::open_for_start(dir.path()).unwrap();
        identity.store_membership(membership()).unwrap();
        let stored = identity.membership().unwrap().clone();
        let mode = std::fs::metadata(dir.path().join("membership")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(identity.reidentify(), Err(IdentityError::StillMember { cluster: 7 })));
        drop(identity);
        let identity = Identity::open_for_start(dir.path()).unwrap();
        assert_eq!(identity.membership(), Some(&stored));
        let secret = format!("{:?}", stored.cluster_keys[0].secret());
        assert!(!format!("{identity:?}").contains(&secret));
    }

    #[test]
    fn a_damaged_or_lost_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = Identity::open_for_start(dir.path()).unwrap();
        identity.store_membership(membership()).unwrap();
        drop(identity);
        for name in ["identity", "incarnation", "membership"] {
            let path = dir.path().join(name);
            let good = std::fs::read(&path).unwrap();
            let mut bad = good.clone();
            *bad.last_mut().unwrap() ^= 1;
            std::fs::write(&path, &bad).unwrap();
            let error = Identity::open_for_start(dir.path()).unwrap_err();
            assert!(matches!(error, IdentityError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains(name), "{error}");
            std::fs::write(&path, &good).unwrap();
        }
        for name in ["identity", "incarnation"] {
            let path = dir.path().join(name);
            let good = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            let error = Identity::open_for_start(dir.path()).unwrap_err();
            assert!(error.to_string().contains("missing"), "{error}");
            std::fs::write(&path, &good).unwrap();
        }
        Identity::open_for_start(dir.path()).unwrap();
    }
}
