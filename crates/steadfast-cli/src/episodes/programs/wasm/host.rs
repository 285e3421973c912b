//! The functions of [`super::interface`]: what a module passes is checked here, and nowhere trusted.
//!
//! It decides how an episode's words lie in a module's memory. It must never read or write outside that memory, keep more
//! than the limits, or go on after the time is over: a module can spend all its fuel on calls that copy.

use std::fmt;
use std::time::{Duration, Instant};

use steadfast_proto::episode::{Event, EventId, Failure, Task};
use steadfast_proto::exchange::{Blob, Name, Text};
use steadfast_proto::time::Time;
use wasmi::errors::HostError;
use wasmi::{Caller, Engine, Error, Linker, Memory, StoreLimits};

use super::interface::MODULE;
use crate::episodes::programs::draft::{Draft, DraftError, Said, Wanted};
use crate::episodes::programs::{Limits, Ran, failure, now_ms, too_long};

/// The only flag of `send`: the receiver is begun where there is none.
const BEGINS: u32 = 1;

/// What an episode has said so far, and what it may ask for.
#[derive(Debug)]
pub(super) struct Host {
    task: Task,
    limits: Limits,
    until: Instant,
    draft: Draft,
    random: Option<blake3::OutputReader>,
    pub(super) bounds: StoreLimits,
}

/// Ends an episode from within the host: it failed.
#[derive(Clone, Debug)]
pub(super) enum Stop {
    /// For this reason.
    Failed(Failure),
    /// It misused a function.
    Misuse(&'static str, String),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Failed(failure) => failure.why.fmt(f),
            Stop::Misuse(function, wrong) => write!(f, "the module called {function} wrongly: {wrong}"),
        }
    }
}

impl HostError for Stop {}

impl Stop {
    pub(super) fn named(self) -> Failure {
        match self {
            Stop::Failed(failure) => failure,
            Stop::Misuse(..) => failure(self.to_string()),
        }
    }
}

impl Host {
    pub(super) fn new(task: Task, limits: Limits, until: Instant) -> Host {
        Host { task, limits, until, draft: Draft::new(limits), random: None, bounds: StoreLimits::default() }
    }

    /// One in which nothing runs.
    pub(super) fn idle(limits: Limits) -> Host {
        let event = Event {
            id: EventId::Notice(0),
            kind: Event::START.into(),
            source: None,
            correlation: None,
            payload: Blob::empty(),
        };
        let name = Name::parse("nobody/0").expect("this is a name");
        let task =
            Task { name, version: 0, run: 0, episode: 0, state: Blob::empty(), event, now: Time::ZERO };
        Host::new(task, limits, Instant::now())
    }

    pub(super) fn finish(mut self) -> Ran {
        let log = self.draft.take_log();
        Ran { result: self.draft.finish(&self.task).map_err(|error| failure(error.to_string())), log }
    }

    pub(super) fn into_log(mut self) -> Vec<String> {
        self.draft.take_log()
    }

    /// Depends on which episode it is and not on which run, so that a rerun decides the same.
    fn random(&mut self) -> i64 {
        let reader = self.random.get_or_insert_with(|| {
            let mut seed = blake3::Hasher::new_derive_key("steadfast: random numbers of an episode");
            seed.update(&self.task.episode.to_le_bytes()).update(self.task.name.as_str().as_bytes());
            seed.finalize_xof()
        });
        let mut bytes = [0; 8];
        reader.fill(&mut bytes);
        i64::from_le_bytes(bytes)
    }

    fn part(&self, part: i32) -> Result<Option<&[u8]>, String> {
        let event = &self.task.event;
        match part {
            0 => Ok(Some(event.kind.as_bytes())),
            1 => Ok(event.source.as_ref().map(|source| source.as_str().as_bytes())),
            2 => Ok(event.correlation.as_ref().map(|correlation| correlation.as_bytes())),
            3 => Ok(Some(&event.payload)),
            _ => Err(format!(
                "an event has no part {part}; 0 is its kind, 1 its source, 2 its correlation, 3 its payload"
            )),
        }
    }
}

/// What a function is given: its name, and the module's memory.
#[derive(Clone, Copy)]
struct Given<'a> {
    function: &'static str,
    memory: &'a [u8],
}

/// The memory of the module that called, and the host beside it.
fn memory_and_host<'a>(
    function: &'static str,
    caller: &'a mut Caller<'_, Host>,
) -> Result<(&'a mut [u8], &'a mut Host), Error> {
    let memory: Option<Memory> = caller.get_export("memory").and_then(wasmi::Extern::into_memory);
    let memory = memory.ok_or_else(|| misuse(function, "it has no memory"))?;
    let (memory, host) = memory.data_and_store_mut(caller);
    if Instant::now() >= host.until {
        return Err(Error::host(Stop::Failed(failure(too_long(host.limits)))));
    }
    Ok((memory, host))
}

