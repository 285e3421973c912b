//! `steadfast page`: an address with a one-time token that opens the page.
//!
//! The agent makes the token, for the owner of its socket only. Nothing is opened here.

use std::time::Duration;

use super::Context;
use crate::api::page_types::{PageToken, TokenRequest};
use crate::api::roles::Role;
use crate::codes::Code;
use crate::failure::Failure;
use crate::units;

/// Print an address that opens the page, once
///
/// The page shows the cluster in a browser: what is wrong, nodes, links, views, containers and their copies, events. This
/// node serves it where `listen` under `[page]` in its configuration says. Only the address is printed on stdout. The token
/// in it is a secret and works once, within ten minutes; it opens a session that lasts as long as --valid says.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast page                          # look only\n  steadfast page --role operate --valid 1h # also checkpoint, move and drain\n  ssh -L 7480:127.0.0.1:7480 alpha steadfast page"
)]
pub struct Args {
    /// What may be done there: read, operate (also checkpoint, move and drain) or admin (everything)
    #[arg(long, value_name = "ROLE", default_value_t = Role::Read)]
    role: Role,
    /// How long the session lasts, up to 7d
    #[arg(long, value_name = "TIME", default_value = "8h")]
    valid: String,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let request = TokenRequest { role: Some(args.role.to_string()), minutes: Some(minutes(&args.valid)?) };
    let made: PageToken = context.client.post("/v1/page/tokens", &request).await?;
    context.output.say(&format!(
        "open this within ten minutes; it works once, and the session that it opens may {} for {}",
        match args.role {
            Role::Read => "look",
            Role::Operate => "look, checkpoint, move and drain",
            Role::Admin => "do everything",
        },
        args.valid
    ));
    if let Some(fingerprint) = &made.certificate_sha256 {
        context
            .output
            .say(&format!("the browser does not know its certificate; compare its SHA-256: {fingerprint}"));
    }
    context.output.data(&made, |made| made.address.clone());
    Ok(())
}

fn minutes(text: &str) -> Result<u32, Failure> {
    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
    let valid = units::duration_within(text, Duration::from_secs(60), WEEK)
        .map_err(|message| Failure::new(Code::BadRequest, format!("--valid: {message}")))?;
    Ok(u32::try_from(valid.as_secs() / 60).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_lasts_minutes_to_a_week() {
        assert_eq!(minutes("8h").unwrap(), 480);
        assert_eq!(minutes("90s").unwrap(), 1);
        assert!(minutes("10").unwrap_err().message.starts_with("--valid: "));
        assert!(minutes("8d").is_err());
    }
}
