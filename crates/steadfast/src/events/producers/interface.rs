//! `network.interface`: an interface came, went, became usable or not, or got or lost an address.
//!
//! The kernel announces each over netlink. What it announces repeats much that is known, so that a table tells what is new. When
//! announcements were lost the table is asked for again, and what is different is told then. It changes no interface.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use tokio::io::Interest;

use super::post::{Post, Watched, fields, text};
use super::{ActivateError, Work};
use crate::net::netlink::{
    ATTRIBUTE_ADDRESS, ATTRIBUTE_LOCAL, Attributes, DEL_ADDRESS, DEL_LINK, DONE, ERROR, FLAG_INTERRUPTED,
    GET_ADDRESS, GET_LINK, GROUP_IPV4_ADDRESS, GROUP_IPV6_ADDRESS, GROUP_LINK, Message, Messages,
    NEW_ADDRESS, NEW_LINK, ip, number, question_for_all, receive,
};

/// `IFLA_IFNAME`.
const ATTRIBUTE_NAME: u16 = 3;
/// `IFF_UP`, and `IFF_LOWER_UP`: it has a carrier.
const USABLE: u32 = 0x1_0001;
const NAME_BYTES_MAX: usize = 15;
/// Interfaces that are remembered at most; containers can make many.
const INTERFACES_MAX: usize = 16 << 10;
/// Addresses of one interface that are remembered at most.
const ADDRESSES_MAX: usize = 1_024;
const READ_BYTES: usize = 64 << 10;
/// Bytes that the kernel may queue, where it allows as much.
const QUEUE_BYTES: usize = 1 << 20;
/// The kernel answers in the call that reads; this ends a wait that can't be.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// How often the table is asked for when it changes while it is told.
const TRIES: usize = 8;

/// What happened to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Added,
    Removed,
    Up,
    Down,
    AddressAdded(String),
    AddressRemoved(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    interface: String,
    what: What,
}

pub(super) fn open(post: Post) -> Result<Work, ActivateError> {
    if let Some(name) = post.about("interface")
        && (name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(['/', ' ', '\0']))
    {
        let wanted = "write the name of an interface, of at most 15 bytes, such as eth0";
        return Err(ActivateError::Malformed { field: "interface", given: name.to_owned(), wanted });
    }
    let refused = |action| ActivateError::refused("the kernel's announcements about interfaces", action);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)
        .map_err(refused("opened"))?;
    // More room is an improvement only: what overflows is asked for again.
    let _ = set_socket_recv_buffer_size(&socket, QUEUE_BYTES);
    let groups = GROUP_LINK | GROUP_IPV4_ADDRESS | GROUP_IPV6_ADDRESS;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups)).map_err(refused("subscribed to"))?;
    // What changes from here on is announced, so that nothing falls in between.
    let table =
        Table::ask().map_err(ActivateError::refused("the kernel's table of interfaces", "asked for"))?;
    let socket = post.watch_first(socket, Interest::READABLE)?;
    Ok(Box::pin(watch(post, socket, table)))
}

async fn watch(post: Post, socket: Watched, mut table: Table) -> String {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        if let Err(error) = socket.changed().await {
            return format!("the announcements about interfaces can't be waited for: {error}");
        }
        loop {
            // Interfaces that change without end must not keep this thread from others.
            tokio::task::coop::consume_budget().await;
            let changes = match receive(&socket, &mut buffer) {
                Ok(Some(length)) => {
                    let messages = Messages(buffer.get(..length).unwrap_or(&buffer));
                    messages.flat_map(|message| table.apply(message)).collect()
                }
                Ok(None) => Vec::new(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Vec::new(),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    post.lost();
                    match Table::ask() {
                        Ok(present) => std::mem::replace(&mut table, present).changes_to(&table),
                        Err(error) => return format!("the interfaces can't be asked for: {error}"),
                    }
                }
                Err(error) => return format!("the announcements about interfaces can't be read: {error}"),
            };
            changes.iter().for_each(|change| tell(&post, change));
        }
    }
}

fn tell(post: &Post, change: &Change) {
    if post.about("interface").is_some_and(|wanted| wanted != change.interface) {
        return;
    }
    let (what, address) = match &change.what {
        What::Added => ("added", None),
        What::Removed => ("removed", None),
        What::Up => ("up", None),
        What::Down => ("down", None),
        What::AddressAdded(address) => ("address_added", Some(address)),
        What::AddressRemoved(address) => ("address_removed", Some(address)),
    };
    let mut fields = fields([("interface", text(&change.interface)), ("change", text(what))]);
    if let Some(address) = address {
        fields.insert("address".to_owned(), text(address));
    }
    post.tell_all(fields);
}

