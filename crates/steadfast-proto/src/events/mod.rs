//! Events: what happened on which node, and who registered to be told of it (PROTOCOLS 4.3).

mod topic;

pub use topic::{
    EventType, FIELDS_MAX, Fields, InvalidType, NAME_BYTES_MAX, Occurrence, TEXT_BYTES_MAX, Topic, Value,
};
