//! The JSON of tokens that last, with which people and programs from outside ask this API.
//!
//! Part of the HTTP API like [`super::types`], with the same rules. One-time tokens for the page are in
//! [`super::page_types`].

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Asks for a token.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What it is called in lists and in the events that tell of what was done with it.
    pub name: String,
    /// What it allows: `read` (when absent), `operate` or `admin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// How long it can be used; until it is revoked when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_seconds: Option<u32>,
    /// The SHA-256 of a certificate that is to be shown instead of a secret, as hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_sha256: Option<String>,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its name.
    pub name: String,
    /// What it allows: `read`, `operate` or `admin`.
    pub role: String,
    /// The SHA-256 of the certificate that is to be shown; absent where it is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_sha256: Option<String>,
    /// When it was made.
    pub made_unix_ms: u64,
    /// When it ends; absent where it lasts until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix_ms: Option<u64>,
    /// What is to be shown as `authorization: Bearer SECRET`; only in the answer to its making.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}
