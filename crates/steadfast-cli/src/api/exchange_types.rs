//! The JSON of the exchange with outside parties: the four steps, word by word.
//!
//! Part of the HTTP API like [`super::types`], with the same rules. Every word names the message that it is about by the
//! same four fields, `from`, `epoch`, `to` and `seq`, whoever says it: an answer repeats them and has another `step`.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

/// Something that one end says to the other.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExchangeWord {
    /// `message`, then `ack`, `confirm`, `confirm-ack`; or `refused` in the place of `ack`.
    pub step: String,
    /// Who sends the message: `PROGRAM/KEY`, or `outside/NAME` for a party.
    pub from: String,
    /// The sender's epoch: a number that its next life makes larger when it has lost what it remembered.
    pub epoch: u64,
    /// Who is to get the message.
    pub to: String,
    /// The number of the message: from 1, without gaps, for each `from`, `epoch` and `to`.
    pub seq: u64,
    /// The last of several neighbouring messages of which `seq` is the first; absent for one. Of `ack`, `confirm` and
    /// `confirm-ack`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u64>,
    /// Of `message`: up to which number the sender has finished, confirm-ack and all; 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<u64>,
    /// Of `message`: what it is, in the words of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Of `message`: what it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// Of `message`: what it says, any JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value)]
    pub payload: Option<Box<RawValue>>,
    /// Of `message`: whether it begins an instance where there is none; false when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begins: Option<bool>,
    /// Of `ack`: the receiver's own epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver_epoch: Option<u64>,
    /// Of `refused`: why, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What a party says.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExchangeSaid {
    /// Word by word, 256 at most.
    pub words: Vec<ExchangeWord>,
}

/// What is said to a party.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ExchangeHeard {
    /// Word by word. What is missing is said again, when the party says its own again or asks.
    pub words: Vec<ExchangeWord>,
    /// The nodes that did not answer: what they have to say is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<String>,
}
