//! The system calls that have no safe wrapper: receive many datagrams with the kernel's time stamps, fetch
//! its error reports, and ask what it knows about a TCP connection or about how a process ended.
//!
//! This is the one file of the crate with `unsafe`: `recvmmsg`, the error queue, `TCP_INFO`, `PIDFD_GET_INFO`
//! and the options that turn them on exist in no safe library. It decides nothing. Read next: `datagram` and
//! `watch`, its callers.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

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
    enable(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS)
}

/// Asks the kernel to queue a report for each datagram that comes back refused.
pub(super) fn enable_error_queue(socket: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => enable(socket, libc::IPPROTO_IP, libc::IP_RECVERR),
        SocketAddr::V6(_) => enable(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    }
}

fn enable(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("four fits");
    // SAFETY: the descriptor is borrowed and so open; the pointer and length describe `on`, which lives
    // across the call; the kernel only reads it.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, ptr::from_ref(&on).cast(), length) };
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

/// One error report: why a datagram, whose head and destination stand in a [`Slot`], was not delivered.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorReport {
    pub(super) errno: i32,
    /// Whether it came in an ICMP message, not from this machine's own routing.
    pub(super) is_icmp: bool,
    /// Who sent that message.
    pub(super) offender: Option<SocketAddr>,
}

/// Fetches the oldest error report into `slot`; never waits. `None` is a report of another kind.
pub(super) fn receive_error(socket: BorrowedFd<'_>, slot: &mut Slot) -> io::Result<Option<ErrorReport>> {
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut control: Control = [0; 32];
    let mut part = libc::iovec { iov_base: slot.buffer.as_mut_ptr().cast(), iov_len: slot.buffer.len() };
    // SAFETY: `msghdr` is a C struct of integers and pointers, for which all zeroes are valid.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = libc::socklen_t::try_from(size_of::<libc::sockaddr_storage>()).expect("128 fits");
    message.msg_iov = ptr::from_mut(&mut part);
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>() as _;
    // SAFETY: the header points to one buffer, name and control area, which live in this frame or in
    // `slot` and have the lengths given beside them. The descriptor is borrowed and so open.
    let received = unsafe {
        libc::recvmsg(
            socket.as_raw_fd(),
            ptr::from_mut(&mut message),
            libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT,
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    slot.length = received.min(BUFFER_BYTES);
    // SAFETY: the storage was zeroed before the call and the kernel wrote at most its length.
    slot.from = address(unsafe { name.assume_init_ref() });
    slot.stamp_realtime_ns = stamp(&message);
    Ok(error_report(&message))
}

fn error_report(message: &libc::msghdr) -> Option<ErrorReport> {
    // The report and, behind it, the address of who sent it, as the kernel lays them out.
    #[repr(C)]
    struct WithOffender {
        error: libc::sock_extended_err,
        offender: libc::sockaddr_in6,
    }
    let mut found = None;
    each_control(message, |header, data, length| {
        let is_error = matches!(
            (header.cmsg_level, header.cmsg_type),
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        );
        if !is_error || length < size_of::<libc::sock_extended_err>() {
            return;
        }
        let mut whole = MaybeUninit::<WithOffender>::zeroed();
        // SAFETY: `data` has `length` bytes; at most the struct's size of them is copied into it, the rest of
        // it stays zero, and any byte pattern is valid for its integers.
        let whole = unsafe {
            let count = length.min(size_of::<WithOffender>());
            ptr::copy_nonoverlapping(data, whole.as_mut_ptr().cast(), count);
            whole.assume_init()
        };
        let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
        // SAFETY: the storage is larger and at least as aligned as an IPv6 address; the rest stays zero.
        let offender = unsafe {
            storage.as_mut_ptr().cast::<libc::sockaddr_in6>().write(whole.offender);
            address(storage.assume_init_ref())
        };
        found = Some(ErrorReport {
            errno: i32::try_from(whole.error.ee_errno).unwrap_or_default(),
            is_icmp: [libc::SO_EE_ORIGIN_ICMP, libc::SO_EE_ORIGIN_ICMP6].contains(&whole.error.ee_origin),
            offender,
        });
    });
    found
}

/// Lets a task wait until a descriptor can be read. Must be called within a tokio runtime.
pub(super) fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watchable(descriptor, Interest::READABLE)
}

/// Lets a task wait for what the kernel says about a descriptor. Must be called within a tokio runtime.
pub(crate) fn watchable(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor from here until it is dropped, and nobody else closes it.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    Ok(registered?)
}

/// The kernel's `struct pidfd_info` in its first version, of 64 bytes.
#[repr(C)]
#[derive(Default)]
struct ProcessInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit: i32,
}

