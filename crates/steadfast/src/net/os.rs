//! The system calls that have no safe wrapper: receive many datagrams with the kernel's time stamps.
//!
//! This is the one file of the crate with `unsafe`: `recvmmsg` and the option that turns stamps on exist
//! in no safe library. It decides nothing. Read next: `datagram`, its only caller.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Datagrams that one system call fetches at most.
pub(super) const BATCH: usize = 32;
/// Room for one datagram; a longer one is cut and then rejected by its length.
pub(super) const BUFFER_BYTES: usize = 2048;

/// One received datagram as the kernel gave it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) buffer: Box<[u8; BUFFER_BYTES]>,
    pub(super) length: usize,
    pub(super) from: Option<SocketAddr>,
    /// CLOCK_REALTIME at arrival in ns, when the kernel stamped it.
    pub(super) stamp_realtime_ns: Option<u64>,
}

impl Slot {
    pub(super) fn new() -> Self {
        Self { buffer: Box::new([0; BUFFER_BYTES]), length: 0, from: None, stamp_realtime_ns: None }
    }
}

/// Asks the kernel to stamp each datagram at arrival.
pub(super) fn enable_time_stamps(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("four fits");
    // SAFETY: the descriptor is borrowed and so open; the pointer and length describe `on`, which lives
    // across the call; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPNS,
            ptr::from_ref(&on).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Room for the control messages of one datagram: a time stamp, and later an error report.
type Control = [u64; 32];

/// Fetches what is queued, up to `slots.len()` and [`BATCH`]; never waits.
pub(super) fn receive<T: AsMut<Slot>>(socket: BorrowedFd<'_>, slots: &mut [T]) -> io::Result<usize> {
    let count = slots.len().min(BATCH);
    let mut names = [MaybeUninit::<libc::sockaddr_storage>::zeroed(); BATCH];
    let mut controls: [Control; BATCH] = [[0; 32]; BATCH];
    let mut parts = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH];
    // SAFETY: `mmsghdr` is a C struct of integers and pointers, for which all zeroes are valid.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
    let rows = names.iter_mut().zip(&mut controls).zip(&mut parts).zip(&mut headers);
    for (slot, (((name, control), part), header)) in slots.iter_mut().zip(rows).take(count) {
        let slot = slot.as_mut();
        *part = libc::iovec { iov_base: slot.buffer.as_mut_ptr().cast(), iov_len: slot.buffer.len() };
        let message = &mut header.msg_hdr;
        message.msg_name = name.as_mut_ptr().cast();
        message.msg_namelen =
            libc::socklen_t::try_from(size_of::<libc::sockaddr_storage>()).expect("128 fits");
        message.msg_iov = ptr::from_mut(part);
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>() as _;
    }
    // SAFETY: the first `count` headers point to one buffer, name and control area each, which are
    // distinct, live in this frame or in `slots`, and have the lengths given beside them; the rest of
    // the headers is not passed. The descriptor is borrowed and so open.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            libc::c_uint::try_from(count).expect("at most 32"),
            libc::MSG_DONTWAIT as _,
            ptr::null_mut(),
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    for ((slot, header), name) in slots.iter_mut().zip(&headers).zip(&names).take(received) {
        let slot = slot.as_mut();
        slot.length = usize::try_from(header.msg_len).unwrap_or(usize::MAX).min(BUFFER_BYTES);
        // SAFETY: the storage was zeroed before the call and the kernel wrote at most its length, so
        // every byte is initialized, and any byte pattern is a valid `sockaddr_storage`.
        slot.from = address(unsafe { name.assume_init_ref() });
        slot.stamp_realtime_ns = stamp(&header.msg_hdr);
    }
    Ok(received)
}

fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the storage, which is larger and at least as aligned, holds
            // an IPv4 address; all its fields are integers.
            let v4 = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for an IPv6 address.
            let v6 = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn stamp(message: &libc::msghdr) -> Option<u64> {
    // SAFETY: the kernel filled the control area of this header, which is still alive in the caller's
    // frame, and set `msg_controllen` to what it used; the macros stay within it.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !control.is_null() {
        // SAFETY: a pointer that the macros give is a whole, aligned header inside the control area.
        let header = unsafe { &*control };
        if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_TIMESTAMPNS {
            // SAFETY: a message of this type carries one `timespec`; it is read without assuming
            // alignment.
            let time: libc::timespec = unsafe { ptr::read_unaligned(libc::CMSG_DATA(control).cast()) };
            let seconds = u64::try_from(time.tv_sec).ok()?;
            let nanos = u64::try_from(time.tv_nsec).ok()?;
            return seconds.checked_mul(1_000_000_000)?.checked_add(nanos);
        }
        // SAFETY: as for the first header; `control` came from the same message.
        control = unsafe { libc::CMSG_NXTHDR(message, control) };
    }
    None
}
