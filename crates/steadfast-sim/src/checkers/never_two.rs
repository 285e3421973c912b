//! NEVER-TWO: at no instant do two copies of a container run, nor are two heard.
//!
//! One copy is excused from the first half: one whose shim is stopped, and came due while it was, and which the kernel
//! has silenced. It may compute, and nobody hears it (the limit that PROTOCOLS 0.3 states).

use std::collections::BTreeMap;

use steadfast_proto::ids::{ContainerId, Epoch};

use super::{Checker, Fact};

#[derive(Debug, Default)]
pub(super) struct NeverTwo {
    /// The copies that run, each with its epoch and whether it is excused.
    running: BTreeMap<ContainerId, BTreeMap<usize, (Epoch, bool)>>,
}

impl Checker for NeverTwo {
    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Copy { host, container, epoch, running: true, heard, excused, .. } => {
                let copies = self.running.entry(*container).or_default();
                copies.insert(*host, (*epoch, *excused && !heard));
                let unexcused: Vec<_> = copies.iter().filter(|(_, (_, excused))| !excused).collect();
                if unexcused.len() > 1 {
                    let copies: Vec<_> = unexcused
                        .iter()
                        .map(|(host, (epoch, _))| (format!("n{}", *host + 1), epoch))
                        .collect();
                    return Err(format!("{container:?} runs more than once: {copies:?}"));
                }
                Ok(())
            }
            Fact::Copy { host, container, running: false, .. } | Fact::CopyGone { host, container } => {
                if let Some(copies) = self.running.get_mut(container) {
                    copies.remove(host);
                }
                Ok(())
            }
            Fact::Installed { .. }
            | Fact::View { .. }
            | Fact::Kept { .. }
            | Fact::Row { .. }
            | Fact::Captured { .. }
            | Fact::Sealed { .. }
            | Fact::Freed { .. }
            | Fact::MemoryGone { .. } => Ok(()),
        }
    }
}
