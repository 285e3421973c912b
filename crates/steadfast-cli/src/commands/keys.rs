//! `steadfast keys`: how keys and certificates stand; rotate them; revoke a node's.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::Context;
use crate::api::client::segment;
use crate::api::convert::now_unix_ms;
use crate::api::types::KeyStatus;
use crate::failure::Failure;
use crate::output::table;
use crate::units::human_duration;

/// Show, rotate and revoke keys and certificates
///
/// Without a further word: which cluster keys are in use, and how long this node's certificate is valid.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast keys\n  steadfast keys rotate\n  steadfast keys revoke gamma                 # after its agent has ended"
)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Rotate the cluster key, and with it every member's certificate
    ///
    /// No downtime: first every member accepts the new key, then all seal with it, then the old one is retired. Answers
    /// when that is done. If it is interrupted, run it again: it goes on where it stopped.
    Rotate,
    /// Remove a node that is no member for good
    ///
    /// Its row goes, its certificates are refused everywhere, and the keys that it knew are rotated. It can come back
    /// only by a new invitation: `steadfast reidentify --removed` on it, then `steadfast join`.
    Revoke {
        /// The node
        name: String,
    },
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let status: KeyStatus = match args.what {
        None => context.client.get("/v1/keys").await?,
        Some(What::Rotate) => context.client.post("/v1/keys/rotate", &json!({})).await?,
        Some(What::Revoke { name }) => {
            context.client.post(&format!("/v1/nodes/{}/revoke", segment(&name)), &json!({})).await?
        }
    };
    context.output.data(&status, |status| {
        let settled = if status.settled { "no rotation is under way" } else { "a rotation is under way" };
        let now = now_unix_ms();
        let since =
            |at: Option<u64>| at.map(|at| human_duration(Duration::from_millis(now.saturating_sub(at))));
        let until =
            |at: Option<u64>| at.map(|at| human_duration(Duration::from_millis(at.saturating_sub(now))));
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let row = [
            status.sealing.to_string(),
            format!("{} to {}", status.accepted_min, status.newest),
            settled.to_owned(),
            or_dash(since(status.certificate_issued_unix_ms)),
            or_dash(until(status.certificate_expires_unix_ms)),
            or_dash((!status.revoked.is_empty()).then(|| status.revoked.join(", "))),
        ];
        table(["SEALS WITH", "OPENS", "STATE", "CERTIFICATE AGE", "VALID FOR", "REVOKED"], [row])
    });
    Ok(())
}
