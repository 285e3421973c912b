//! Works the container's interface for the fence, on a thread of its own: the kernel's network lock may be held by
//! others for long, and the fence must not wait for it.
//!
//! Must never open the gate beyond the lease it was told.

use std::{
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Duration,
};

use crate::{
    clock,
    config::Address,
    layout::{Layout, hardware_address},
    network::{self, NetworkError, arp::Announcer, gate::Gate, netlink::InterfaceSwitch},
};

/// How often an arrival is announced: with the thaw, and with the renewals that follow.
const ANNOUNCEMENTS: u32 = 4;
const CLOSE_MAX: Duration = Duration::from_millis(500);

#[derive(Debug)]
enum Order {
    Open {
        until: u64,
    },
    Close,
    /// Close, and say so.
    CloseNow(Sender<()>),
}

/// Takes orders for one container's interface. A container without an address has none, and orders do nothing.
#[derive(Debug)]
pub(crate) struct Wire {
    orders: Option<Sender<Order>>,
}

impl Wire {
    /// Makes the container's network; nothing passes until the first [`Wire::open`].
    pub(crate) fn create(
        layout: &Layout,
        id: &str,
        bridge: Option<&str>,
        address: Option<Address>,
    ) -> Result<Self, NetworkError> {
        let namespace = layout.netns();
        network::create_namespace(&namespace)?;
        let Some(address) = address else { return Ok(Self { orders: None }) };
        let bridge = bridge.ok_or(NetworkError::NoBridge(address))?;
        let hardware = hardware_address(id);
        network::attach(&namespace, &layout.interface, bridge, hardware, address)?;
        let gate = Gate::create(&namespace)?;
        let switch = InterfaceSwitch::open(&layout.interface)
            .map_err(network::kernel("finding the container's interface"))?;
        let announcer = network::inside(&namespace, move || {
            Announcer::open(network::INSIDE, address.ip, hardware)
                .map_err(network::kernel("opening an ARP socket"))
        })?;
        let (orders, inbox) = mpsc::channel();
        let worker = Worker { gate, switch, announcer, raised: false, announcements_left: 0 };
        thread::Builder::new()
            .name("wire".into())
            .spawn(move || worker.run(&inbox))
            .map_err(network::kernel("starting a thread"))?;
        Ok(Self { orders: Some(orders) })
    }

    /// Lets frames pass until then (CLOCK_BOOTTIME, nanoseconds).
    pub(crate) fn open(&self, until: u64) {
        self.order(Order::Open { until });
    }

    /// Silences the container.
    pub(crate) fn close(&self) {
        self.order(Order::Close);
    }

    /// Silences the container and waits until it is, but not for long. Only where no fence is to be kept any more.
    pub(crate) fn close_now(&self) {
        if self.orders.is_some() {
            let (done, closed) = mpsc::channel();
            self.order(Order::CloseNow(done));
            closed.recv_timeout(CLOSE_MAX).ok();
        }
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            orders.send(order).ok();
        }
    }
}

struct Worker {
    gate: Gate,
    switch: InterfaceSwitch,
    announcer: Announcer,
    raised: bool,
    announcements_left: u32,
}

impl Worker {
    fn run(mut self, inbox: &Receiver<Order>) {
        while let Ok(first) = inbox.recv() {
            // Only the newest order counts; those before it are overtaken.
            let order = inbox.try_iter().last().unwrap_or(first);
            let outcome = match &order {
                Order::Open { until } => self.open(*until),
                Order::Close | Order::CloseNow(_) => self.close(),
            };
            if let Order::CloseNow(done) = &order {
                done.send(()).ok();
            }
            if let Err(e) = outcome {
                eprintln!("steadfast shim: {order:?} on the container's interface failed: {e}");
            }
        }
    }

    fn open(&mut self, until: u64) -> std::io::Result<()> {
        self.gate.open_until(clock::boottime_ns(), until)?;
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

    fn close(&mut self) -> std::io::Result<()> {
        self.raised = false;
        let lowered = self.switch.lower();
        self.gate.close()?;
        lowered
    }
}
