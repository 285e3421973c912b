//! The loop of a shim: leases in, freezes and thaws out, exit status kept, questions answered.
//!
//! The thread that runs it waits only in `poll`. Must never thaw without a fresh lease for its own epoch, and must
//! freeze, or kill, before the lease is over (see `fence.rs` for the times).

use std::{
    fs::File,
    io::{Read, Seek, Write as _},
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    mm::{MlockAllFlags, mlockall},
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal, set_child_subreaper,
        set_parent_process_death_signal, setsid, waitpid,
    },
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime},
};

use super::{
    clients::{ClientId, Clients},
    launch::{self, Parts},
    plan::Plan,
};
use crate::{
    cgroup, clock,
    criu::{CheckpointError, Criu, Engine, Hold, Subject},
    fence::{Act, Fence, Posture},
    protocol::{Event, Exit, Prepared, Reply, Request, State, Status, encode_line},
    sys,
};

/// Runs the shim of the container that the plan describes, until it is told to quit.
pub(crate) fn shim(path: &Path) -> ExitCode {
    // Already a leader when started by hand; either way the agent's terminal and group are not ours.
    setsid().ok();
    // Until it can be found, it must not outlive who started it: nobody would clean up behind it.
    set_parent_process_death_signal(Some(Signal::KILL)).ok();
    set_child_subreaper(Some(getpid())).ok();
    let prepared = Plan::read(path)
        .map_err(|e| Prepared::Failed { step: "plan".into(), reason: e.to_string() })
        .and_then(|plan| launch::prepare(&plan).map(|parts| (plan, parts)));
    let (line, parts) = match prepared {
        Ok(parts) => (Prepared::Ready, Some(parts)),
        Err(failed) => (failed, None),
    };
    set_parent_process_death_signal(None).ok();
    let told = std::io::stdout().write_all(&encode_line(&line));
    let (Some((plan, parts)), Ok(())) = (parts, told) else { return ExitCode::FAILURE };
    // The fence must wake in time also when the machine is busy or short of memory. Without the rights for that it
    // still measures how late it is.
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).ok();
    sys::prefer_this_thread().ok();
    match Shim::new(plan, parts) {
        Ok(shim) => shim.run(),
        Err(e) => {
            eprintln!("steadfast shim: {e}");
            ExitCode::FAILURE
        }
    }
}

/// What a worker thread tells the loop.
#[derive(Debug)]
enum News {
    Started(Result<u32, String>),
    Checkpointed(ClientId, Box<Reply>),
}

struct Init {
    pid: Pid,
    number: u32,
    descriptor: OwnedFd,
}

struct Shim {
    plan: Arc<Plan>,
    parts: Arc<SharedParts>,
    wire: super::wire::Wire,
    clients: Clients,
    fence: Fence,
    guard: std::process::Child,
    /// None once no guard could be started; the container is dead then.
    guard_descriptor: Option<OwnedFd>,
    timer: OwnedFd,
    /// What the timer is set to.
    asked: Option<u64>,
    freezer_events: File,
    init: Option<Init>,
    over: Option<State>,
    started_at_unix_ms: Option<u64>,
    /// SIGKILL follows then.
    stop_at: Option<u64>,
    checkpointing: bool,
    /// Whether a checkpoint holds the program still.
    held: Arc<AtomicBool>,
    fenced: bool,
    /// Counts freezes, for those who must know whether one came between.
    lapses: Arc<AtomicU64>,
    news: Receiver<News>,
    news_sender: Sender<News>,
    bell: Arc<OwnedFd>,
    log_lines_lost: Arc<AtomicU64>,
    quitting: bool,
}

struct SharedParts {
    layout: crate::layout::Layout,
    group: cgroup::FenceGroup,
    tools: crate::criu::Tools,
    lower: PathBuf,
}

impl Shim {
    fn new(plan: Plan, parts: Parts) -> std::io::Result<Self> {
        let Parts { layout, group, wire, tools, guard, listener, log_lines_lost, lower, stdio } = parts;
        let (news_sender, news) = mpsc::channel();
        let shim = Self {
            plan: Arc::new(plan),
            wire,
            clients: Clients::new(listener)?,
            fence: Fence::closed(),
            guard_descriptor: Some(child_descriptor(guard.id())?),
            guard,
            timer: timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?,
            asked: None,
            freezer_events: File::open(group.events())?,
            init: None,
            over: None,
            started_at_unix_ms: None,
            stop_at: None,
            checkpointing: false,
            held: Arc::default(),
            fenced: false,
            lapses: Arc::default(),
            news,
            news_sender,
            bell: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            log_lines_lost,
            quitting: false,
            parts: Arc::new(SharedParts { layout, group, tools, lower }),
        };
        let (plan, parts, wire) = (Arc::clone(&shim.plan), Arc::clone(&shim.parts), shim.wire.clone());
        shim.work("start", move || {
            News::Started(launch::start(&plan, &parts.layout, &parts.tools, &wire, &parts.lower, stdio))
        })?;
        Ok(shim)
    }

