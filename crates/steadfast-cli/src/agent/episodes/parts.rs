//! Questions and answers between nodes in parts, each of which gets through a slow link in time.
//!
//! A question goes part by part, each after the answer to the one before; the same way its answer is fetched. Of a node one
//! question is open at a time: its next one ends the one before. What they say is decided elsewhere.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use steadfast_proto::catalog::{decode_row, encode_row};
use steadfast_proto::exchange::Blob;
use steadfast_proto::ids::NodeId;

/// How many bytes one part has at most.
const PART_BYTES: usize = 128 << 10;
/// How many bytes a question, or an answer, has at most.
pub(super) const BYTES_MAX: usize = 256 << 20;

/// What is asked in one call.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Asked {
    /// A part of the question with this number.
    Part { question: u64, part: u32, is_last: bool, bytes: Blob },
    /// A part of its answer.
    Rest { question: u64, part: u32 },
}

/// What a call brings.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Said {
    /// A part of the answer; nothing before the last part of the question.
    pub(super) bytes: Blob,
    /// Whether nothing follows.
    pub(super) is_last: bool,
}

impl Asked {
    /// The calls that ask this.
    pub(super) fn all(question: u64, bytes: &[u8]) -> impl Iterator<Item = Asked> {
        let count = bytes.len().div_ceil(PART_BYTES).max(1);
        (0_u32..).zip(0..count).map(move |(part, index)| {
            let end = bytes.len().min((index + 1) * PART_BYTES);
            let bytes = Blob::from(&bytes[index * PART_BYTES..end]);
            Asked::Part { question, part, is_last: index + 1 == count, bytes }
        })
    }
}

/// What other nodes are in the middle of.
#[derive(Debug, Default)]
pub(super) struct Open {
    of: Mutex<BTreeMap<NodeId, Talk>>,
}

#[derive(Debug, Default)]
struct Talk {
    question: u64,
    /// How many parts of the question have come, then how many of the answer have gone.
    parts: u32,
    bytes: Vec<u8>,
}

impl Open {
    /// Takes a call of that node; a question that is whole with it is answered by `answer`.
    ///
    /// # Errors
    /// The call can't be read, parts before it are missing, or all of them are too much; then nothing was asked.
    pub(super) fn hear(
        &self,
        peer: NodeId,
        call: &[u8],
        answer: impl FnOnce(&[u8]) -> Result<Vec<u8>, String>,
    ) -> Result<Bytes, String> {
        let said = match decode_row(call).map_err(|error| error.to_string())? {
            Asked::Part { question, part, is_last, bytes } => {
                match self.take(peer, (question, part), &bytes, is_last)? {
                    Some(whole) => self.say(peer, question, 0, answer(&whole)?),
                    None => Said { bytes: Blob::empty(), is_last: false },
                }
            }
            Asked::Rest { question, part } => {
                let rest =
                    self.of().remove(&peer).filter(|talk| (talk.question, talk.parts) == (question, part));
                self.say(peer, question, part, rest.ok_or("the answer is not there any more")?.bytes)
            }
        };
        encode_row(&said).map(Bytes::from).map_err(|error| error.to_string())
    }

    /// Forgets nodes that are not asked for any more.
    pub(super) fn retain(&self, is_there: impl Fn(NodeId) -> bool) {
        self.of().retain(|node, _| is_there(*node));
    }

    fn take(
        &self,
        peer: NodeId,
        (question, part): (u64, u32),
        bytes: &[u8],
        is_last: bool,
    ) -> Result<Option<Vec<u8>>, String> {
        let mut all = self.of();
        let mut talk = all.remove(&peer).filter(|_| part > 0).unwrap_or(Talk { question, ..Talk::default() });
        if (talk.question, talk.parts) != (question, part) {
            return Err("parts of a question are missing".to_owned());
        }
        if talk.bytes.len() + bytes.len() > BYTES_MAX {
            return Err(format!("a question about copies of instances has more than {BYTES_MAX} bytes"));
        }
        talk.bytes.extend_from_slice(bytes);
        talk.parts += 1;
        if is_last {
            return Ok(Some(talk.bytes));
        }
        all.insert(peer, talk);
        Ok(None)
    }

    /// The next part of an answer; what is left of it waits.
    fn say(&self, peer: NodeId, question: u64, part: u32, mut answer: Vec<u8>) -> Said {
        let rest = answer.split_off(answer.len().min(PART_BYTES));
        let is_last = rest.is_empty();
        if !is_last {
            self.of().insert(peer, Talk { question, parts: part + 1, bytes: rest });
        }
        Said { bytes: Blob::from(answer.as_slice()), is_last }
    }

    fn of(&self) -> MutexGuard<'_, BTreeMap<NodeId, Talk>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(open: &Open, asked: &Asked) -> Result<Said, String> {
        let double = |bytes: &[u8]| Ok([bytes, bytes].concat());
        let said = open.hear(NodeId(7), &encode_row(asked).expect("it can be written"), double)?;
        Ok(decode_row(&said).expect("it can be read"))
    }

    fn ask(open: &Open, question: u64, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut said = Said { bytes: Blob::empty(), is_last: false };
        for asked in Asked::all(question, bytes) {
            said = call(open, &asked)?;
        }
        let (mut answer, mut part) = (said.bytes.to_vec(), 0);
        while !said.is_last {
            part += 1;
            said = call(open, &Asked::Rest { question, part })?;
            answer.extend_from_slice(&said.bytes);
        }
        Ok(answer)
    }

    #[test]
    fn a_question_of_any_size_is_answered_whole() {
        let open = Open::default();
        for (question, size) in (1..).zip([0, 1, PART_BYTES / 2, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
        {
            let bytes: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).expect("below 251")).collect();
            assert_eq!(ask(&open, question, &bytes), Ok([&bytes[..], &bytes[..]].concat()), "{size}");
            assert!(open.of().is_empty());
        }
    }

    #[test]
    fn a_question_with_a_hole_is_refused_and_the_next_one_begins_anew() {
        let open = Open::default();
        let bytes = vec![1; 3 * PART_BYTES];
        let parts = |question| Asked::all(question, &bytes).collect::<Vec<_>>();
        call(&open, &parts(1)[0]).expect("the first");
        assert!(call(&open, &parts(1)[2]).is_err(), "one is missing");
        assert!(call(&open, &parts(1)[1]).is_err(), "it was given up");
        call(&open, &parts(2)[0]).expect("the first");
        call(&open, &parts(3)[0]).expect("the first of another");
        assert!(call(&open, &parts(2)[1]).is_err(), "it was followed by another");
        assert!(call(&open, &Asked::Rest { question: 9, part: 1 }).is_err(), "nobody asked");
        assert_eq!(ask(&open, 4, b"x").as_deref(), Ok(&b"xx"[..]));
    }
}
