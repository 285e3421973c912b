//! Tokens that last: a name, a role, and a secret or a certificate that is known by its digest only.
//!
//! They are rows of the catalog, so every node knows them and a revoked one is refused everywhere as soon as that is heard.
//! Decides who is behind what a request shows. Must never keep a secret, and never let a token make another: the paths of
//! `api::tokens` see to that. One-time tokens and the sessions that they open are in `sessions`.

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::{Deserialize, Serialize};
use steadfast::catalog::Txn;

use super::{Agent, rows, sessions};
use crate::api::convert::now_unix_ms;
use crate::api::roles::{Guest, Role, Who};
use crate::api::token_types::{NewToken, Token};
use crate::api::types::Done;
use crate::codes::Code;
use crate::failure::{Failure, did_you_mean};
use crate::units;

/// The keys of all tokens begin so.
const TOKENS: &str = "token/";
/// The secrets of all tokens begin so, for whoever searches files for what should not be there.
const SECRET_PREFIX: &str = "sft1-";
/// Most tokens in one cluster.
const TOKENS_MAX: usize = 256;

/// A token, as the catalog keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    name: String,
    role: String,
    proof: Proof,
    made_unix_ms: u64,
    expires_unix_ms: Option<u64>,
}

/// What whoever comes with it has to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Proof {
    /// A secret with this BLAKE3 digest.
    Secret([u8; 32]),
    /// A certificate with this SHA-256, and its key.
    Certificate([u8; 32]),
}

/// What a request from outside shows.
#[derive(Clone)]
pub(crate) enum Shown {
    /// The secret of a session at the page.
    Session(String),
    /// The secret of a token.
    Secret(String),
    /// A certificate whose key it has.
    Certificate([u8; 32]),
}

impl Agent {
    /// Who is behind what a request shows, by this node's copy of the catalog.
    pub(crate) fn guest(&self, shown: &Shown) -> Option<Guest> {
        let now = now_unix_ms();
        let proof = match shown {
            Shown::Session(secret) => {
                let session = self.sessions.find(secret, now)?;
                let until_unix_ms = Some(session.until_unix_ms);
                return Some(Guest { who: Who::Session, role: session.role, until_unix_ms, from: None });
            }
            Shown::Secret(secret) => Proof::Secret(digest(secret)),
            Shown::Certificate(sha256) => Proof::Certificate(*sha256),
        };
        let rows = self.rows.all_stale::<Row>(TOKENS).into_iter().map(|(row, _)| row);
        let row = rows.into_iter().find(|row| row.proof == proof && !row.is_over(now))?;
        // A role that only a later version knows allows nothing here.
        let role = row.role.parse().ok()?;
        let who = match row.proof {
            Proof::Secret(_) => Who::Token(row.name),
            Proof::Certificate(_) => Who::Certificate(row.name),
        };
        Some(Guest { who, role, until_unix_ms: row.expires_unix_ms, from: None })
    }

    /// Whether anybody may come with a certificate.
    pub(crate) fn knows_certificates(&self) -> bool {
        let rows = self.rows.all_stale::<Row>(TOKENS);
        rows.iter().any(|(row, _)| matches!(row.proof, Proof::Certificate(_)))
    }

    /// Every token, without what proves it.
    pub(crate) async fn shown_tokens(&self) -> Result<Vec<Token>, Failure> {
        let rows = self.rows.all::<Row>(TOKENS).await?;
        Ok(rows.into_iter().map(|(row, _)| row.shown(None)).collect())
    }

    /// Makes a token; the answer alone has its secret.
    pub(crate) async fn make_token(&self, asked: &NewToken) -> Result<Token, Failure> {
        let now = now_unix_ms();
        let secret = asked.certificate_sha256.is_none().then(secret);
        let row = checked(asked, secret.as_deref(), now)?;
        let key = format!("{TOKENS}{}", row.name);
        let all = self.rows.all::<Row>(TOKENS).await?;
        let there = all.iter().find(|(there, _)| there.name == row.name);
        let version = match there {
            Some((there, _)) if !there.is_over(now) => return Err(taken(&row.name)),
            Some((_, version)) => *version,
            None if all.len() >= TOKENS_MAX => {
                let message = format!("there are {TOKENS_MAX} tokens already; revoke one that is not needed");
                return Err(Failure::new(Code::TooMany, message));
            }
            None => 0,
        };
        if all.iter().any(|(other, _)| other.name != row.name && other.proof == row.proof) {
            let message = "certificate_sha256: another token has this certificate already";
            return Err(Failure::new(Code::NameTaken, message));
        }
        let txn = Txn::compare_and_set(key, version, rows::encode(&row)?);
        if !self.rows.commit(txn).await?.succeeded {
            return Err(taken(&row.name));
        }
        tracing::info!(name = row.name, role = row.role, "a token was made");
        Ok(row.shown(secret))
    }

    /// Revokes a token; what goes on with it ends within a second of a node's hearing of it.
    pub(crate) async fn revoke_token(&self, name: &str) -> Result<Done, Failure> {
        let key = format!("{TOKENS}{name}");
        loop {
            let Some((_, version)) = self.rows.get_at::<Row>(&key).await? else {
                let all = self.rows.all::<Row>(TOKENS).await?;
                let hint = did_you_mean(name, all.iter().map(|(row, _)| row.name.as_str()));
                let message = format!("there is no token named {name:?}{hint}");
                return Err(Failure::new(Code::TokenNotFound, message));
            };
            let txn = Txn { compare: vec![(key.clone(), version)], puts: vec![(key.clone(), None)] };
            // Somebody else may have revoked it, and made another of this name, in the meantime.
            if self.rows.commit(txn).await?.succeeded {
                tracing::info!(name, "a token was revoked");
                return Ok(Done { done: format!("the token {name} was revoked") });
            }
        }
    }
}

