//! Who asks, and what he may do: looking, operating, or everything.
//!
//! The owner's socket and the members of the cluster may do everything; whoever comes from outside has the role of his
//! session or token. What a request needs is decided from its method and path alone, and what is not listed needs the most.
//! A program in a container has no role: `own` serves it on paths of its own. Read next: `page`, which lets people in.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use axum::http::Method;
use steadfast_proto::ids::NodeId;

use crate::failure::did_you_mean;

/// What somebody may do; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look at everything that holds no secret.
    Read,
    /// Also checkpoint, move and drain.
    Operate,
    /// Everything.
    Admin,
}

/// Who asks, as the door found out that he came through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The owner of this node's socket.
    Owner,
    /// The agent of a member, by its certificate.
    Member(Option<NodeId>),
    /// Somebody from outside, at the page's address.
    Guest(Guest),
}

/// Somebody from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Who.
    pub who: Who,
    /// What he may do.
    pub role: Role,
    /// Until when, if not until it is taken from him.
    pub until_unix_ms: Option<u64>,
    /// The address that he asks from.
    pub from: Option<IpAddr>,
}

/// As whom somebody from outside is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A session at the page.
    Session,
    /// The token of this name.
    Token(String),
    /// The token of this name, by its certificate.
    Certificate(String),
}

impl Caller {
    /// What he may do.
    pub fn role(&self) -> Role {
        match self {
            Caller::Owner | Caller::Member(_) => Role::Admin,
            Caller::Guest(guest) => guest.role,
        }
    }
}

impl Role {
    /// All of them, the least first.
    pub const ALL: [Role; 3] = [Role::Read, Role::Operate, Role::Admin];

    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Role::Read => "read",
            Role::Operate => "operate",
            Role::Admin => "admin",
        }
    }

    /// What a request needs.
    pub fn needed(method: &Method, path: &str) -> Role {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        if *method == Method::GET || *method == Method::HEAD {
            return match parts.as_slice() {
                // The catalog's bytes hold what its rows keep secret.
                ["v1", "catalog", ..] => Role::Admin,
                _ => Role::Read,
            };
        }
        let is_post = *method == Method::POST;
        match parts.as_slice() {
            // Whoever is in may go.
            ["v1", "page", "session"] if *method == Method::DELETE => Role::Read,
            ["v1", "containers", _, "checkpoints" | "move"]
            | ["v1", "nodes", _, "drain"]
            | ["v1", "events"]
            | ["v1", "episodes", _, _, _]
            | ["v1", "exchange", _]
                if is_post =>
            {
                Role::Operate
            }
            _ => Role::Admin,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.word())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Role, String> {
        Role::ALL.into_iter().find(|role| role.word() == text).ok_or_else(|| {
            let hint = did_you_mean(text, Role::ALL.map(Role::word));
            format!("{text:?} is no role{hint}; the roles are \"read\", \"operate\" and \"admin\"")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::openapi::OPERATIONS;

    #[test]
    fn looking_needs_read_and_what_is_not_listed_needs_admin() {
        for operation in OPERATIONS {
            let method: Method = operation.method.to_ascii_uppercase().parse().unwrap();
            let path = operation.path.replace("{name}", "x");
            let expected = match (operation.method, operation.path) {
                ("get", "/v1/catalog/backup") => Role::Admin,
                ("get", _) | ("delete", "/v1/page/session") => Role::Read,
                ("post", "/v1/containers/{name}/checkpoints" | "/v1/nodes/{name}/drain" | "/v1/events") => {
                    Role::Operate
                }
                ("post", path) if path.starts_with("/v1/episodes/{program}/{key}/") => Role::Operate,
                ("post", "/v1/exchange/{name}") => Role::Operate,
                _ => Role::Admin,
            };
            assert_eq!(Role::needed(&method, &path), expected, "{} {}", operation.method, operation.path);
        }
        assert_eq!(Role::needed(&Method::PUT, "/v1/containers/x/checkpoints"), Role::Admin);
        assert_eq!(Role::needed(&Method::POST, "/v1/containers/x/checkpoints/../../y"), Role::Admin);
    }

    #[test]
    fn a_role_includes_those_before_it_and_a_wrong_word_gets_the_right_ones() {
        assert!(Role::Admin > Role::Operate && Role::Operate > Role::Read);
        assert_eq!("operate".parse(), Ok(Role::Operate));
        assert!("reed".parse::<Role>().unwrap_err().contains("did you mean \"read\"?"));
    }
}
