//! Which sequences of one sender on one network arrived, and which 64-bit sequence a short form means.
//!
//! It decides whether a sequence is new; it never marks one by itself, because only an authentic datagram may.
//! Read next: `sources`, which keeps one window per sender and network.

/// How far behind the newest sequence a late datagram may arrive.
pub const REPLAY_WINDOW: u64 = 1024;

const WORDS: usize = 16;
/// Sequences that share their low half lie this far apart.
const LAP: u64 = 1 << 32;

/// Which of the last [`REPLAY_WINDOW`] sequences arrived: a ring of bits, bit `s % 1024` for sequence `s`.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    newest: u64,
    bits: [u64; WORDS],
}

impl Window {
    /// Whether a sequence arrived before, or is too old to tell.
    pub(super) fn seen(&self, sequence: u64) -> bool {
        if sequence > self.newest {
            return false;
        }
        if self.newest - sequence >= REPLAY_WINDOW {
            return true;
        }
        let (word, mask) = Self::place(sequence);
        self.bits.get(word).is_some_and(|bits| bits & mask != 0)
    }

    /// Takes note of a sequence that was not seen.
    pub(super) fn mark(&mut self, sequence: u64) {
        if sequence > self.newest {
            if sequence - self.newest >= REPLAY_WINDOW {
                self.bits = [0; WORDS];
            } else {
                for skipped in self.newest + 1..sequence {
                    self.set(skipped, false);
                }
            }
            self.newest = sequence;
        }
        self.set(sequence, true);
    }

    /// The sequence with this low half that lies nearest to the newest one: right while a sender is less than
    /// 2^31 datagrams ahead of what arrived. A wrong guess opens nothing, because the sequence is in the nonce.
    pub(super) fn nearest(&self, low: u32) -> u64 {
        let distance = i64::from(low.wrapping_sub(low_half(self.newest)).cast_signed());
        self.newest.checked_add_signed(distance).unwrap_or_else(|| {
            // There is no such sequence below 0 or above the largest, so the next lap's is the nearest.
            let other_way = if distance < 0 { LAP } else { LAP.wrapping_neg() };
            self.newest.wrapping_add_signed(distance).wrapping_add(other_way)
        })
    }

    fn set(&mut self, sequence: u64, value: bool) {
        let (word, mask) = Self::place(sequence);
        if let Some(bits) = self.bits.get_mut(word) {
            *bits = if value { *bits | mask } else { *bits & !mask };
        }
    }

    fn place(sequence: u64) -> (usize, u64) {
        let bit = sequence % REPLAY_WINDOW;
        (usize::try_from(bit / 64).expect("below 16"), 1 << (bit % 64))
    }
}

/// The low 32 bits of a sequence: all of it that a short form carries.
pub(super) fn low_half(sequence: u64) -> u32 {
    u32::try_from(sequence % LAP).expect("a remainder of 2^32 has 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn window(newest: u64) -> Window {
        Window { newest, bits: [0; WORDS] }
    }

    #[test]
    fn a_low_half_is_completed_at_both_edges_of_a_lap_and_of_all_sequences() {
        for newest in [LAP - 1, LAP, LAP + 1, 7 * LAP - 1, 7 * LAP, 7 * LAP + 1] {
            for distance in [-(1_i64 << 31), 1 - (1 << 31), -1024, -1, 0, 1, 1024, (1 << 31) - 1] {
                let meant = newest.checked_add_signed(distance).unwrap();
                assert_eq!(window(newest).nearest(low_half(meant)), meant, "{newest} {distance}");
            }
            let too_far = newest + (1 << 31);
            assert_eq!(window(newest).nearest(low_half(too_far)), too_far - LAP);
        }
        assert_eq!(window(5).nearest(u32::MAX), LAP - 1);
        assert_eq!(window(0).nearest(1 << 31), 1 << 31);
        assert_eq!(window(u64::MAX).nearest(3), u64::MAX - LAP + 4);
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set(sequences in proptest::collection::vec(1u64..5000, 1..300)) {
            let mut window = Window::default();
            let mut set = BTreeSet::new();
            let mut newest = 0;
            for sequence in sequences {
                let expected = set.contains(&sequence) || sequence + REPLAY_WINDOW <= newest;
                prop_assert_eq!(window.seen(sequence), expected);
                if !expected {
                    window.mark(sequence);
                    set.insert(sequence);
                    newest = newest.max(sequence);
                }
            }
        }

        #[test]
        fn no_sequence_with_the_same_low_half_is_nearer(newest: u64, low: u32) {
            let nearest = window(newest).nearest(low);
            prop_assert_eq!(low_half(nearest), low);
            for rival in [nearest.checked_sub(LAP), nearest.checked_add(LAP)].into_iter().flatten() {
                prop_assert!(rival.abs_diff(newest) >= nearest.abs_diff(newest));
            }
        }
    }
}
