//! The catalog's row of the group, as an ideal register: swaps take effect one after the other, whenever they arrive.

use steadfast_proto::group::{Row, Swap, Swapped};

#[derive(Debug)]
pub(super) struct Register {
    pub(super) row: Row,
    pub(super) renewals: u32,
}

impl Register {
    pub(super) fn new(row: Row) -> Register {
        Register { row, renewals: 0 }
    }

    /// Carries out a swap; the second value says whether the row changed.
    pub(super) fn swap(&mut self, swap: &Swap) -> (Swapped, bool) {
        if self.row.key() != swap.expected {
            let outcome =
                if self.row == swap.next { Swapped::Done } else { Swapped::Conflict(self.row.clone()) };
            return (outcome, false);
        }
        self.renewals += u32::from(self.row.view.id == swap.next.view.id);
        self.row = swap.next.clone();
        (Swapped::Done, true)
    }
}
