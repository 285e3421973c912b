//! The only file of this crate with unsafe code: the few calls of the kernel that no safe wrapper we use offers.
//!
//! Decides nothing. Each function is as small as the call it wraps.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::FromRawFd,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use rustix::{
    net::{
        AddressFamily, Protocol, SocketFlags, SocketType,
        addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque},
    },
    thread::UnshareFlags,
};

/// Gives the calling thread a new network name space.
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: only CLONE_FILES makes this call unsound (descriptors vanish under other threads); it is not given.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}

/// Lets the calling thread run before all ordinary ones; its children start as ordinary ones.
pub(crate) fn prefer_this_thread() -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: `parameter` outlives the call, which only reads it; 0 is the calling thread.
    let code = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameter)
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes ownership of a descriptor that this process inherited under a number its caller chose.
pub(crate) fn adopt_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only looks the number up.
    if number <= 2 || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the number is open (checked above) and above the standard streams; the only caller runs at the start of a
    // process that has opened nothing itself, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Opens a socket that sends and receives whole ARP frames on one interface.
pub(crate) fn arp_socket(interface: u32) -> io::Result<OwnedFd> {
    const ARP: u16 = 0x0806;
    let protocol =
        Protocol::from_raw(std::num::NonZeroU32::new(u32::from(ARP.to_be())).expect("ARP is not zero"));
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(protocol))?;
    let index = i32::try_from(interface).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    let address = LinkLayer(libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).expect("AF_PACKET is 17"),
        sll_protocol: ARP.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    });
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

struct LinkLayer(libc::sockaddr_ll);

// SAFETY: the pointer is to a whole `sockaddr_ll` that lives during the call, and the length is its size.
unsafe impl SocketAddrArg for LinkLayer {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        let length =
            SocketAddrLen::try_from(size_of::<libc::sockaddr_ll>()).expect("a sockaddr_ll has 20 bytes");
        f((&raw const self.0).cast(), length)
    }
}

/// Keeps a descriptor open across exec.
pub(crate) fn inherit(descriptor: &OwnedFd) -> io::Result<RawFd> {
    rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
    Ok(descriptor.as_raw_fd())
}
