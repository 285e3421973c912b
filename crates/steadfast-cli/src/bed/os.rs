//! The few calls of the kernel that the test bed needs and the standard library lacks: new name spaces for a child
//! process, work done inside another process's name spaces, and a TAP device.
//!
//! Every call happens on a thread of its own, which ends afterwards: no other thread ever changes its name spaces.
//! This is the one file of the crate that may hold `unsafe`. Read `spaces.rs` next.

use std::ffi::c_short;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::BorrowedFd;
use std::process::{Child, Command};
use std::thread;

use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces, unshare_unsafe};

/// Starts `command` as process 1 of new process, network, mount, host-name and IPC name spaces.
pub(super) fn spawn_in_new_spaces(command: &mut Command) -> io::Result<Child> {
    let flags = UnshareFlags::FS
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWIPC;
    on_own_thread(|| {
        unshare_flags(flags)?;
        command.spawn()
    })
}

/// Runs `work` on a thread that has entered the `which` name spaces of the process behind `pidfd`.
///
/// `work` may start processes, open sockets and files; it must not start threads (the kernel refuses that after a
/// change of the process name space).
pub(super) fn in_spaces<T: Send>(
    pidfd: BorrowedFd<'_>,
    which: ThreadNameSpaceType,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    on_own_thread(|| {
        if which.contains(ThreadNameSpaceType::MOUNT) {
            // The kernel changes the mount name space only of a thread that shares its root and working directory with nobody.
            unshare_flags(UnshareFlags::FS)?;
        }
        move_into_thread_name_spaces(pidfd, which)?;
        work()
    })
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let handle = thread::Builder::new().name("bed-enter".into()).spawn_scoped(scope, work)?;
        match handle.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn unshare_flags(flags: UnshareFlags) -> io::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "descriptors stay shared");
    // SAFETY: the danger of this call is `CLONE_FILES`, which would hide descriptors from other threads; the line
    // above refuses it. The other flags touch only the calling thread, which is ours and ends right afterwards.
    unsafe { unshare_unsafe(flags) }?;
    Ok(())
}

/// `struct ifreq` as TUNSETIFF reads it: a name, the flags, and padding up to the kernel's 40 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: c_short,
    padding: [u8; 22],
}

const TAP_DEVICE: c_short = 0x0002;
const NO_PACKET_HEADER: c_short = 0x1000;
const TUNSETIFF: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<std::ffi::c_int>(b'T', 202);

/// Makes TAP device `name` in the calling thread's network name space; one read or write is one Ethernet frame.
///
/// The device offers no offloads, so the kernel hands out whole, checksummed frames. It vanishes with the file.
pub(super) fn open_tap(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request =
        InterfaceRequest { name: [0; 16], flags: TAP_DEVICE | NO_PACKET_HEADER, padding: [0; 22] };
    if name.len() >= request.name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an interface name has at most 15 bytes"));
    }
    for (slot, byte) in request.name.iter_mut().zip(name.bytes()) {
        *slot = byte;
    }
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq` (40 bytes on 64-bit Linux) through the pointer; the request has
    // that size and layout and outlives the call. The kernel keeps no pointer to it.
    unsafe {
        rustix::ioctl::ioctl(&file, rustix::ioctl::Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request))
    }?;
    Ok(file)
}
