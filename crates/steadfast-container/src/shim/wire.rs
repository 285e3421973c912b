//! Works the container's interface for the fence, on a thread of its own: the kernel's network lock may be held by
//! others for long, and the fence must not wait for it.
//!
//! Must never open the gate beyond the lease it was told.

use std::{
    io,
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Duration,
};

use crate::{
    config::Address,
    layout::{Layout, hardware_address},
    network::{self, NetworkError, arp::Announcer, gate::Gate, netlink::InterfaceSwitch},
};

/// How often an arrival is announced: with the thaw, and with the renewals that follow.
const ANNOUNCEMENTS: u32 = 4;
/// After how long the kernel asks anew for a neighbour's address that nobody answered.
const NEIGHBOUR_RETRY_MS: &str = "50";
const ANSWER_MAX: Duration = Duration::from_secs(2);

type Answer = Sender<io::Result<()>>;

#[derive(Debug)]
enum Order {
    Open { until: u64 },
    Close,
    CloseNow(Answer),
    Hold(Answer),
    Release,
}

/// Takes orders for one container's interfaces. Without an address only its talk with itself is there to be held.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    orders: Sender<Order>,
}

impl Wire {
    /// Makes the container's network; nothing passes to the outside until the first [`Wire::open`], and, when it begins
    /// held, nothing at all until [`Wire::release`].
    pub(crate) fn create(
        layout: &Layout,
        id: &str,
        bridge: Option<&str>,
        address: Option<Address>,
        held: bool,
    ) -> Result<Self, NetworkError> {
        let namespace = layout.netns();
        network::create_namespace(&namespace)?;
        let mut inside = Gate::hold(&namespace)?;
        let outside = match address {
            Some(address) => {
                let bridge = bridge.ok_or(NetworkError::NoBridge(address))?;
                Some(Outside::create(layout, id, bridge, address)?)
            }
            None => None,
        };
        if held {
            inside.insert().map_err(network::kernel("holding the container's loopback"))?;
        }
        let (orders, inbox) = mpsc::channel();
        let worker = Worker { outside, inside, held, until: 0 };
        thread::Builder::new()
            .name("wire".into())
            .spawn(move || worker.run(&inbox))
            .map_err(network::kernel("starting a thread"))?;
        Ok(Self { orders })
    }

    /// Lets frames pass until then (CLOCK_BOOTTIME, nanoseconds), unless held.
    pub(crate) fn open(&self, until: u64) {
        self.orders.send(Order::Open { until }).ok();
    }

    /// Silences the container.
    pub(crate) fn close(&self) {
        self.orders.send(Order::Close).ok();
    }

    /// Silences the container and waits until it is, but not for long. Only where no fence is to be kept any more.
    pub(crate) fn close_now(&self) {
        self.ask(Order::CloseNow).ok();
    }

    /// Stops every frame, in, out and inside, until [`Wire::release`]: no connection changes while an image is taken.
    pub(crate) fn hold(&self) -> io::Result<()> {
        self.ask(Order::Hold)
    }

    /// Ends a hold; without one it does nothing. The lease decides again what passes.
    pub(crate) fn release(&self) {
        self.orders.send(Order::Release).ok();
    }

    fn ask(&self, order: impl FnOnce(Answer) -> Order) -> io::Result<()> {
        let (answer, answered) = mpsc::channel();
        self.orders.send(order(answer)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        answered.recv_timeout(ANSWER_MAX).map_err(|_| io::ErrorKind::TimedOut)?
    }
}

struct Worker {
    outside: Option<Outside>,
    inside: Gate,
    held: bool,
    /// Until when the lease lets frames pass.
    until: u64,
}

impl Worker {
    fn run(mut self, inbox: &Receiver<Order>) {
        while let Ok(order) = inbox.recv() {
            let (what, outcome) = match order {
                Order::Open { until } => ("opening", self.open(until)),
                Order::Close => ("closing", self.close()),
                Order::CloseNow(answer) => {
                    answer.send(self.close()).ok();
                    continue;
                }
                Order::Hold(answer) => {
                    answer.send(self.hold()).ok();
                    continue;
                }
                Order::Release => ("releasing", self.release()),
            };
            if let Err(e) = outcome {
                eprintln!("steadfast shim: {what} the container's interface failed: {e}");
            }
        }
    }

    fn open(&mut self, until: u64) -> io::Result<()> {
        self.until = until;
        match self.outside.as_mut().filter(|_| !self.held) {
            Some(outside) => outside.open(until),
            None => Ok(()),
        }
    }

    fn close(&mut self) -> io::Result<()> {
        self.until = 0;
        self.outside.as_mut().map_or(Ok(()), Outside::close)
    }

    fn hold(&mut self) -> io::Result<()> {
        self.held = true;
        if let Some(outside) = &mut self.outside {
            outside.gate.close()?;
        }
        self.inside.insert()
    }

    fn release(&mut self) -> io::Result<()> {
        if !self.held {
            return Ok(());
        }
        self.held = false;
        self.inside.close()?;
        if self.until == 0 { Ok(()) } else { self.open(self.until) }
    }
}

/// Has the kernel repeat what it asks a neighbour sooner than after its usual second, in the calling thread's name space.
///
/// A restored program's first packets leave before the gate is open: the kernel then asks for the neighbour's address in
/// vain, and whoever talks to the program would wait for its next question.
fn ask_neighbours_often() {
    let path = format!("/proc/sys/net/ipv4/neigh/{}/retrans_time_ms", network::INSIDE);
    if let Err(e) = std::fs::write(&path, NEIGHBOUR_RETRY_MS) {
        eprintln!(
            "steadfast shim: {path} can't be set, so the first answer after a restore may take a second longer: {e}"
        );
    }
}

/// The way out of a container with an address.
struct Outside {
    gate: Gate,
    switch: InterfaceSwitch,
    announcer: Announcer,
    raised: bool,
    announcements_left: u32,
}

impl Outside {
    fn create(layout: &Layout, id: &str, bridge: &str, address: Address) -> Result<Self, NetworkError> {
        let namespace = layout.netns();
        let hardware = hardware_address(id);
        network::attach(&namespace, &layout.interface, bridge, hardware, address)?;
        let gate = Gate::lease(&namespace)?;
        let switch = InterfaceSwitch::open(&layout.interface)
            .map_err(network::kernel("finding the container's interface"))?;
        let announcer = network::inside(&namespace, move || {
            ask_neighbours_often();
            Announcer::open(network::INSIDE, address.ip, hardware)
                .map_err(network::kernel("opening an ARP socket"))
        })?;
        Ok(Self { gate, switch, announcer, raised: false, announcements_left: 0 })
    }

    fn open(&mut self, until: u64) -> io::Result<()> {
        self.gate.open_until(until)?;
        if !self.raised {
            self.switch.raise()?;
            self.raised = true;
            self.announcements_left = ANNOUNCEMENTS;
        }
        if self.announcements_left > 0 {
            self.announcements_left -= 1;
            // The carrier may need a moment; later announcements make up for a lost one.
            self.announcer.announce().ok();
        }
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        self.raised = false;
        let lowered = self.switch.lower();
        self.gate.close()?;
        lowered
    }
}
