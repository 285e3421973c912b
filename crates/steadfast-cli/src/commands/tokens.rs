//! `steadfast tokens`: what people and programs from outside show, and what it allows them.
//!
//! A certificate's key is made here and never leaves this machine: the agent is told its digest only.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use steadfast::net::browser::client_certificate;

use super::Context;
use crate::api::client::segment;
use crate::api::convert::now_unix_ms;
use crate::api::roles::Role;
use crate::api::token_types::{NewToken, Token};
use crate::api::types::Done;
use crate::codes::Code;
use crate::failure::{Failure, disk};
use crate::output::table;
use crate::units;

/// Show, make and revoke tokens, with which programs and people from outside use the API
///
/// Without a further word: the tokens that there are. A token is known on every node and works wherever `listen` under
/// `[page]` is set: `authorization: Bearer SECRET`, or a certificate. What is done with it is told by events of the type
/// audit.change, with its name.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast tokens\n  steadfast tokens create prometheus > /etc/prometheus/steadfast.token\n  steadfast tokens create ann --role operate --certificate ann.pem\n  steadfast tokens revoke ann"
)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a token; its secret is printed, once
    #[command(
        after_help = "Examples:\n  steadfast tokens create prometheus > /etc/prometheus/steadfast.token\n  steadfast tokens create deploy --role operate --valid 90d\n  steadfast tokens create ann --role operate --certificate ann.pem\n  curl --cert ann.pem --cacert cluster.pem https://10.0.1.11:7480/v1/status"
    )]
    Create {
        /// What it is called
        name: String,
        /// What it allows: read, operate (also checkpoint, move and drain) or admin (everything but make tokens)
        #[arg(long, value_name = "ROLE", default_value_t = Role::Read)]
        role: Role,
        /// How long it can be used [default: until it is revoked]
        #[arg(long, value_name = "TIME")]
        valid: Option<String>,
        /// Make a key with a certificate instead of a secret, and write both to this file, which must not be there
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
    },
    /// Revoke a token
    ///
    /// It is refused on every node that hears of it, and streams that it opened end within a second.
    Revoke {
        /// The token
        name: String,
    },
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    match args.what {
        None => {
            let tokens: Vec<Token> = context.client.get("/v1/tokens").await?;
            context.output.data(&tokens, |tokens| list(tokens));
        }
        Some(What::Create { name, role, valid, certificate }) => {
            let valid_seconds = valid.as_deref().map(seconds).transpose()?;
            let mut asked =
                NewToken { name, role: Some(role.to_string()), valid_seconds, certificate_sha256: None };
            match certificate {
                None => {
                    let made: Token = context.client.post("/v1/tokens", &asked).await?;
                    context.output.say("this is a secret, and it is shown only now");
                    context.output.data(&made, |made| made.secret.clone().unwrap_or_default());
                }
                Some(file) => {
                    let sha256 = write_certificate(&asked.name, &file)?;
                    asked.certificate_sha256 = Some(sha256);
                    let made = context.client.post::<_, Token>("/v1/tokens", &asked).await;
                    let made = made.inspect_err(|_| {
                        // Nobody knows it.
                        let _ = std::fs::remove_file(&file);
                    })?;
                    context.output.say(&format!(
                        "{} has the certificate and its key, which is a secret; for a browser: openssl pkcs12 -export -in {0} -out {}.p12",
                        file.display(),
                        made.name
                    ));
                    context.output.data(&made, |made| made.certificate_sha256.clone().unwrap_or_default());
                }
            }
        }
        Some(What::Revoke { name }) => {
            let done: Done = context.client.delete(&format!("/v1/tokens/{}", segment(&name))).await?;
            context.output.data(&done, |done| done.done.clone());
        }
    }
    Ok(())
}

fn list(tokens: &[Token]) -> String {
    let now = now_unix_ms();
    let rows = tokens.iter().map(|token| {
        let ends = match token.expires_unix_ms {
            None => "until it is revoked".to_owned(),
            Some(at) if at <= now => "ended".to_owned(),
            Some(at) => units::human_duration(Duration::from_millis(at.saturating_sub(now))),
        };
        let age = units::human_duration(Duration::from_millis(now.saturating_sub(token.made_unix_ms)));
        let shows = if token.certificate_sha256.is_some() { "certificate" } else { "secret" };
        [token.name.clone(), token.role.clone(), shows.to_owned(), age, ends]
    });
    table(["NAME", "ROLE", "BY", "AGE", "VALID FOR"], rows)
}

fn seconds(text: &str) -> Result<u32, Failure> {
    const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);
    let valid = units::duration_within(text, Duration::from_secs(1), LONGEST)
        .map_err(|message| Failure::new(Code::BadRequest, format!("--valid: {message}")))?;
    Ok(u32::try_from(valid.as_secs()).unwrap_or(u32::MAX))
}

/// Makes a certificate, for the owner of the new file only, and gives its SHA-256.
fn write_certificate(name: &str, file: &Path) -> Result<String, Failure> {
    let made = client_certificate(name)
        .map_err(|error| Failure::new(Code::Internal, format!("the certificate can't be made: {error}")))?;
    let options = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    options
        .and_then(|mut open| open.write_all(made.pem.as_bytes()))
        .map_err(|error| disk("write", file, &error))?;
    Ok(data_encoding::HEXLOWER.encode(&made.sha256))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lasts_a_second_to_a_century() {
        assert_eq!(seconds("90d").unwrap(), 90 * 24 * 3600);
        assert!(seconds("10").unwrap_err().message.starts_with("--valid: "));
        assert!(seconds("0s").is_err());
    }

    #[test]
    fn a_certificate_is_its_owners_alone_and_replaces_no_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ann.pem");
        assert_eq!(write_certificate("ann", &file).unwrap().len(), 64);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(write_certificate("ann", &file).unwrap_err().code, Code::DiskFailed);
    }
}
