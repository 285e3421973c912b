//! The senders that an opener knows: who speaks under which session tag, and what of it was seen.
//!
//! It decides who gets a place and when a session ends. Every call that changes something is made for an
//! authentic datagram only, and changes nothing when it refuses. A node has one session at a time: a later
//! incarnation or key takes the place of the earlier one, whose tag means nothing from then on.

use std::collections::BTreeMap;

use ring::aead::LessSafeKey;

use super::layout::{Header, Origin, SessionTag, Short};
use super::window::Window;
use super::{NETWORKS_MAX, Rejected, SOURCES_MAX};

/// Senders that may share a session tag by chance; each is tried. Three at a time never happen by chance.
pub(super) const TAG_HOLDERS_MAX: usize = 2;

/// One sender in its present session.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) origin: Origin,
    pub(super) key_epoch: u32,
    pub(super) key: LessSafeKey,
    tag: SessionTag,
    windows: Vec<(u16, Window)>,
}

impl Source {
    /// Refuses what was seen before.
    pub(super) fn check_fresh(&self, header: &Header) -> Result<(), Rejected> {
        match self.window(header.network) {
            Some(window) if window.seen(header.sequence) => Err(Rejected::Replay),
            Some(_) | None => Ok(()),
        }
    }

    /// Takes note of an authentic datagram.
    pub(super) fn mark(&mut self, header: &Header) -> Result<(), Rejected> {
        let found = self.windows.iter_mut().find(|(network, _)| *network == header.network);
        if let Some((_, window)) = found {
            window.mark(header.sequence);
            return Ok(());
        }
        if self.windows.len() == NETWORKS_MAX {
            return Err(Rejected::TableFull);
        }
        let mut window = Window::default();
        window.mark(header.sequence);
        self.windows.push((header.network, window));
        Ok(())
    }

    /// The header that a short form stands for, if this session was introduced on that network.
    pub(super) fn complete(&self, short: &Short, cluster_tag: [u8; 8]) -> Result<Header, Rejected> {
        let network = u16::from(short.network);
        let window = self.window(network).ok_or(Rejected::UnknownSession)?;
        let sequence = window.nearest(short.sequence_low);
        Ok(Header { network, key_epoch: self.key_epoch, cluster_tag, origin: self.origin, sequence })
    }

    fn window(&self, network: u16) -> Option<&Window> {
        self.windows.iter().find(|(one, _)| *one == network).map(|(_, window)| window)
    }
}

/// All senders, by node and by session tag: each source is a holder of its own tag and of no other.
#[derive(Debug, Default)]
pub(super) struct Sources {
    by_node: BTreeMap<u128, Source>,
    by_tag: BTreeMap<SessionTag, Vec<u128>>,
}

impl Sources {
    pub(super) fn of_node(&mut self, node: u128) -> Option<&mut Source> {
        self.by_node.get_mut(&node)
    }

    /// The nodes whose present session has this tag: none, one, or two by a rare chance.
    pub(super) fn holders(&self, tag: &SessionTag) -> &[u128] {
        self.by_tag.get(tag).map_or(&[], Vec::as_slice)
    }

    pub(super) fn forget(&mut self, node: u128) {
        if let Some(source) = self.by_node.remove(&node) {
            self.release(node, source.tag);
        }
    }

    /// Takes an authentic introduction of a session that is not the present one of its node.
    pub(super) fn admit(
        &mut self,
        header: &Header,
        key: LessSafeKey,
        tag: SessionTag,
    ) -> Result<(), Rejected> {
        let node = header.origin.node;
        let room = self.by_node.len() < SOURCES_MAX;
        let tag_taken = self.holders(&tag).len() >= TAG_HOLDERS_MAX;
        let Some(source) = self.by_node.get_mut(&node) else {
            if !room || tag_taken {
                return Err(Rejected::TableFull);
            }
            let (origin, key_epoch) = (header.origin, header.key_epoch);
            let mut source = Source { origin, key_epoch, key, tag, windows: Vec::new() };
            source.mark(header)?;
            self.by_node.insert(node, source);
            self.by_tag.entry(tag).or_default().push(node);
            return Ok(());
        };
        let same_start = source.origin == header.origin;
        if same_start {
            // The same start under another cluster key: sequences go on, so the windows stay.
            source.check_fresh(header)?;
            if header.key_epoch < source.key_epoch {
                return source.mark(header);
            }
        } else if source.origin.incarnation == header.origin.incarnation {
            return Err(Rejected::Cloned);
        }
        if tag_taken {
            return Err(Rejected::TableFull);
        }
        if same_start {
            source.mark(header)?;
        } else {
            source.windows.clear();
            source.mark(header).expect("a table without networks has room for one");
        }
        let released = source.tag;
        source.origin = header.origin;
        (source.key_epoch, source.key, source.tag) = (header.key_epoch, key, tag);
        self.release(node, released);
        self.by_tag.entry(tag).or_default().push(node);
        Ok(())
    }

    fn release(&mut self, node: u128, tag: SessionTag) {
        let Some(holders) = self.by_tag.get_mut(&tag) else { return };
        holders.retain(|one| *one != node);
        if holders.is_empty() {
            self.by_tag.remove(&tag);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_node.len()
    }

    /// Whether each source is a holder of its own tag and nobody of another.
    #[cfg(test)]
    pub(super) fn tags_agree(&self) -> bool {
        let mut listed: Vec<_> =
            self.by_tag.iter().flat_map(|(tag, holders)| holders.iter().map(|node| (*node, *tag))).collect();
        listed.sort_unstable();
        let own: Vec<_> = self.by_node.iter().map(|(node, source)| (*node, source.tag)).collect();
        listed == own && self.by_tag.values().all(|holders| (1..=TAG_HOLDERS_MAX).contains(&holders.len()))
    }

    /// Lets another node hold a tag, as a third collision would.
    #[cfg(test)]
    pub(super) fn occupy(&mut self, tag: SessionTag, node: u128) {
        self.by_tag.entry(tag).or_default().push(node);
    }
}
