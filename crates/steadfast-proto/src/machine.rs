//! The interface that every protocol core has, and the order in which its outputs are carried out.
//!
//! A core is a pure function of `(now, input)`: it reads no clock, socket, file or random source, so the agent,
//! the simulator and the model checker run the very same code. Read [`crate::node`] for the machine that joins
//! all protocols.

use crate::time::Time;

/// A protocol core.
///
/// The caller steps it with every input, carries out what the step wrote to `out`, and steps it again with its
/// `Deadline` input when [`Machine::deadline`] has come. A step can't fail or block; what is wrong with an input
/// is counted inside.
pub trait Machine {
    /// What can happen to the machine.
    type Input;
    /// Where a step puts what is to be done. The caller owns it, so nothing is queued or forgotten inside.
    type Output;

    /// Takes one input at `now`. After a `Deadline` input, `deadline()` is later than `now` or `None`.
    fn step(&mut self, now: Time, input: Self::Input, out: &mut Self::Output);

    /// When the machine next wants a `Deadline` input, if ever.
    fn deadline(&self) -> Option<Time>;
}
