//! The one-time token that an invited node joins with: what it says and how it is written as text.
//!
//! It decides whether a text is a whole token that has not expired; whether it was used before is the
//! catalog's to say, which keeps only a hash of the secret. Decoding never panics and never allocates
//! more than the bounded text allows. Read next: `net::tls` (the pinned join connection).

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use steadfast_proto::ids::ClusterId;

use crate::identity::random;

/// What every token begins with.
pub const PREFIX: &str = "sfj1-";
/// Longest token text in bytes.
pub const TEXT_BYTES_MAX: usize = 2048;
/// Most inviter addresses in one token.
pub const ADDRESSES_MAX: usize = 16;
/// Longest temporary identifier in bytes.
pub const NAME_BYTES_MAX: usize = 64;

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const CHECKSUM_BYTES: usize = 4;

/// Why a text is not a token that can be used. Nothing was contacted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin with [`PREFIX`].
    #[error(
        "a join token begins with \"{PREFIX}\", this text begins with \"{found}\": copy the whole line that `steadfast invite` printed"
    )]
    Prefix {
        /// The first characters found.
        found: String,
    },
    /// It is longer than any token.
    #[error("this text has {found} characters, a join token has at most {TEXT_BYTES_MAX}")]
    TooLong {
        /// Characters found.
        found: usize,
    },
    /// A character that no token has.
    #[error("the join token has the character '{found}' at position {position}: tokens use a-z and 2-7 only")]
    Character {
        /// The character.
        found: char,
        /// Its position, from 1.
        position: usize,
    },
    /// Too few characters to hold a checksum.
    #[error(
        "the join token is cut short after {found} characters: copy the whole line that `steadfast invite` printed"
    )]
    Truncated {
        /// Characters found.
        found: usize,
    },
    /// The checksum does not agree.
    #[error(
        "the join token is damaged or cut short (its checksum does not agree): copy the whole line that `steadfast invite` printed"
    )]
    Checksum,
    /// The checksum agrees but the content is of another version.
    #[error("the join token was made by a version of steadfast that this one does not understand")]
    Content,
    /// A field is out of bounds.
    #[error("the join token's {field} is out of bounds: {found} where at most {max} are allowed")]
    Bound {
        /// The field.
        field: &'static str,
        /// What was found.
        found: usize,
        /// What is allowed.
        max: usize,
    },
    /// It expired.
    #[error(
        "the join token expired at {expired_unix_s} (unix seconds; now {now_unix_s}): ask for a new one with `steadfast invite`"
    )]
    Expired {
        /// When it expired, s since 1970.
        expired_unix_s: u64,
        /// The time now, s since 1970.
        now_unix_s: u64,
    },
}

/// A join token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    cluster: u128,
    /// The temporary identifier: the name under which the invited node stands in the catalog.
    pub name: String,
    secret: [u8; 16],
    /// SHA-256 of the cluster CA's certificate.
    pub ca_fingerprint: [u8; 32],
    /// Where the inviters listen, best first.
    pub addresses: Vec<SocketAddr>,
    /// End of its validity, s since 1970.
    pub expires_unix_s: u64,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("cluster", &format_args!("{:032x}", self.cluster))
            .field("name", &self.name)
            .field("addresses", &self.addresses)
            .field("expires_unix_s", &self.expires_unix_s)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// Makes a token with a fresh secret.
    ///
    /// # Errors
    /// A field is out of bounds.
    pub fn new(
        cluster: ClusterId,
        name: &str,
        ca_fingerprint: [u8; 32],
        addresses: Vec<SocketAddr>,
        expires_unix_s: u64,
    ) -> Result<Self, TokenError> {
        let token = Self {
            cluster: cluster.0,
            name: name.to_owned(),
            secret: random(),
            ca_fingerprint,
            addresses,
            expires_unix_s,
        };
        token.check_bounds()?;
        Ok(token)
    }

    /// The cluster it leads to.
    #[must_use]
    pub const fn cluster(&self) -> ClusterId {
        ClusterId(self.cluster)
    }

    /// The secret, sent once over the pinned connection.
    #[must_use]
    pub const fn secret(&self) -> &[u8; 16] {
        &self.secret
    }

    /// What the catalog keeps of the secret.
    #[must_use]
    pub fn secret_hash(&self) -> [u8; 32] {
        hash_secret(&self.secret)
    }

    /// Reads a token from text; case and surrounding blanks do not matter.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn decode(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenError::TooLong { found: text.len() });
        }
        let lower = text.to_ascii_lowercase();
        let Some(digits) = lower.strip_prefix(PREFIX) else {
            return Err(TokenError::Prefix { found: text.chars().take(PREFIX.len()).collect() });
        };
        let bytes = base32_decode(digits)?;
        let Some((body, checksum)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else {
            return Err(TokenError::Truncated { found: text.len() });
        };
        // Bits of the last digit that no byte needs are part of what was copied too.
        let mut again = String::new();
        base32_encode(&bytes, &mut again);
        if crc32c::crc32c(body).to_le_bytes() != *checksum || again != digits {
            return Err(TokenError::Checksum);
        }
        let token: Self = postcard::from_bytes(body).map_err(|_| TokenError::Content)?;
        token.check_bounds()?;
        Ok(token)
    }

    /// Refuses a token whose time is over.
    ///
    /// # Errors
    /// [`TokenError::Expired`] with both times.
    pub const fn check_expiry(&self, now_unix_s: u64) -> Result<(), TokenError> {
        if now_unix_s >= self.expires_unix_s {
            return Err(TokenError::Expired { expired_unix_s: self.expires_unix_s, now_unix_s });
        }
        Ok(())
    }

    /// Writes the token as text, for a person to copy.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut body = postcard::to_allocvec(self).expect("tokens have no unserializable field");
        let checksum = crc32c::crc32c(&body).to_le_bytes();
        body.extend_from_slice(&checksum);
        let mut text = String::from(PREFIX);
        base32_encode(&body, &mut text);
        text
    }

    fn check_bounds(&self) -> Result<(), TokenError> {
        let checks = [
            ("name", self.name.len(), NAME_BYTES_MAX),
            ("address list", self.addresses.len(), ADDRESSES_MAX),
        ];
        for (field, found, max) in checks {
            if found > max {
                return Err(TokenError::Bound { field, found, max });
            }
        }
        Ok(())
    }
}

