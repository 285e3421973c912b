//! The third line of the fence: the kernel lets the container's frames pass only while a set element with a time-out
//! lives. Renewals refresh it; when agent and shim are both stopped, it ends by itself and the container falls silent.
//!
//! The table is in the container's own name space, where the container has no right to change it. It sees every frame
//! in both directions, ARP too. Must never let the element outlive the lease's `deadline - drift`.
//!
//! The same means, the other way round, holds what the container sends to itself while an image of it is taken.

use std::{io, path::Path, time::Duration};

use rustix::net::netlink;

use super::{
    INSIDE, NetworkError, feed, inside, kernel,
    netlink::{ACK, CREATE, Message, Socket, attribute, interface_index, is_verdict, nested, text, verdict},
};
use crate::clock::boottime_ns;

const TABLE: &str = "steadfast";

const HOLD_RULES: &str = "
table inet steadfast {
  set held { type iface_index; flags timeout; }
  chain arriving { type filter hook input priority -400; policy accept; iif @held drop; }
}
";

const LEASE_RULES: &str = "
table netdev steadfast {
  set lease { type iface_index; flags timeout; }
  chain incoming { type filter hook ingress device eth0 priority -500; policy drop; iif @lease accept; }
  chain outgoing { type filter hook egress device eth0 priority -500; policy drop; oif @lease accept; }
}
";

/// What a time-out is shorter than the lease: the kernel's coarsest tick, and the way to it.
const ALLOWANCE_NS: u64 = TICK_NS + 3_000_000;
const ATTEMPTS: usize = 5;
const FAMILY_INET: u8 = 1;
const FAMILY_NETDEV: u8 = 5;
/// Longer than any image takes; only a bound for what nobody undoes.
const HOLD_MAX: Duration = Duration::from_secs(3600);
const SUBSYSTEM: u16 = 10;
/// One tick of a kernel with 100 Hz.
const TICK_NS: u64 = 10_000_000;
const NEW_ELEMENT: u16 = (SUBSYSTEM << 8) | 12;
const DELETE_ELEMENT: u16 = (SUBSYSTEM << 8) | 14;
const NO_ENTRY: i32 = rustix::io::Errno::NOENT.raw_os_error();
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// One set of the kernel's, with the container's interface as its only element, or none.
#[derive(Debug)]
pub(crate) struct Gate {
    socket: Socket,
    family: u8,
    set: &'static str,
    interface: u32,
    sequence: u32,
    /// Until when the element lives, CLOCK_BOOTTIME nanoseconds; 0 when it is not there.
    open_until: u64,
}

impl Gate {
    /// Makes the gate of the lease, closed, in the name space kept under `namespace`.
    pub(crate) fn lease(namespace: &Path) -> Result<Self, NetworkError> {
        Self::create(namespace, LEASE_RULES, FAMILY_NETDEV, "lease", INSIDE)
    }

    /// Makes what can hold the container's talk with itself, open.
    pub(crate) fn hold(namespace: &Path) -> Result<Self, NetworkError> {
        Self::create(namespace, HOLD_RULES, FAMILY_INET, "held", "lo")
    }

    fn create(
        namespace: &Path,
        rules: &'static str,
        family: u8,
        set: &'static str,
        interface: &'static str,
    ) -> Result<Self, NetworkError> {
        inside(namespace, move || {
            feed("nft", &["-f", "-"], rules, "make the container's gate")?;
            let interface =
                interface_index(interface).map_err(kernel("finding the container's interface"))?;
            let socket =
                Socket::open(Some(netlink::NETFILTER)).map_err(kernel("opening a netfilter socket"))?;
            Ok(Self { socket, family, set, interface, sequence: 0, open_until: 0 })
        })
    }

    /// Puts the element in for as long as nobody takes it out.
    pub(crate) fn insert(&mut self) -> io::Result<()> {
        self.open_until = u64::MAX;
        self.replace(Some(HOLD_MAX))
    }

    /// Lets frames pass until `until`. Refreshes the kernel only when that moves the end by a third of what is left, so
    /// that a renewal every tenth of a lease costs next to nothing.
    ///
    /// The kernel counts from when it reads the time-out, with its coarse clock. If that was later than allowed for,
    /// the element would outlive `until`: it is put in again, and taken out when the machine stays too slow.
    pub(crate) fn open_until(&mut self, until: u64) -> io::Result<()> {
        for _ in 0..ATTEMPTS {
            let now = boottime_ns();
            let left = until.saturating_sub(now).saturating_sub(ALLOWANCE_NS);
            if left == 0 || until.saturating_sub(self.open_until.max(now)) < left / 3 {
                return Ok(());
            }
            self.replace(Some(Duration::from_nanos(left)))?;
            if boottime_ns().saturating_sub(now) + TICK_NS <= ALLOWANCE_NS {
                self.open_until = until;
                return Ok(());
            }
        }
        self.close()
    }

    /// Takes the element out at once.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        self.open_until = 0;
        self.replace(None)
    }

    /// Takes the element out and, with a time, puts it back, in one step of the kernel: no frame is lost in between.
    fn replace(&mut self, time: Option<Duration>) -> io::Result<()> {
        match self.transact(true, time) {
            // The old element ended by itself.
            Err(e) if e.raw_os_error() == Some(NO_ENTRY) => match time {
                Some(_) => self.transact(false, time),
                None => Ok(()),
            },
            done => done,
        }
    }

    fn transact(&mut self, delete: bool, time: Option<Duration>) -> io::Result<()> {
        let mut batch = self.boundary(BATCH_BEGIN);
        if delete {
            batch.extend(self.element(DELETE_ELEMENT, ACK, None));
        }
        if let Some(time) = time {
            batch.extend(self.element(NEW_ELEMENT, ACK | CREATE, Some(time)));
        }
        batch.extend(self.boundary(BATCH_END));
        self.socket.send(&batch)?;
        // The kernel has queued every verdict when `send` returns. The first refusal is the reason for all.
        let mut outcome = Err(io::ErrorKind::TimedOut.into());
        let mut heard = false;
        while !heard || self.socket.has_more()? {
            for (header, payload) in self.socket.receive()? {
                if is_verdict(header) && (!heard || outcome.is_ok()) {
                    outcome = verdict(&payload);
                    heard = true;
                }
            }
        }
        outcome
    }

    fn boundary(&mut self, kind: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let [high, low] = SUBSYSTEM.to_be_bytes();
        Message::new(kind, 0, self.sequence).raw(&[0, 0, high, low]).finish()
    }

    fn element(&mut self, kind: u16, flags: u16, time: Option<Duration>) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let key = nested(1, &[attribute(1, &self.interface.to_ne_bytes())]);
        let mut parts = vec![key];
        if let Some(time) = time {
            // Rounded down, so that it never outlives the lease; at least one unit, because 0 means for ever.
            let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
            parts.push(attribute(4, &ms.to_be_bytes()));
        }
        Message::new(kind, flags, self.sequence)
            .raw(&[self.family, 0, 0, 0])
            .raw(&text(1, TABLE))
            .raw(&text(2, self.set))
            .raw(&nested(3, &[nested(1, &parts)]))
            .finish()
    }
}