/// What is known; pure but for [`Table::ask`].
#[derive(Clone, Debug, Default)]
struct Table(BTreeMap<u32, Interface>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Interface {
    name: String,
    is_up: bool,
    addresses: BTreeSet<String>,
}

impl Table {
    /// Asks the kernel for all interfaces and addresses.
    fn ask() -> io::Result<Table> {
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_MAX))?;
        for _ in 0..TRIES {
            let mut table = Table::default();
            let mut is_whole = true;
            for (kind, body_bytes) in [(GET_LINK, 16), (GET_ADDRESS, 8)] {
                rustix::net::send(&socket, &question_for_all(kind, body_bytes), SendFlags::empty())?;
                is_whole &= table.read_answer(&socket)?;
            }
            if is_whole {
                return Ok(table);
            }
        }
        Err(io::Error::other("they change all the time"))
    }

    /// Gives whether nothing changed while the answer was made.
    fn read_answer(&mut self, socket: &rustix::fd::OwnedFd) -> io::Result<bool> {
        let mut buffer = vec![0; READ_BYTES];
        let mut is_whole = true;
        loop {
            let (_, length) = rustix::net::recv(socket, buffer.as_mut_slice(), RecvFlags::TRUNC)?;
            for message in Messages(buffer.get(..length).unwrap_or_default()) {
                is_whole &= message.flags & FLAG_INTERRUPTED == 0;
                match message.kind {
                    DONE => return Ok(is_whole),
                    ERROR => return Err(io::Error::other("the kernel refuses")),
                    _ => drop(self.apply(message)),
                }
            }
        }
    }

    /// Takes an announcement; gives what is new in it.
    fn apply(&mut self, message: Message<'_>) -> Vec<Change> {
        let changed = match message.kind {
            NEW_LINK => self.apply_link(message.body),
            DEL_LINK => self.remove_link(message.body),
            NEW_ADDRESS | DEL_ADDRESS => {
                self.apply_address(message.kind == NEW_ADDRESS, message.body).map(|change| vec![change])
            }
            // The kernel may announce what we do not know.
            _ => None,
        };
        changed.unwrap_or_default()
    }

    fn apply_link(&mut self, body: &[u8]) -> Option<Vec<Change>> {
        let index = link_index(body)?;
        let flags = u32::from_ne_bytes(number(body.get(8..)?)?);
        let name = Attributes(body.get(16..)?).find(|(kind, _)| *kind == ATTRIBUTE_NAME)?.1;
        let name = String::from_utf8_lossy(name.strip_suffix(b"\0").unwrap_or(name)).into_owned();
        let is_full = self.0.len() >= INTERFACES_MAX && !self.0.contains_key(&index);
        let earlier = self.0.get(&index).cloned();
        let addresses = earlier.iter().flat_map(|one| one.addresses.clone()).collect();
        let interface = Interface { name, is_up: flags & USABLE == USABLE, addresses };
        let changes = Interface::changes(earlier.as_ref(), Some(&interface));
        if is_full {
            return None;
        }
        self.0.insert(index, interface);
        Some(changes)
    }

    fn remove_link(&mut self, body: &[u8]) -> Option<Vec<Change>> {
        let earlier = self.0.remove(&link_index(body)?)?;
        Some(Interface::changes(Some(&earlier), None))
    }

    fn apply_address(&mut self, is_there: bool, body: &[u8]) -> Option<Change> {
        let prefix = body.get(1)?;
        let index = u32::from_ne_bytes(number(body.get(4..)?)?);
        let (mut address, mut local) = (None, None);
        for (kind, value) in Attributes(body.get(8..)?) {
            match kind {
                ATTRIBUTE_ADDRESS => address = ip(value),
                ATTRIBUTE_LOCAL => local = ip(value),
                _ => {}
            }
        }
        // Of a point-to-point interface the first is the other end's.
        let address: IpAddr = local.or(address)?;
        let interface = self.0.get_mut(&index)?;
        let address = format!("{address}/{prefix}");
        let what = if is_there {
            if interface.addresses.contains(&address) || interface.addresses.len() >= ADDRESSES_MAX {
                return None;
            }
            interface.addresses.insert(address.clone());
            What::AddressAdded(address)
        } else {
            interface.addresses.remove(&address).then_some(What::AddressRemoved(address))?
        };
        Some(Change { interface: interface.name.clone(), what })
    }

    /// What happened if this was before and `present` is now.
    fn changes_to(&self, present: &Table) -> Vec<Change> {
        let indices: BTreeSet<_> = self.0.keys().chain(present.0.keys()).collect();
        let both = indices.into_iter().map(|index| (self.0.get(index), present.0.get(index)));
        both.flat_map(|(earlier, present)| Interface::changes(earlier, present)).collect()
    }
}