impl Row {
    fn is_over(&self, now_unix_ms: u64) -> bool {
        self.expires_unix_ms.is_some_and(|expires| expires <= now_unix_ms)
    }

    fn shown(self, secret: Option<String>) -> Token {
        let certificate_sha256 = match self.proof {
            Proof::Secret(_) => None,
            Proof::Certificate(sha256) => Some(HEXLOWER_PERMISSIVE.encode(&sha256)),
        };
        Token {
            name: self.name,
            role: self.role,
            certificate_sha256,
            made_unix_ms: self.made_unix_ms,
            expires_unix_ms: self.expires_unix_ms,
            secret,
        }
    }
}

/// The row that is asked for.
fn checked(asked: &NewToken, secret: Option<&str>, now_unix_ms: u64) -> Result<Row, Failure> {
    let wrong = |message: String| Failure::new(Code::BadRequest, message);
    let name = units::name(&asked.name)
        .map_err(|message| Failure::new(Code::NameInvalid, format!("the token's name: {message}")))?;
    let role: Role = asked.role.as_deref().map_or(Ok(Role::Read), str::parse).map_err(wrong)?;
    let proof = match (secret, asked.certificate_sha256.as_deref()) {
        (Some(secret), _) => Proof::Secret(digest(secret)),
        (None, text) => Proof::Certificate(read_sha256(text.unwrap_or_default()).ok_or_else(|| {
            wrong("certificate_sha256: 64 hexadecimal digits are possible, with or without \":\"".to_owned())
        })?),
    };
    if asked.valid_seconds == Some(0) {
        return Err(wrong(
            "valid_seconds: 0 is out of range; leave it out for a token that lasts".to_owned(),
        ));
    }
    let life_ms = asked.valid_seconds.map(|seconds| u64::from(seconds) * 1000);
    let expires_unix_ms = life_ms.map(|life| now_unix_ms.saturating_add(life));
    Ok(Row { name, role: role.word().to_owned(), proof, made_unix_ms: now_unix_ms, expires_unix_ms })
}

fn read_sha256(text: &str) -> Option<[u8; 32]> {
    let digits: String = text.chars().filter(|letter| *letter != ':').collect();
    HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()?.try_into().ok()
}

fn taken(name: &str) -> Failure {
    Failure::new(Code::NameTaken, format!("there is a token named {name:?} already; revoke it first"))
}

fn secret() -> String {
    format!("{SECRET_PREFIX}{}", sessions::secret())
}

fn digest(secret: &str) -> [u8; 32] {
    *blake3::hash(secret.as_bytes()).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str) -> NewToken {
        NewToken { name: name.to_owned(), role: None, valid_seconds: None, certificate_sha256: None }
    }

    #[test]
    fn a_token_is_kept_as_a_digest_and_reads_unless_it_is_asked_for_more() {
        let secret = secret();
        let row = checked(&asked("prometheus"), Some(&secret), 1000).unwrap();
        assert_eq!((row.role.as_str(), row.expires_unix_ms), ("read", None));
        assert_eq!(row.proof, Proof::Secret(digest(&secret)));
        assert!(secret.starts_with("sft1-") && secret.len() == 69);
        let kept = rows::encode(&row).unwrap();
        assert!(!kept.windows(16).any(|part| secret.as_bytes().windows(16).any(|known| known == part)));
        assert_eq!(row.shown(None).secret, None);
    }

    #[test]
    fn a_token_ends_when_it_is_said_to() {
        let row = checked(&NewToken { valid_seconds: Some(2), ..asked("x") }, Some("s"), 1000).unwrap();
        assert!(!row.is_over(2999) && row.is_over(3000));
        assert!(checked(&NewToken { valid_seconds: Some(0), ..asked("x") }, Some("s"), 0).is_err());
    }

    #[test]
    fn a_certificate_is_written_with_or_without_colons() {
        let plain = "0123456789abcdef".repeat(4);
        let bytes = read_sha256(&plain).unwrap();
        assert_eq!(bytes[..2], [0x01, 0x23]);
        let colons: Vec<&str> =
            plain.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap()).collect();
        assert_eq!(read_sha256(&colons.join(":").to_uppercase()), Some(bytes));
        assert_eq!(read_sha256("12"), None);
        assert_eq!(read_sha256(&"é".repeat(32)), None);
        let row =
            checked(&NewToken { certificate_sha256: Some(plain.clone()), ..asked("ann") }, None, 0).unwrap();
        assert_eq!(row.shown(None).certificate_sha256, Some(plain));
    }

    #[test]
    fn what_is_wrong_is_said_by_field() {
        let refuse = |asked: NewToken, secret| checked(&asked, secret, 0).unwrap_err();
        assert_eq!(refuse(asked("Not a name"), Some("s")).code, Code::NameInvalid);
        assert!(
            refuse(NewToken { role: Some("rood".to_owned()), ..asked("x") }, Some("s"))
                .message
                .contains("read")
        );
        let short = NewToken { certificate_sha256: Some("ab".to_owned()), ..asked("x") };
        assert!(refuse(short, None).message.starts_with("certificate_sha256: "));
    }
}
