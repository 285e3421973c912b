//! Tells that block devices came, went or changed, as the kernel announces it.
//!
//! The kernel sends one datagram per change over netlink; this module keeps those about block devices, waits until
//! a burst is over (attaching one disk makes several), and says which names to look at again. It decides nothing
//! and reads no device. When announcements were lost it says so, and everything has to be looked at.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// How long it has to be quiet before a burst of announcements is over.
const QUIET: Duration = Duration::from_millis(5);
/// How long a burst is waited for at most.
const BURST_MAX: Duration = Duration::from_millis(100);
/// Names that are told apart in one burst; of more, everything is looked at.
const NAMES_MAX: usize = 4096;
/// Bytes of one announcement; the kernel's own limit is 2 KiB of text and a path.
const READ_BYTES: usize = 8 << 10;
/// Bytes that the kernel may queue, where it allows as much.
const QUEUE_BYTES: usize = 4 << 20;
/// The group in which the kernel itself speaks.
const GROUP_KERNEL: u32 = 1;

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// These devices, by the kernel's names.
    Names(BTreeSet<String>),
    /// Announcements were lost: anything may have changed.
    Anything,
}

/// The kernel's announcements can't be read. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("the kernel's announcements about devices can't be {action}: {source}")]
pub struct UeventError {
    /// What was tried.
    pub action: &'static str,
    /// The operating system's answer.
    pub source: io::Error,
}

impl UeventError {
    fn new<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> UeventError {
        move |error| UeventError { action, source: error.into() }
    }
}

/// Listens to the kernel.
#[derive(Debug)]
pub struct Uevents {
    socket: AsyncFd<OwnedFd>,
    pending: BTreeSet<String>,
    is_lost: bool,
    buffer: Box<[u8]>,
}

impl Uevents {
    /// Begins to listen. Must be called within a tokio runtime; scan after it, so that no change falls in between.
    ///
    /// # Errors
    /// The kernel offers no such socket, as in a user name space.
    pub fn open() -> Result<Uevents, UeventError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(KOBJECT_UEVENT);
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)
            .map_err(UeventError::new("opened"))?;
        // More room is an improvement only: after a loss everything is looked at.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, QUEUE_BYTES);
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUP_KERNEL))
            .map_err(UeventError::new("subscribed to"))?;
        let socket = readable(socket).map_err(UeventError::new("waited for"))?;
        let buffer = vec![0; READ_BYTES].into();
        Ok(Uevents { socket, pending: BTreeSet::new(), is_lost: false, buffer })
    }

    /// Waits for the next burst of changes to be over. Cancelling loses nothing.
    ///
    /// # Errors
    /// The socket failed for good.
    pub async fn next(&mut self) -> Result<Changed, UeventError> {
        while self.pending.is_empty() && !self.is_lost {
            self.read().await?;
        }
        let end = Instant::now() + BURST_MAX;
        loop {
            let quiet = (Instant::now() + QUIET).min(end);
            match tokio::time::timeout_at(quiet, self.read()).await {
                Ok(Ok(())) if Instant::now() < end => {}
                Ok(Err(error)) => return Err(error),
                Ok(Ok(())) | Err(_) => break,
            }
        }
        let names = std::mem::take(&mut self.pending);
        Ok(if std::mem::take(&mut self.is_lost) { Changed::Anything } else { Changed::Names(names) })
    }

    /// Takes note of one announcement.
    async fn read(&mut self) -> Result<(), UeventError> {
        let buffer = &mut self.buffer;
        let read = self.socket.async_io(Interest::READABLE, |socket| receive(socket, buffer)).await;
        let length = match read {
            Ok(length) => length,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                self.is_lost = true;
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(UeventError::new("read")(error)),
        };
        match length.map(|length| self.buffer.get(..length)) {
            // Another program's.
            None => {}
            // Longer than any that the kernel makes.
            Some(None) => self.is_lost = true,
            Some(Some(bytes)) => self.pending.extend(block_device(bytes).map(str::to_owned)),
        }
        if self.pending.len() > NAMES_MAX {
            self.pending.clear();
            self.is_lost = true;
        }
        Ok(())
    }
}

#[expect(
    deprecated,
    reason = "the other constructors are unsafe, and an `OwnedFd` stays open until it is dropped"
)]
fn readable(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}

/// Reads one datagram; gives its full length, or `None` when it is not the kernel's.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    let (_, length, from) = rustix::net::recvfrom(socket, buffer, flags)?;
    let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
    Ok(from.is_some_and(|from| from.pid() == 0).then_some(length))
}

/// The block device that an announcement is about: `ACTION@PATH` and then `KEY=VALUE`, each ended by a zero byte.
pub fn block_device(announcement: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(announcement).ok()?;
    let value =
        |key: &str| text.split('\0').skip(1).find_map(|field| field.strip_prefix(key)?.strip_prefix('='));
    if value("SUBSYSTEM") != Some("block") {
        return None;
    }
    let name = value("DEVNAME").or_else(|| value("DEVPATH")?.rsplit('/').next())?;
    (!name.is_empty() && name.len() <= 255).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_announcements_of_block_devices_count() {
        let change = b"change@/devices/virtual/block/loop3\0ACTION=change\0DEVPATH=/devices/virtual/block/loop3\0SUBSYSTEM=block\0MAJOR=7\0MINOR=3\0DEVNAME=loop3\0DEVTYPE=disk\0DISKSEQ=83\0SEQNUM=1\0";
        assert_eq!(block_device(change), Some("loop3"));
        assert_eq!(block_device(b"add@/a\0DEVPATH=/devices/x/sda\0SUBSYSTEM=block\0"), Some("sda"));
        assert_eq!(block_device(b"add@/a\0DEVPATH=/devices/x/eth0\0SUBSYSTEM=net\0"), None);
        assert_eq!(block_device(b"libudev\0\xfe\xed\xca\xfe"), None);
        for end in 0..change.len() {
            let _ = block_device(&change[..end]);
        }
    }
}
