//! The one random source of a world, with the few draws that the world makes.
//!
//! Must never be seeded from anything but the seed on the command line: the same seed is the same run.

/// A seeded random source.
#[derive(Clone, Debug)]
pub(crate) struct Random(oorandom::Rand64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(oorandom::Rand64::new(u128::from(seed)))
    }

    /// A number from `0` to `bound - 1`; zero when `bound` is.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.0.rand_range(0..bound) }
    }

    /// An index into a collection of `len` elements.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("an index below a length fits")
    }

    /// A number between `low` and `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True with this probability.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.0.rand_float() < probability
    }

    /// A duration of this mean, exponentially distributed and cut at eight times the mean, in the mean's unit.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and below 8 means")]
    #[expect(clippy::cast_precision_loss, reason = "a drawn duration needs no precision")]
    pub(crate) fn around(&mut self, mean: u64) -> u64 {
        let share = -(1.0 - self.0.rand_float()).ln();
        (mean as f64 * share.min(8.0)) as u64
    }

    /// One of these.
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let index = self.index(from.len());
        from.get(index)
    }
}