    /// Runs `work` on a thread of its own; its result comes back as news.
    fn work(&self, name: &str, work: impl FnOnce() -> News + Send + 'static) -> std::io::Result<()> {
        let (sender, bell) = (self.news_sender.clone(), Arc::clone(&self.bell));
        thread::Builder::new().name(name.into()).spawn(move || {
            sender.send(work()).ok();
            rustix::io::write(&*bell, &1_u64.to_ne_bytes()).ok();
        })?;
        Ok(())
    }

    fn run(mut self) -> ExitCode {
        while !self.quitting {
            self.keep_fence();
            self.set_timer();
            let ready = self.wait();
            // The fence comes first: whatever a client says is read under the lease that holds now.
            self.keep_fence();
            for what in ready {
                self.handle(what);
            }
        }
        ExitCode::SUCCESS
    }

    fn keep_fence(&mut self) {
        let now = clock::boottime_ns();
        if let Some(act) = self.fence.step(now) {
            self.carry_out(act);
        }
        if self.stop_at.is_some_and(|at| now >= at) {
            self.stop_at = None;
            self.kill();
        }
    }

    fn carry_out(&mut self, act: Act) {
        let outcome = match act {
            Act::Freeze => {
                let frozen = self.parts.group.freeze();
                self.wire.close();
                self.lapses.fetch_add(1, Ordering::SeqCst);
                frozen
            }
            Act::Thaw => {
                self.wire.open(self.fence.still_at());
                let thawed = self.parts.group.thaw();
                if self.init.is_some() {
                    self.tell(Event::Thawed);
                }
                thawed
            }
            Act::Kill => {
                self.fenced = true;
                self.parts.group.kill()
            }
        };
        if let Err(e) = outcome {
            // Without a working freezer the only safe container is a dead one.
            eprintln!("steadfast shim: {act:?} failed: {e}");
            self.fenced = true;
            self.kill();
        }
        self.read_freezer();
    }

    fn read_freezer(&mut self) {
        let mut text = String::new();
        let read = self.freezer_events.rewind().and_then(|()| self.freezer_events.read_to_string(&mut text));
        let frozen = read.is_ok() && cgroup::has_flag(&text, "frozen 1");
        if !frozen || self.fence.posture() != Posture::Freezing {
            return;
        }
        let now = clock::boottime_ns();
        let late_ns = now.saturating_sub(self.fence.still_at());
        self.fence.confirm_frozen(now);
        if self.init.is_some() {
            self.tell(Event::Frozen { late_ns });
        }
    }

