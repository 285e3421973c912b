//! What people and programs outside the exchanges ask for. A request that is refused changes nothing.

use super::run::{ended, spoken};
use super::{Answer, Batch, Episodes, Event, Key, Record, Request, RequestError, Status, Steer, Stopped};
use crate::exchange::{Blob, Name, Text};
use crate::time::Time;

/// What a repeated request finds.
enum Earlier {
    /// Nothing: it is the first.
    Nothing,
    /// Request `number`, with its answer if it has been consumed.
    Asked { number: u64, answer: Option<Answer> },
}

impl Episodes {
    /// One request.
    pub(super) fn asked(&mut self, now: Time, token: u64, request: Request, out: &mut Batch) {
        if !self.is_kept_here(request.name()) {
            out.answers.push((token, Err(self.not_here(request.name().clone()))));
            return;
        }
        let result = match request {
            Request::Start { name, payload, key, wait } => {
                self.start(now, token, name, payload, key, wait, out)
            }
            Request::Send { name, kind, correlation, payload, key, wait } => {
                let event = Told { kind, correlation, payload, key };
                self.told(now, token, name, event, wait, out)
            }
            Request::Cancel { name } => {
                let kind = Event::CANCEL.into();
                let event = Told { kind, correlation: None, payload: Blob::empty(), key: None };
                self.told(now, token, name, event, false, out)
            }
            Request::Pause { name } => self.steer(name, Steer::Pause, out),
            Request::Retry { name } => self.steer(name, Steer::Go, out),
            Request::Migrate { name, version } => self.migrate(name, version, out),
        };
        if let Some(result) = result.transpose() {
            out.force = true;
            out.answers.push((token, result));
        }
    }

    /// Nobody waits for this answer any more.
    pub(super) fn unasked(&mut self, token: u64, name: &Name) {
        let Some(instance) = self.instances.get_mut(name) else { return };
        instance.live.awaiting_end.retain(|waiting| *waiting != token);
        instance.live.awaiting.retain(|_, waiting| {
            waiting.retain(|waiting| *waiting != token);
            !waiting.is_empty()
        });
    }

    /// The record that begins an instance, unless its program is not known.
    pub(super) fn beginning(
        &self,
        now: Time,
        name: &Name,
        parent: Option<&Name>,
        input: Option<(Blob, Option<Key>)>,
    ) -> Option<Record> {
        let program = self.programs.get(name.program())?;
        Some(Record::Began {
            name: name.clone(),
            epoch: self.last_epoch + 1,
            version: program.current,
            mode: program.mode,
            parent: parent.filter(|parent| !parent.is_outside()).cloned(),
            input,
            at: now,
        })
    }

    #[expect(clippy::too_many_arguments, reason = "they are the fields of the request")]
    fn start(
        &mut self,
        now: Time,
        token: u64,
        name: Name,
        payload: Blob,
        key: Option<Key>,
        wait: bool,
        out: &mut Batch,
    ) -> Result<Option<Answer>, RequestError> {
        if self.instances.contains_key(&name) {
            let Earlier::Asked { .. } = self.earlier(now, &name, key.as_ref())? else {
                return Err(RequestError::Exists(name));
            };
            return Ok(if wait { self.await_end(token, &name) } else { Some(Answer::Taken) });
        }
        self.fits(&payload)?;
        let began = self.beginning(now, &name, None, Some((payload, key)));
        self.record(began.ok_or_else(|| RequestError::NoProgram(name.program().into()))?, out);
        self.wake(&name);
        Ok(if wait { self.await_end(token, &name) } else { Some(Answer::Taken) })
    }

    fn await_end(&mut self, token: u64, name: &Name) -> Option<Answer> {
        let instance = self.instances.get_mut(name)?;
        if instance.is_active() {
            instance.live.awaiting_end.push(token);
            return None;
        }
        Some(ended(&instance.status))
    }

