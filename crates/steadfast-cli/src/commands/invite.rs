//! `steadfast invite`: a one-time token for one new node.

use super::Context;
use crate::api::types::{Invitation, InviteRequest};
use crate::failure::Failure;

/// Make a one-time token with which one new node may join
///
/// Only the token is printed on stdout. It is a secret: whoever has it can join once, until it expires.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast invite beta\n  ssh beta steadfast join \"$(steadfast invite beta --valid 10m)\""
)]
pub struct Args {
    /// The name that the new node will bear
    name: String,
    /// How long the token is valid
    #[arg(long, value_name = "TIME", default_value = "1h")]
    valid: String,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let request = InviteRequest { name: args.name.clone(), valid: Some(args.valid.clone()) };
    let invitation: Invitation = context.client.post("/v1/invites", &request).await?;
    context.output.say(&format!(
        "on {}: steadfast join TOKEN, within {}; the token can be used once",
        args.name, args.valid
    ));
    context.output.data(&invitation, |invitation| invitation.token.clone());
    Ok(())
}
