//! Planted bugs: known ways to get the fence or the detector wrong, each of which the simulator must catch.
//!
//! Without the feature `planted-flaws`, and outside this crate's own tests, the answer is always "no" and the compiler removes the question.

/// A way to get it wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A recovery starts on this node's own suspicion, without a committed removal.
    ActOnOwnVerdict,
    /// A recovery starts without waiting for the lost node's lease.
    SkipFence,
    /// Clocks are taken to run alike and to be read at once.
    DriftZero,
    /// Ownership and checkpoint are two rows: a checkpoint's commit does not notice a change of owner.
    TwoRows,
    /// A view is proposed whatever the one before it is by then.
    ViewWithoutBasis,
    /// A container thaws as soon as its node hears a grantor, whatever the row says by then.
    ThawWithoutFreshLease,
    /// Opinions are formed while heartbeats still wait to be handed over, and by when they are (PROTOCOLS 3.1).
    NoDrain,
    /// Ages are not taken as zero when a dead network comes back (3.1).
    NoRebase,
    /// Nobody ever finds itself cut off (3.2).
    NoIsolation,
    /// The interval is adapted and not advertised (4.4).
    IntervalNotAdvertised,
    /// Nobody's denial counts (4.4).
    NoRefutation,
    /// What is received makes a link up, whatever the other end hears (4.6).
    ReceiveOnlyUp,
    /// A relevant message counts as finished when it is delivered (PROTOCOLS 1.2).
    QuiesceDoneAtDelivery,
    /// A report is given while handlers run (1.2).
    QuiesceBusyIgnored,
    /// A report does not wait for what is known to be on its way (1.2).
    QuiesceNeedsIgnored,
    /// What was sent is compared with what had been sent when the question arrived, not when the last report left (1.2).
    QuiesceLateBaseline,
    /// Messages of a dead participant are still processed (1.6).
    QuiesceNoFence,
    /// A member is replaced in two views: one without it, then one with its successor (3.4).
    GroupTwoSteps,
    /// A candidate agrees to its promotion before it has everything up to the cut (3.4).
    GroupPromoteBeforeCut,
    /// A candidate's acknowledgement counts as a full member's (3.4).
    GroupCandidateCounts,
    /// A member that agreed to a cut still takes records beyond it (3.4).
    GroupAcceptAfterAck,
    /// Survivors of a failure do not exchange what some of them lack (3.4, 6).
    GroupNoFlush,
    /// A member that agreed to a change goes on after a while without making sure that the change can't be committed.
    GroupNoRenewal,
    /// Who takes mirrored homes over does not have their copies fenced (PROTOCOLS 2.5).
    MirrorNoFence,
    /// The keeper of mirrored homes is deposed home by home, each with the copies of whoever answers first (2.5).
    MirrorHomeByHome,
    /// Automatic names are numbered by how many devices there are, not by a counter (4.2).
    CounterReused,
    /// A ring of names is renamed without letting one device wait under a temporary name (4.2).
    NoTemporaryNames,
    /// A node's id is not durable before the catalog knows it (4.5).
    IdentityLate,
    /// Who takes an invitation up does not compare that it is still open (4.5).
    InviteNotCompared,
    /// The same id from another machine counts as the same node (4.5).
    CloneAdmitted,
    /// A listener lets go of the producer before somebody else holds on to it (4.3).
    EventsGapInHandOver,
    /// What another node tells of counts as having happened here as well (4.3).
    EventsLoop,
    /// A consumer that fell behind is not told what it missed (4.3).
    EventsSilentOverrun,
    /// The lease of a registration from another node never ends (4.3).
    EventsEndlessLease,
    /// A receiver drops its record of a message at the confirm, and keeps no low-water mark (PROTOCOLS 2.2).
    ExchangeNoMark,
    /// A message is acknowledged before its acceptance is durable (2.2).
    ExchangeAckEarly,
    /// A message leaves before the checkpoint that sends it is durable (2.5).
    ExchangeSendEarly,
    /// A sender forgets a message at the ack, and answers nothing about it afterwards (2.2).
    ExchangeNoConfirmAck,
    /// A receiver never asks about what was not confirmed (2.2).
    ExchangeNoReminder,
    /// A confirm of something that is not known stays without an answer (2.5).
    ExchangeUnknownConfirm,
    /// Frames of earlier lives, and those that were overtaken, are heeded.
    ExchangeNoFence,
}

#[cfg(any(test, feature = "planted-flaws"))]
std::thread_local! {
    static PLANTED: std::cell::Cell<Option<Flaw>> = const { std::cell::Cell::new(None) };
}

/// Plants `flaw` in every core that this thread steps from now on; `None` removes it.
#[cfg(any(test, feature = "planted-flaws"))]
pub fn plant(flaw: Option<Flaw>) {
    PLANTED.set(flaw);
}

/// Whether `flaw` is planted.
#[cfg(any(test, feature = "planted-flaws"))]
pub fn is_planted(flaw: Flaw) -> bool {
    PLANTED.get() == Some(flaw)
}

/// Whether `flaw` is planted.
#[cfg(not(any(test, feature = "planted-flaws")))]
pub const fn is_planted(_flaw: Flaw) -> bool {
    false
}