    fn told(
        &mut self,
        now: Time,
        token: u64,
        name: Name,
        event: Told,
        wait: bool,
        out: &mut Batch,
    ) -> Result<Option<Answer>, RequestError> {
        let Told { kind, correlation, payload, key } = event;
        let number = match self.earlier(now, &name, key.as_ref())? {
            Earlier::Asked { number, answer } => {
                if answer.is_some() || !wait {
                    return Ok(if wait { answer } else { Some(Answer::Taken) });
                }
                number
            }
            Earlier::Nothing => {
                let Some(instance) = self.instances.get(&name) else {
                    return Err(RequestError::NoInstance(name));
                };
                if !instance.is_active() {
                    return Err(RequestError::Ended(name));
                }
                if instance.inbox.len() >= self.settings.inbox_max {
                    return Err(RequestError::Full(instance.inbox.len(), name));
                }
                self.fits(&payload)?;
                self.record(
                    Record::Requested { name: name.clone(), kind, correlation, payload, key, at: now },
                    out,
                );
                self.wake(&name);
                self.instance(&name).map_or(0, super::Instance::last_request)
            }
        };
        if !wait {
            return Ok(Some(Answer::Taken));
        }
        if let Some(instance) = self.instances.get_mut(&name) {
            instance.live.awaiting.entry(number).or_default().push(token);
        }
        Ok(None)
    }

    /// Whether a request with this key has come before.
    fn earlier(&self, now: Time, name: &Name, key: Option<&Key>) -> Result<Earlier, RequestError> {
        let (Some(instance), Some(key)) = (self.instances.get(name), key) else {
            return Ok(Earlier::Nothing);
        };
        let Some(asked) = instance.asked.get(&key.text) else {
            let is_young = |at: Time| now.since(at) < self.settings.keep;
            let is_full = instance.asked.len() >= self.settings.keys_max
                && instance.asked.values().all(|asked| is_young(asked.at));
            return if is_full {
                Err(RequestError::Keys(instance.asked.len(), name.clone()))
            } else {
                Ok(Earlier::Nothing)
            };
        };
        if asked.digest != key.digest {
            return Err(RequestError::KeyReused(key.text.clone(), name.clone()));
        }
        let over = if instance.is_active() { None } else { Some(ended(&instance.status)) };
        let answer = if asked.done { Some(spoken(asked.answer.clone())) } else { over };
        Ok(Earlier::Asked { number: asked.number, answer })
    }

    fn fits(&self, payload: &Blob) -> Result<(), RequestError> {
        let max = self.settings.payload_bytes_max;
        if payload.len() > max { Err(RequestError::TooLarge(payload.len(), max)) } else { Ok(()) }
    }

    fn steer(&mut self, name: Name, steer: Steer, out: &mut Batch) -> Result<Option<Answer>, RequestError> {
        let Some(instance) = self.instances.get(&name) else { return Err(RequestError::NoInstance(name)) };
        if instance.status != Status::Active {
            return Err(RequestError::Ended(name));
        }
        let is_new = match steer {
            Steer::Pause => instance.stopped != Some(Stopped::Paused),
            Steer::Go => instance.stopped.is_some(),
            Steer::Version(version) => instance.version != version,
        };
        if is_new {
            self.record(Record::Steered { name: name.clone(), steer }, out);
            self.wake(&name);
        }
        Ok(Some(Answer::Taken))
    }

    fn migrate(&mut self, name: Name, version: u32, out: &mut Batch) -> Result<Option<Answer>, RequestError> {
        let program = self.programs.get(name.program());
        let program = program.ok_or_else(|| RequestError::NoProgram(name.program().into()))?;
        if !program.versions.contains(&version) {
            return Err(RequestError::NoVersion(name.program().into(), version));
        }
        self.steer(name, Steer::Version(version), out)
    }
}

/// What an instance is told.
struct Told {
    kind: Text,
    correlation: Option<Text>,
    payload: Blob,
    key: Option<Key>,
}