/// `PIDFD_GET_INFO`: read and write, 64 bytes, group 0xff, number 11.
const PROCESS_INFO: libc::Ioctl = 0xc040_ff0b;
/// `PIDFD_INFO_EXIT`: how the process ended, as soon as its parent has taken note.
const INFO_EXIT: u64 = 8;

/// How a process ended, in the form of `wait`; `None` while its parent has not taken note, and before Linux 6.15.
pub(crate) fn process_exit(process: BorrowedFd<'_>) -> Option<i32> {
    let mut info = ProcessInfo { mask: INFO_EXIT, ..ProcessInfo::default() };
    // SAFETY: the descriptor is borrowed and so open; the kernel writes at most the 64 bytes that the request's number
    // states, to `info`, which has that size, lives across the call and may hold any bytes.
    let result = unsafe { libc::ioctl(process.as_raw_fd(), PROCESS_INFO, ptr::from_mut(&mut info)) };
    (result == 0 && info.mask & INFO_EXIT != 0).then_some(info.exit)
}

/// What the kernel knows about one TCP connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct TcpState {
    pub(super) last_ack_received_ms: u32,
    pub(super) last_data_received_ms: u32,
    pub(super) retransmits: u8,
    pub(super) unacked: u32,
    pub(super) rtt_us: u32,
}

/// Asks the kernel for the state of a TCP connection.
pub(super) fn tcp_state(socket: BorrowedFd<'_>) -> io::Result<TcpState> {
    // SAFETY: `tcp_info` is a C struct of integers, for which all zeroes are valid.
    let mut info: libc::tcp_info = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).expect("some hundred bytes");
    // SAFETY: the descriptor is borrowed and so open; the kernel writes at most `length` bytes to `info`,
    // which lives across the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            ptr::from_mut(&mut info).cast(),
            ptr::from_mut(&mut length),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(TcpState {
        last_ack_received_ms: info.tcpi_last_ack_recv,
        last_data_received_ms: info.tcpi_last_data_recv,
        retransmits: info.tcpi_retransmits,
        unacked: info.tcpi_unacked,
        rtt_us: info.tcpi_rtt,
    })
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
    let mut found = None;
    each_control(message, |header, data, length| {
        let is_stamp = header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_TIMESTAMPNS;
        if !is_stamp || length < size_of::<libc::timespec>() {
            return;
        }
        // SAFETY: `data` has at least the bytes of a `timespec`; it is read without assuming alignment.
        let time: libc::timespec = unsafe { ptr::read_unaligned(data.cast()) };
        let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
        if let (Ok(seconds), Ok(nanos)) = (seconds, nanos) {
            found = seconds.checked_mul(1_000_000_000).and_then(|ns| ns.checked_add(nanos));
        }
    });
    found
}

/// Shows each control message: its header, and where its data lies and how long that is.
fn each_control(message: &libc::msghdr, mut visit: impl FnMut(&libc::cmsghdr, *const u8, usize)) {
    // SAFETY: the kernel filled the control area of this header, which is still alive in the caller's
    // frame, and set `msg_controllen` to what it used; the macros stay within it.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !control.is_null() {
        // SAFETY: a pointer that the macros give is a whole, aligned header inside the control area.
        let header = unsafe { &*control };
        // SAFETY: the macro only adds the size of the header to the pointer.
        let data: *const u8 = unsafe { libc::CMSG_DATA(control) };
        let before = data.addr().saturating_sub(control.addr());
        let length = header.cmsg_len as usize;
        visit(header, data, length.saturating_sub(before));
        // SAFETY: as for the first header; `control` came from the same message.
        control = unsafe { libc::CMSG_NXTHDR(message, control) };
    }
}
