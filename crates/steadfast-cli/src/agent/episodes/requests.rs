//! What people and programs outside the cluster ask of instances: begin, tell, steer, look.
//!
//! A request is carried out by the node that keeps the instance; the API hands it on there. What is refused is refused by the
//! core, and its words are given a code here.

use std::time::{Duration, Instant};

use steadfast::episodes::KeeperError;
use steadfast_proto::episode::{Answer, Episodes, Key, Request, RequestError};
use steadfast_proto::exchange::{Blob, Name, TEXT_BYTES_MAX};

use super::rows::Kind;
use super::{Room, shown};
use crate::api::episode_types as types;
use crate::codes::Code;
use crate::failure::Failure;

/// How long a request waits for an instance that is on its way from one node to another.
const MOVING_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether it has come.
const MOVING_LOOK: Duration = Duration::from_millis(50);

/// What makes a repeated request the same request: the client's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repeat(String);

impl Repeat {
    /// The key in a header.
    pub(crate) fn parse(text: &str) -> Result<Repeat, Failure> {
        if text.is_empty() || text.len() > TEXT_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic())
        {
            let message = format!(
                "idempotency-key: {:?} is none; 1 to {TEXT_BYTES_MAX} letters, digits and signs without blanks are possible",
                text.chars().take(40).collect::<String>()
            );
            return Err(Failure::new(Code::BadRequest, message));
        }
        Ok(Repeat(text.to_owned()))
    }

    /// With a digest of all that is asked for.
    pub(crate) fn key(&self, digest: u128) -> Key {
        Key { text: self.0.as_str().into(), digest }
    }
}

/// A digest of everything that a request asks for, in parts that can't be taken for each other.
pub(crate) fn digest(parts: &[Option<&[u8]>]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        match part {
            None => hasher.update(&[0]),
            Some(bytes) => hasher.update(&[1]).update(&(bytes.len() as u64).to_le_bytes()).update(bytes),
        };
    }
    let mut first = [0; 16];
    hasher.finalize_xof().fill(&mut first);
    u128::from_le_bytes(first)
}

impl Room {
    /// Asks the instance that this node keeps, and waits for the answer at most so long.
    pub(crate) async fn ask(
        &self,
        request: Request,
        wait: Option<Duration>,
    ) -> Result<types::EpisodeAnswer, Failure> {
        let name = request.name().clone();
        let patience = Instant::now() + MOVING_MAX;
        loop {
            let keeper = self.opened_for(&name).await?;
            let Some(keeper) = keeper else { return Err(self.no_program(name.program())) };
            let asked = keeper.ask(request.clone());
            let answer = match wait {
                None => asked.await,
                Some(wait) => tokio::time::timeout(wait, asked).await.map_err(|_| late(&name, wait))?,
            };
            let answer = answer.map_err(|_| self.ended(&name))?;
            let is_moving = matches!(answer, Err(RequestError::Moving(_) | RequestError::Elsewhere(_)));
            if is_moving && Instant::now() < patience {
                tokio::time::sleep(MOVING_LOOK).await;
                continue;
            }
            return answer.map(spoken).map_err(|error| self.refused(&error));
        }
    }

    /// The keeper ended while it was asked; of a local one the agent's log says why.
    fn ended(&self, name: &Name) -> Failure {
        let unsure = |what: &str, code| {
            let message = format!(
                "{what} while {name} was asked; whether it took the request is not known: with an Idempotency-Key it can be repeated"
            );
            Failure::new(code, message)
        };
        match self.kind(name) {
            Kind::Shared => unsure("the shared store failed", Code::SharedStore),
            Kind::Mirror => {
                unsure("the other node that holds it failed, or this one was overtaken", Code::Mirror)
            }
            Kind::Local => Failure::new(Code::EpisodesFailed, KeeperError::Ended.to_string()),
        }
    }

    /// All of an instance that this node keeps.
    pub(crate) async fn instance(&self, name: Name, node: String) -> Result<types::Instance, Failure> {
        let (effects, store) = (self.inner.effects.clone(), self.kind(&name).word());
        let of = name.clone();
        self.look(&name, move |episodes| shown::instance(episodes, &of, (&node, store), &effects)).await
    }

