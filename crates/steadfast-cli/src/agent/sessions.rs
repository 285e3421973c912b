//! Tokens for the page and the sessions that they open, in memory only: a restarted agent knows none.
//!
//! It decides who is in and as what. Both are random, kept as digests, bounded in number and in life; a token works once.
//! It must never give a session a greater role than its token had. What a role may do is decided in `api::roles`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::api::roles::Role;
use crate::codes::Code;
use crate::failure::Failure;

/// How long a token can be used.
pub(crate) const TOKEN_LIFE: Duration = Duration::from_secs(10 * 60);
/// Tokens that nobody used yet.
const TOKENS_MAX: usize = 64;
/// Sessions at once.
const SESSIONS_MAX: usize = 256;

/// The tokens and sessions of this node.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tokens: BTreeMap<Digest, Token>,
    sessions: BTreeMap<Digest, Session>,
}

/// What is kept of a secret.
type Digest = [u8; 32];

#[derive(Clone, Copy, Debug)]
struct Token {
    role: Role,
    life: Duration,
    expires_unix_ms: u64,
}

/// Somebody who is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    /// What he may do.
    pub(crate) role: Role,
    /// Until when.
    pub(crate) until_unix_ms: u64,
}

impl Sessions {
    /// A new token for a session of this role and life, and until when it can be used.
    pub(crate) fn token(
        &self,
        role: Role,
        life: Duration,
        now_unix_ms: u64,
    ) -> Result<(String, u64), Failure> {
        let mut state = self.swept(now_unix_ms);
        if state.tokens.len() >= TOKENS_MAX {
            let message = format!(
                "{TOKENS_MAX} tokens wait to be used already; use one of them, or wait {} minutes until they end",
                TOKEN_LIFE.as_secs() / 60
            );
            return Err(Failure::new(Code::TooMany, message));
        }
        let (secret, expires_unix_ms) = (secret(), later(now_unix_ms, TOKEN_LIFE));
        state.tokens.insert(digest(&secret), Token { role, life, expires_unix_ms });
        Ok((secret, expires_unix_ms))
    }

    /// Uses a token up: the secret of the session that it opens.
    pub(crate) fn open(&self, token: &str, now_unix_ms: u64) -> Result<(String, Session), Failure> {
        let mut state = self.swept(now_unix_ms);
        if state.sessions.len() >= SESSIONS_MAX {
            let message = format!("{SESSIONS_MAX} sessions are open already; sign out of some");
            return Err(Failure::new(Code::TooMany, message));
        }
        let Some(token) = state.tokens.remove(&digest(token.trim())) else {
            let message = "this token is unknown, was used already or is too old; `steadfast page` on this node makes another";
            return Err(Failure::new(Code::NotAllowed, message));
        };
        let secret = secret();
        let session = Session { role: token.role, until_unix_ms: later(now_unix_ms, token.life) };
        state.sessions.insert(digest(&secret), session);
        Ok((secret, session))
    }

    /// The session of a secret, while it lasts.
    pub(crate) fn find(&self, secret: &str, now_unix_ms: u64) -> Option<Session> {
        self.swept(now_unix_ms).sessions.get(&digest(secret)).copied()
    }

    /// Ends a session.
    pub(crate) fn close(&self, secret: &str) {
        self.lock().sessions.remove(&digest(secret));
    }

    /// The state without what is over.
    fn swept(&self, now_unix_ms: u64) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.tokens.retain(|_, token| token.expires_unix_ms > now_unix_ms);
        state.sessions.retain(|_, session| session.until_unix_ms > now_unix_ms);
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 244 random bits.
pub(super) fn secret() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

fn digest(secret: &str) -> Digest {
    *blake3::hash(secret.as_bytes()).as_bytes()
}

fn later(now_unix_ms: u64, life: Duration) -> u64 {
    now_unix_ms.saturating_add(u64::try_from(life.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_token_opens_one_session_of_its_role() {
        let sessions = Sessions::default();
        let (token, expires) = sessions.token(Role::Operate, HOUR, 1000).unwrap();
        assert_eq!(expires, 1000 + 600_000);
        let (secret, session) = sessions.open(&format!(" {token}\n"), 2000).unwrap();
        assert_eq!(session, Session { role: Role::Operate, until_unix_ms: 2000 + 3_600_000 });
        assert_eq!(sessions.find(&secret, 3000), Some(session));
        assert_eq!(sessions.find(&token, 3000), None, "a token is no session");
        assert_eq!(sessions.open(&token, 3000).unwrap_err().code, Code::NotAllowed, "it works once");
        sessions.close(&secret);
        assert_eq!(sessions.find(&secret, 3000), None);
    }

    #[test]
    fn tokens_and_sessions_end() {
        let sessions = Sessions::default();
        let (late, expires) = sessions.token(Role::Read, HOUR, 0).unwrap();
        assert_eq!(sessions.open(&late, expires).unwrap_err().code, Code::NotAllowed);
        let (token, _) = sessions.token(Role::Read, HOUR, 0).unwrap();
        let (secret, session) = sessions.open(&token, 0).unwrap();
        assert!(sessions.find(&secret, session.until_unix_ms - 1).is_some());
        assert!(sessions.find(&secret, session.until_unix_ms).is_none());
    }

    #[test]
    fn both_are_bounded() {
        let sessions = Sessions::default();
        for _ in 0..TOKENS_MAX {
            sessions.token(Role::Read, HOUR, 0).unwrap();
        }
        assert_eq!(sessions.token(Role::Read, HOUR, 0).unwrap_err().code, Code::TooMany);
        assert!(sessions.token(Role::Read, HOUR, 600_000).is_ok(), "the old ones have ended");
    }
}