fn open<'a>(
    function: &'static str,
    caller: &'a mut Caller<'_, Host>,
) -> Result<(Given<'a>, &'a mut Host), Error> {
    let (memory, host) = memory_and_host(function, caller)?;
    Ok((Given { function, memory }, host))
}

impl<'a> Given<'a> {
    fn bytes(self, at: i32, len: i32) -> Result<&'a [u8], Error> {
        let found = range(at, len).and_then(|range| self.memory.get(range));
        found.ok_or_else(|| outside(self.function, at, len, self.memory.len()))
    }

    fn text(self, at: i32, len: i32) -> Result<&'a str, Error> {
        let bytes = self.bytes(at, len)?;
        std::str::from_utf8(bytes)
            .map_err(|error| self.wrong(format!("the text at {} is no UTF-8: {error}", at.cast_unsigned())))
    }

    /// A text that may be absent.
    fn optional(self, at: i32, len: i32) -> Result<Option<&'a str>, Error> {
        if len == 0 { Ok(None) } else { self.text(at, len).map(Some) }
    }

    fn wrong(self, wrong: impl fmt::Display) -> Error {
        misuse(self.function, wrong)
    }
}

fn outside(function: &'static str, at: i32, len: i32, memory_bytes: usize) -> Error {
    let (at, len) = (at.cast_unsigned(), len.cast_unsigned());
    misuse(function, format!("{len} bytes at {at} lie outside its memory of {memory_bytes} bytes"))
}

/// A piece of an outcome, or the error that ends the episode.
fn said(function: &'static str, result: Result<(), DraftError>) -> Result<(), Error> {
    result.map_err(|error| misuse(function, error))
}

fn misuse(function: &'static str, wrong: impl fmt::Display) -> Error {
    Error::host(Stop::Misuse(function, wrong.to_string()))
}

fn range(at: i32, len: i32) -> Option<std::ops::Range<usize>> {
    let at = usize::try_from(at.cast_unsigned()).ok()?;
    Some(at..at.checked_add(usize::try_from(len.cast_unsigned()).ok()?)?)
}

/// A length as a module is told it; nothing is longer than the limits, which are far below.
fn length(bytes: &[u8]) -> i32 {
    i32::try_from(bytes.len()).unwrap_or(i32::MAX)
}

/// Writes into the module's memory what is beside it.
fn write(
    function: &'static str,
    caller: &mut Caller<'_, Host>,
    to: i32,
    what: impl Fn(&Host) -> Result<Option<&[u8]>, String>,
) -> Result<(), Error> {
    let (memory, host) = memory_and_host(function, caller)?;
    let bytes = what(host).map_err(|wrong| misuse(function, wrong))?.unwrap_or_default();
    let (len, memory_bytes) = (length(bytes), memory.len());
    let place = range(to, len).and_then(|range| memory.get_mut(range));
    place.ok_or_else(|| outside(function, to, len, memory_bytes))?.copy_from_slice(bytes);
    Ok(())
}

/// All functions, for any number of instances.
pub(super) fn linker(engine: &Engine) -> Linker<Host> {
    let mut linker = Linker::new(engine);
    reading(&mut linker)
        .and_then(|()| saying(&mut linker))
        .and_then(|()| waiting(&mut linker))
        .expect("no two functions have the same name");
    linker
}