    /// The last episodes of an instance that this node keeps.
    pub(crate) async fn history(&self, name: Name) -> Result<Vec<types::PastEpisode>, Failure> {
        let of = name.clone();
        self.look(&name, move |episodes| episodes.instance(&of).map(shown::history)).await
    }

    /// Looks at an instance that this node keeps, as soon as it has come.
    async fn look<T: Send + 'static>(
        &self,
        name: &Name,
        look: impl Fn(&Episodes) -> Option<T> + Clone + Send + 'static,
    ) -> Result<T, Failure> {
        let missing = RequestError::NoInstance(name.clone());
        let patience = Instant::now() + MOVING_MAX;
        loop {
            let Some(keeper) = self.opened_for(name).await? else { return Err(self.refused(&missing)) };
            let (of, look) = (name.clone(), look.clone());
            let looked = keeper.look(move |episodes| episodes.is_kept_here(&of).then(|| look(episodes)));
            match looked.await.map_err(|_| self.ended(name))? {
                Some(found) => return found.ok_or_else(|| self.refused(&missing)),
                None if Instant::now() < patience => tokio::time::sleep(MOVING_LOOK).await,
                None => return Err(self.refused(&RequestError::Moving(name.clone()))),
            }
        }
    }

    fn refused(&self, error: &RequestError) -> Failure {
        let code = match error {
            RequestError::NoProgram(name) => return self.no_program(name),
            RequestError::NoInstance(name)
                if !self.programs().iter().any(|row| row.name == name.program()) =>
            {
                return self.no_program(name.program());
            }
            RequestError::NoInstance(_) => Code::InstanceNotFound,
            RequestError::NoVersion(..) => Code::ProgramNotFound,
            RequestError::Exists(_) | RequestError::Ended(_) => Code::InstanceState,
            RequestError::Full(..) | RequestError::Keys(..) => Code::InstanceFull,
            RequestError::KeyReused(..) => Code::KeyReused,
            RequestError::TooLarge(..) => Code::BadRequest,
            RequestError::Elsewhere(_) | RequestError::Moving(_) | RequestError::Moved(_) => {
                Code::PeerUnreachable
            }
        };
        Failure::new(code, error.to_string())
    }
}

fn late(name: &Name, wait: Duration) -> Failure {
    let message = format!(
        "{name} took the request and gave no answer within {}; with an Idempotency-Key the same request waits on",
        humantime::format_duration(wait)
    );
    Failure::new(Code::TimedOut, message)
}

fn spoken(answer: Answer) -> types::EpisodeAnswer {
    let (outcome, answer, why) = match answer {
        Answer::Taken => ("taken", None, None),
        Answer::Answered(answer) => ("answered", Some(shown::any(&answer)), None),
        Answer::Ended(why) => ("ended", None, Some(why.as_str().to_owned())),
    };
    types::EpisodeAnswer { outcome: outcome.to_owned(), answer, why }
}

/// Nothing is the payload of a request without one.
pub(crate) fn payload(given: Option<&serde_json::value::RawValue>) -> Result<Blob, Failure> {
    let Some(given) = given else { return Ok(Blob::empty()) };
    let bytes = crate::episodes::programs::json::bytes_of("the payload", given);
    bytes.map(|bytes| Blob::from(&*bytes)).map_err(|error| Failure::new(Code::BadRequest, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_requests_have_other_digests() {
        let parts = |parts: &[Option<&str>]| {
            digest(&parts.iter().map(|part| part.map(str::as_bytes)).collect::<Vec<_>>())
        };
        assert_eq!(parts(&[Some("a"), None]), parts(&[Some("a"), None]));
        let all = [
            parts(&[Some("a"), None]),
            parts(&[Some("a"), Some("")]),
            parts(&[None, Some("a")]),
            parts(&[Some("a"), Some("b")]),
            parts(&[Some("ab"), Some("")]),
        ];
        let distinct: std::collections::BTreeSet<u128> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn a_key_without_letters_or_with_blanks_is_refused() {
        Repeat::parse("4b1c-7").unwrap();
        for text in ["", "a b", "\u{e9}", &"x".repeat(TEXT_BYTES_MAX + 1)] {
            assert_eq!(Repeat::parse(text).unwrap_err().code, Code::BadRequest, "{text}");
        }
    }
}