    fn set_timer(&mut self) {
        let wanted = [self.fence.wake_at(), self.stop_at].into_iter().flatten().min();
        if wanted == self.asked {
            return;
        }
        let zero = clock::timespec(0);
        // 0 would disarm the timer; an instant long past fires at once all the same.
        let at = wanted.map_or(zero, |at| clock::timespec(at.max(1)));
        let spec = Itimerspec { it_interval: zero, it_value: at };
        if timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec).is_ok() {
            self.asked = wanted;
        }
    }

    fn wait(&mut self) -> Vec<Ready> {
        let mut what = vec![Ready::Timer, Ready::Bell, Ready::Freezer, Ready::Listener];
        let mut poll_fds = vec![
            PollFd::new(&self.timer, PollFlags::IN),
            PollFd::new(&*self.bell, PollFlags::IN),
            PollFd::new(&self.freezer_events, PollFlags::PRI),
            PollFd::from_borrowed_fd(self.clients.listener(), PollFlags::IN),
        ];
        if let Some(guard) = &self.guard_descriptor {
            what.push(Ready::Guard);
            poll_fds.push(PollFd::new(guard, PollFlags::IN));
        }
        if let Some(init) = self.init.as_ref().filter(|_| self.over.is_none()) {
            what.push(Ready::Init);
            poll_fds.push(PollFd::new(&init.descriptor, PollFlags::IN));
        }
        for (id, socket, writes) in self.clients.sockets() {
            what.push(Ready::Client(id));
            poll_fds.push(client_poll(socket, writes));
        }
        if poll(&mut poll_fds, None).is_err() {
            return Vec::new();
        }
        what.into_iter()
            .zip(&poll_fds)
            .filter(|(_, poll_fd)| !poll_fd.revents().is_empty())
            .map(|(what, _)| what)
            .collect()
    }

    fn handle(&mut self, what: Ready) {
        match what {
            Ready::Timer => {
                let mut count = [0; 8];
                rustix::io::read(&self.timer, &mut count[..]).ok();
                if let Some(asked) = self.asked.take() {
                    self.fence.woke(clock::boottime_ns(), asked);
                }
            }
            Ready::Bell => {
                let mut count = [0; 8];
                rustix::io::read(&*self.bell, &mut count[..]).ok();
                while let Ok(news) = self.news.try_recv() {
                    self.learn(news);
                }
            }
            Ready::Freezer => self.read_freezer(),
            Ready::Guard => self.renew_guard(),
            Ready::Listener => self.clients.accept(),
            Ready::Init => self.reap(),
            Ready::Client(id) => {
                for request in self.clients.serve(id) {
                    self.answer(id, request);
                }
            }
        }
    }

    fn learn(&mut self, news: News) {
        match news {
            News::Started(Ok(pid)) => self.adopt_init(pid),
            News::Started(Err(reason)) => self.fail(reason),
            News::Checkpointed(id, reply) => {
                self.checkpointing = false;
                if !matches!(*reply, Reply::Captured(_)) {
                    self.release();
                }
                self.clients.reply(id, &reply);
            }
        }
    }

    fn adopt_init(&mut self, number: u32) {
        let Some(pid) = i32::try_from(number).ok().and_then(Pid::from_raw) else {
            return self.fail(format!("runc named process {number}, which cannot be"));
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => {
                self.init = Some(Init { pid, number, descriptor });
                self.started_at_unix_ms = Some(clock::unix_ms());
                self.tell(Event::Running { pid: number });
            }
            Err(e) => self.fail(format!("process {number} of the container cannot be watched: {e}")),
        }
    }

    fn fail(&mut self, reason: String) {
        if self.over.is_none() {
            self.over = Some(State::Failed { reason: reason.clone() });
            self.tell(Event::Failed { reason });
        }
        self.kill();
    }

    fn reap(&mut self) {
        let Some(init) = &self.init else { return };
        let Ok(Some((_, status))) = waitpid(Some(init.pid), WaitOptions::NOHANG) else { return };
        let exit = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or(0)),
        };
        self.over = Some(State::Exited(exit));
        self.stop_at = None;
        self.tell(Event::Exited(exit));
        // Helpers that were brought in by `exec` do not outlive the program.
        self.kill();
        self.wire.close();
    }

    fn renew_guard(&mut self) {
        self.guard.wait().ok();
        let renewed = launch::start_guard(&self.plan, &self.parts.group)
            .and_then(|guard| Ok((child_descriptor(guard.id())?, guard)));
        match renewed {
            Ok((descriptor, guard)) => (self.guard_descriptor, self.guard) = (Some(descriptor), guard),
            Err(e) => {
                self.guard_descriptor = None;
                self.fail(format!("the guard ended and cannot be started again: {e}"));
            }
        }
    }

    fn kill(&self) {
        if let Err(e) = self.parts.group.kill() {
            eprintln!("steadfast shim: killing failed: {e}");
        }
    }

    fn tell(&mut self, event: Event) {
        self.clients.publish(&Reply::Event(event));
    }

    fn answer(&mut self, id: ClientId, request: Request) {
        match request {
            Request::Renew { epoch, deadline_ns, drift_ns } => self.renew(epoch, deadline_ns, drift_ns),
            Request::Status => self.clients.reply(id, &Reply::Status(self.status())),
            Request::Watch => {
                self.clients.reply(id, &Reply::Status(self.status()));
                self.clients.watch(id);
            }
            Request::Stop { grace_ms } => {
                self.stop(grace_ms);
                self.clients.reply(id, &Reply::Done);
            }
            Request::Kill => {
                self.kill();
                self.clients.reply(id, &Reply::Done);
            }
            Request::Checkpoint { into, hold } => self.checkpoint(id, into, hold),
            Request::Release => {
                self.release();
                self.clients.reply(id, &Reply::Done);
            }
            Request::Quit => {
                self.quitting = true;
                // Silent first: a program that has been moved must not tell its peers that it ends here.
                self.wire.close_now();
                self.kill();
                self.clients.reply(id, &Reply::Done);
            }
        }
    }

    fn renew(&mut self, epoch: u64, deadline_ns: u64, drift_ns: u64) {
        // What is held still lets its lease lapse: then no lease that is still on its way can thaw it.
        if epoch != self.plan.epoch || self.over.is_some() || self.held.load(Ordering::SeqCst) {
            return;
        }
        let before = self.fence.still_at();
        if let Some(act) = self.fence.renew(clock::boottime_ns(), deadline_ns, drift_ns) {
            self.carry_out(act);
        } else if self.fence.still_at() > before {
            self.wire.open(self.fence.still_at());
        }
    }

    fn stop(&mut self, grace_ms: u64) {
        if self.over.is_some() {
            return;
        }
        let Some(init) = &self.init else { return self.kill() };
        pidfd_send_signal(&init.descriptor, Signal::TERM).ok();
        self.stop_at = Some(clock::boottime_ns().saturating_add(grace_ms.saturating_mul(1_000_000)));
    }

    /// Lets what a checkpoint held go on, if its lease still lives; else the next lease does.
    fn release(&mut self) {
        if !self.held.swap(false, Ordering::SeqCst) {
            return;
        }
        if let Err(e) = self.parts.group.let_go() {
            self.fail(format!("it can't be let go: {e}"));
        }
        if self.fence.posture() == Posture::Running {
            self.wire.open(self.fence.still_at());
        }
    }

    fn checkpoint(&mut self, id: ClientId, into: PathBuf, hold: bool) {
        let state = self.status().state;
        if self.checkpointing {
            return self.clients.reply(id, &Reply::Uncaptured(CheckpointError::Busy));
        }
        if state != State::Running {
            let refused = CheckpointError::NotRunning(state.name().to_owned());
            return self.clients.reply(id, &Reply::Uncaptured(refused));
        }
        let (plan, parts, lapses) =
            (Arc::clone(&self.plan), Arc::clone(&self.parts), Arc::clone(&self.lapses));
        let (wire, held) = (self.wire.clone(), Arc::clone(&self.held));
        let began = lapses.load(Ordering::SeqCst);
        let started = self.work("checkpoint", move || {
            let separate = launch::separate(&plan);
            let subject = Subject {
                layout: &parts.layout,
                tools: &parts.tools,
                wire: &wire,
                lower: &parts.lower,
                separate: &separate,
            };
            let pids = || parts.group.container_pids().unwrap_or_default();
            let hold_still = || {
                held.store(true, Ordering::SeqCst);
                parts.group.hold()
            };
            let hold: Option<&Hold<'_>> = if hold { Some(&hold_still) } else { None };
            let lapsed = || lapses.load(Ordering::SeqCst) != began;
            let captured = Criu.capture(&subject, &into, &pids, &lapsed, hold);
            let reply = captured.map_or_else(Reply::Uncaptured, Reply::Captured);
            News::Checkpointed(id, Box::new(reply))
        });
        match started {
            Ok(()) => self.checkpointing = true,
            Err(e) => {
                let refused = CheckpointError::System {
                    what: "starting a thread for".to_owned(),
                    path: self.parts.layout.run.clone(),
                    reason: e.to_string(),
                };
                self.clients.reply(id, &Reply::Uncaptured(refused));
            }
        }
    }

    fn status(&self) -> Status {
        let state = match (&self.over, &self.init) {
            (Some(over), _) => over.clone(),
            (None, None) => State::Starting,
            (None, Some(_)) => match self.fence.posture() {
                Posture::Running => State::Running,
                Posture::Frozen | Posture::Freezing | Posture::Killed => State::Frozen,
            },
        };
        Status {
            id: self.plan.id.clone(),
            epoch: self.plan.epoch,
            state,
            pid: self.init.as_ref().map(|init| init.number),
            started_at_unix_ms: self.started_at_unix_ms,
            lateness: self.fence.lateness(),
            restored: self.plan.image.is_some(),
            checkpointing: self.checkpointing,
            held: self.held.load(Ordering::SeqCst),
            fenced: self.fenced,
            log_lines_lost: self.log_lines_lost.load(Ordering::Relaxed),
        }
    }
}

/// What can be handled without waiting.
#[derive(Clone, Copy, Debug)]
enum Ready {
    Timer,
    Bell,
    Freezer,
    Guard,
    Listener,
    Init,
    Client(ClientId),
}

fn client_poll(socket: BorrowedFd<'_>, writes: bool) -> PollFd<'_> {
    let flags = if writes { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    PollFd::from_borrowed_fd(socket, flags)
}

fn child_descriptor(pid: u32) -> std::io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(std::io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}