/// What an episode can learn.
fn reading(linker: &mut Linker<Host>) -> Result<(), wasmi::errors::LinkerError> {
    linker
        .func_wrap(MODULE, "instance_len", |caller: Caller<'_, Host>| {
            length(caller.data().task.name.as_str().as_bytes())
        })?
        .func_wrap(MODULE, "instance_read", |mut caller: Caller<'_, Host>, to: i32| {
            write("instance_read", &mut caller, to, |host| Ok(Some(host.task.name.as_str().as_bytes())))
        })?
        .func_wrap(MODULE, "episode_number", |caller: Caller<'_, Host>| {
            caller.data().task.episode.cast_signed()
        })?
        .func_wrap(MODULE, "state_len", |caller: Caller<'_, Host>| length(&caller.data().task.state))?
        .func_wrap(MODULE, "state_read", |mut caller: Caller<'_, Host>, to: i32| {
            write("state_read", &mut caller, to, |host| Ok(Some(&host.task.state)))
        })?
        .func_wrap(MODULE, "event_len", |caller: Caller<'_, Host>, part: i32| {
            let part = caller.data().part(part).map_err(|wrong| misuse("event_len", wrong))?;
            Ok::<i32, Error>(part.map_or(-1, length))
        })?
        .func_wrap(MODULE, "event_read", |mut caller: Caller<'_, Host>, part: i32, to: i32| {
            write("event_read", &mut caller, to, |host| host.part(part))
        })?
        .func_wrap(MODULE, "now_ms", |caller: Caller<'_, Host>| now_ms(&caller.data().task).cast_signed())?
        .func_wrap(MODULE, "random", |mut caller: Caller<'_, Host>| caller.data_mut().random())?;
    Ok(())
}

/// What an episode can say.
fn saying(linker: &mut Linker<Host>) -> Result<(), wasmi::errors::LinkerError> {
    linker
        .func_wrap(MODULE, "state_write", |mut caller: Caller<'_, Host>, at: i32, len: i32| {
            piece("state_write", &mut caller, at, len, Draft::state)
        })?
        .func_wrap(MODULE, "end", |mut caller: Caller<'_, Host>, at: i32, len: i32| {
            piece("end", &mut caller, at, len, Draft::end)
        })?
        .func_wrap(MODULE, "answer", |mut caller: Caller<'_, Host>, at: i32, len: i32| {
            piece("answer", &mut caller, at, len, Draft::answer)
        })?
        .func_wrap(MODULE, "log", |mut caller: Caller<'_, Host>, at: i32, len: i32| {
            let (given, host) = open("log", &mut caller)?;
            said("log", host.draft.log(given.text(at, len)?))
        })?
        .func_wrap(MODULE, "fail", |mut caller: Caller<'_, Host>, at: i32, len: i32, lasting: i32| {
            let (given, _) = open("fail", &mut caller)?;
            let why = Text::cut(given.text(at, len)?);
            Err::<(), Error>(Error::host(Stop::Failed(Failure { why, lasting: lasting != 0 })))
        })?
        .func_wrap(MODULE, "send", send)?;
    Ok(())
}

/// What an episode can wait for.
fn waiting(linker: &mut Linker<Host>) -> Result<(), wasmi::errors::LinkerError> {
    linker.func_wrap(MODULE, "wait", wait)?.func_wrap(
        MODULE,
        "deadline",
        |mut caller: Caller<'_, Host>, ms: i64| {
            let (given, host) = open("deadline", &mut caller)?;
            let ms =
                u64::try_from(ms).map_err(|_| given.wrong(format!("{ms} ms from now is in the past")))?;
            host.draft.within(Duration::from_millis(ms));
            Ok::<(), Error>(())
        },
    )?;
    Ok(())
}

fn piece(
    function: &'static str,
    caller: &mut Caller<'_, Host>,
    at: i32,
    len: i32,
    take: fn(&mut Draft, &[u8]) -> Result<(), DraftError>,
) -> Result<(), Error> {
    let (given, host) = open(function, caller)?;
    said(function, take(&mut host.draft, given.bytes(at, len)?))
}

#[allow(clippy::too_many_arguments, reason = "a module passes numbers, and a message has four texts")]
fn send(
    mut caller: Caller<'_, Host>,
    to_at: i32,
    to_len: i32,
    kind_at: i32,
    kind_len: i32,
    correlation_at: i32,
    correlation_len: i32,
    payload_at: i32,
    payload_len: i32,
    flags: i32,
    within_ms: i64,
) -> Result<(), Error> {
    let (given, host) = open("send", &mut caller)?;
    let flags = flags.cast_unsigned();
    if flags & !BEGINS != 0 {
        return Err(given.wrong(format!("flags {flags} are unknown; 1 begins the receiver, 0 does not")));
    }
    let within_ms = u64::try_from(within_ms).map_err(|_| {
        given.wrong(format!("a time of {within_ms} ms is over already; 0 is without a limit"))
    })?;
    let said_now = Said {
        to: given.text(to_at, to_len)?,
        kind: given.text(kind_at, kind_len)?,
        correlation: given.optional(correlation_at, correlation_len)?,
        payload: given.bytes(payload_at, payload_len)?,
        begins: flags == BEGINS,
        within: (within_ms > 0).then(|| Duration::from_millis(within_ms)),
    };
    said("send", host.draft.send(&said_now))
}

#[allow(clippy::too_many_arguments, reason = "a module passes numbers, and an alternative has four texts")]
fn wait(
    mut caller: Caller<'_, Host>,
    kind_at: i32,
    kind_len: i32,
    source_at: i32,
    source_len: i32,
    correlation_at: i32,
    correlation_len: i32,
    filter_at: i32,
    filter_len: i32,
) -> Result<(), Error> {
    let (given, host) = open("wait", &mut caller)?;
    let wanted = Wanted {
        kind: given.optional(kind_at, kind_len)?,
        source: given.optional(source_at, source_len)?,
        correlation: given.optional(correlation_at, correlation_len)?,
        filter: given.optional(filter_at, filter_len)?,
    };
    said("wait", host.draft.wait(&wanted))
}
