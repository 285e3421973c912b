//! The JSON of the page: tokens and sessions, and the picture of the cluster that it follows.
//!
//! Part of the HTTP API like [`super::types`], with the same rules. Read `page` for the paths, and
//! [`crate::agent`]'s picture for what a picture holds.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Asks for a token with which somebody may open the page.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokenRequest {
    /// What he may do there: `read` (when absent), `operate` or `admin`.
    pub role: Option<String>,
    /// How long his session lasts, 1 to 10,080; 480 when absent.
    pub minutes: Option<u32>,
}

/// A one-time token for the page.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PageToken {
    /// The token: a secret.
    pub token: String,
    /// The page's address with the token behind `#`, which browsers keep to themselves.
    pub address: String,
    /// What it allows.
    pub role: String,
    /// Until when it can be used, once.
    pub expires_unix_ms: u64,
    /// How long the session lasts that it opens.
    pub minutes: u32,
    /// The SHA-256 fingerprint of the certificate that the page shows; absent where it is reached by the loopback only.
    pub certificate_sha256: Option<String>,
}

/// Exchanges a token for a session.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionRequest {
    /// The token.
    pub token: String,
}

/// Who is at the page.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// What he may do: `read`, `operate` or `admin`.
    pub role: String,
    /// Until when; absent for the owner of the socket.
    pub until_unix_ms: Option<u64>,
}

/// The picture of the cluster, or what changed of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PictureChange {
    /// Whether `change` is the whole and replaces what was known before.
    pub whole: bool,
    /// When it was sent, by the clock of the node that answers.
    pub at_unix_ms: u64,
    /// A JSON merge patch (RFC 7386) by section, `about`, `standing`, `catalog`, `verdicts`, `nodes`, `links`, `views` and
    /// `containers`, and in each by item.
    #[schema(value_type = Object)]
    pub change: Map<String, Value>,
}