/// What the catalog keeps of a token's secret.
#[must_use]
pub fn hash_secret(secret: &[u8; 16]) -> [u8; 32] {
    blake3::derive_key("steadfast 2026 join token secret", secret)
}

fn base32_encode(bytes: &[u8], out: &mut String) {
    for group in bytes.chunks(5) {
        let mut word = [0; 8];
        word[3..3 + group.len()].copy_from_slice(group);
        let number = u64::from_be_bytes(word);
        let digits = (group.len() * 8).div_ceil(5);
        for index in 0..digits {
            let digit = (number >> (35 - 5 * index)) & 31;
            out.push(char::from(ALPHABET[usize::try_from(digit).expect("five bits fit")]));
        }
    }
}

fn base32_decode(text: &str) -> Result<Vec<u8>, TokenError> {
    let mut bytes = Vec::with_capacity(text.len() * 5 / 8);
    let (mut pending, mut bits) = (0_u16, 0_u32);
    for (index, found) in text.chars().enumerate() {
        let digit = match found {
            'a'..='z' => u32::from(found) - u32::from('a'),
            '2'..='7' => u32::from(found) - u32::from('2') + 26,
            _ => return Err(TokenError::Character { found, position: PREFIX.len() + index + 1 }),
        };
        pending = (pending << 5) | u16::try_from(digit).expect("a digit is below 32");
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from((pending >> bits) & 0xff).expect("masked to eight bits"));
            pending &= (1 << bits) - 1;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> Token {
        let addresses = vec!["10.0.1.1:7400".parse().unwrap(), "[fd00::1]:7400".parse().unwrap()];
        Token::new(ClusterId(9), "beta", [5; 32], addresses, 2000).unwrap()
    }

    #[test]
    fn a_token_survives_text_blanks_and_capitals() {
        let token = token();
        let text = token.encode();
        assert!(text.starts_with(PREFIX));
        assert_eq!(Token::decode(&text).unwrap(), token);
        assert_eq!(Token::decode(&format!("  {}\n", text.to_uppercase())).unwrap(), token);
        assert!(!format!("{token:?}").contains(&format!("{:?}", token.secret())));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let text = token().encode();
        let error = |text: &str| Token::decode(text).unwrap_err();
        assert!(matches!(error("hello"), TokenError::Prefix { .. }));
        assert!(matches!(error(&text[..text.len() - 9]), TokenError::Checksum));
        assert!(matches!(error("sfj1-ab"), TokenError::Truncated { .. }));
        assert_eq!(error("sfj1-ab0"), TokenError::Character { found: '0', position: 8 });
        assert!(matches!(error(&"x".repeat(5000)), TokenError::TooLong { found: 5000 }));
        let expired = token().check_expiry(2000).unwrap_err();
        assert!(expired.to_string().contains("expired at 2000"), "{expired}");
        token().check_expiry(1999).unwrap();
        let many = vec!["10.0.0.1:1".parse().unwrap(); 17];
        let bound = Token::new(ClusterId(1), "n", [0; 32], many, 0).unwrap_err();
        assert!(matches!(bound, TokenError::Bound { field: "address list", found: 17, max: 16 }));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = Token::decode(&text);
            let _ = Token::decode(&format!("{PREFIX}{text}"));
        }

        #[test]
        fn no_bytes_behind_a_good_checksum_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut text = String::from(PREFIX);
            let sum = crc32c::crc32c(&bytes).to_le_bytes();
            base32_encode(&[bytes.as_slice(), &sum].concat(), &mut text);
            let _ = Token::decode(&text);
        }

        #[test]
        fn base32_keeps_every_byte(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut text = String::new();
            base32_encode(&bytes, &mut text);
            prop_assert_eq!(base32_decode(&text).unwrap(), bytes);
        }

        #[test]
        fn one_wrong_character_is_noticed(at in any::<prop::sample::Index>(), to in 0usize..32) {
            let text = token().encode();
            let at = PREFIX.len() + at.index(text.len() - PREFIX.len());
            let mut bytes = text.clone().into_bytes();
            bytes[at] = ALPHABET[to];
            let changed = String::from_utf8(bytes).unwrap();
            prop_assume!(changed != text);
            prop_assert!(Token::decode(&changed).is_err());
        }
    }
}