/// The interface that a message is about; a bridge also speaks about its ports, which is another matter.
fn link_index(body: &[u8]) -> Option<u32> {
    (*body.first()? == 0).then_some(())?;
    Some(u32::from_ne_bytes(number(body.get(4..)?)?))
}

impl Interface {
    fn changes(earlier: Option<&Interface>, present: Option<&Interface>) -> Vec<Change> {
        // A new name makes it another interface for whoever watches by name.
        if let (Some(before), Some(after)) = (earlier, present)
            && before.name != after.name
        {
            let mut changes = Interface::changes(earlier, None);
            changes.extend(Interface::changes(None, present));
            return changes;
        }
        let nothing = Interface::default();
        let (before, after) = (earlier.unwrap_or(&nothing), present.unwrap_or(&nothing));
        let mut whats = Vec::new();
        if earlier.is_none() && present.is_some() {
            whats.push(What::Added);
        }
        whats.extend(before.addresses.difference(&after.addresses).cloned().map(What::AddressRemoved));
        match (before.is_up, after.is_up) {
            (false, true) => whats.push(What::Up),
            (true, false) => whats.push(What::Down),
            (true, true) | (false, false) => {}
        }
        whats.extend(after.addresses.difference(&before.addresses).cloned().map(What::AddressAdded));
        if earlier.is_some() && present.is_none() {
            whats.push(What::Removed);
        }
        let name = if present.is_some() { &after.name } else { &before.name };
        whats.into_iter().map(|what| Change { interface: name.clone(), what }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, flags: u32) -> Vec<u8> {
        let mut body = vec![0; 4];
        body.extend(index.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        body.extend([0; 4]);
        body.extend(u16::try_from(name.len() + 5).unwrap().to_ne_bytes());
        body.extend(ATTRIBUTE_NAME.to_ne_bytes());
        body.extend(name.as_bytes());
        body.push(0);
        body.resize(body.len().next_multiple_of(4), 0);
        body
    }

    fn address(index: u32, last: u8) -> Vec<u8> {
        let mut body = vec![2, 24, 0, 0];
        body.extend(index.to_ne_bytes());
        body.extend([8, 0, 2, 0, 10, 0, 0, last]);
        body
    }

    fn apply(table: &mut Table, kind: u16, body: &[u8]) -> Vec<What> {
        table.apply(Message { kind, flags: 0, body }).into_iter().map(|change| change.what).collect()
    }

    #[test]
    fn only_what_is_new_in_an_announcement_counts() {
        let mut table = Table::default();
        assert_eq!(apply(&mut table, NEW_LINK, &link(7, "eth0", 0)), [What::Added]);
        assert_eq!(apply(&mut table, NEW_LINK, &link(7, "eth0", USABLE)), [What::Up]);
        assert_eq!(apply(&mut table, NEW_LINK, &link(7, "eth0", USABLE)), []);
        let here = "10.0.0.1/24".to_owned();
        assert_eq!(apply(&mut table, NEW_ADDRESS, &address(7, 1)), [What::AddressAdded(here.clone())]);
        assert_eq!(apply(&mut table, NEW_ADDRESS, &address(7, 1)), []);
        assert_eq!(apply(&mut table, NEW_ADDRESS, &address(8, 1)), [], "of an interface that is not there");
        let before = table.clone();
        assert_eq!(apply(&mut table, NEW_LINK, &link(7, "eth0", 1)), [What::Down], "the cable is out");
        assert_eq!(apply(&mut table, DEL_ADDRESS, &address(7, 2)), []);
        let gone = [What::AddressRemoved(here.clone()), What::Removed];
        assert_eq!(apply(&mut table, DEL_LINK, &link(7, "eth0", 1)), gone);
        let lost: Vec<_> = before.changes_to(&table).into_iter().map(|change| change.what).collect();
        assert_eq!(lost, [What::AddressRemoved(here), What::Down, What::Removed]);
    }

    #[test]
    fn a_new_name_is_another_interface() {
        let mut table = Table::default();
        apply(&mut table, NEW_LINK, &link(7, "eth0", USABLE));
        let changes = table.apply(Message { kind: NEW_LINK, flags: 0, body: &link(7, "lan", USABLE) });
        let said: Vec<_> = changes.iter().map(|one| (one.interface.as_str(), one.what.clone())).collect();
        assert_eq!(
            said,
            [("eth0", What::Down), ("eth0", What::Removed), ("lan", What::Added), ("lan", What::Up)]
        );
    }

    #[test]
    fn cut_announcements_change_nothing() {
        for body in [link(7, "eth0", USABLE), address(7, 1)] {
            for end in 0..body.len() {
                let mut table = Table::default();
                for kind in [NEW_LINK, DEL_LINK, NEW_ADDRESS, DEL_ADDRESS] {
                    let _ = apply(&mut table, kind, &body[..end]);
                }
            }
        }
    }
}
