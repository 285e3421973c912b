//! `steadfast invite`: a one-time token for one new node.

use super::Context;
use crate::api::types::{Invitation, InviteRequest};
use crate::failure::Failure;

/// Make a one-time token with which one new node may join
///
/// Only the token is printed on stdout. It is a secret: whoever has it can join once, until it expires. With --notify an
/// invitation of that name that is open is renewed instead of replaced, its token with it, and the agent that waits with
/// it (`steadfast join --wait`) is woken; the notice itself says nothing but which cluster it is about.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast invite beta\n  ssh beta steadfast join \"$(steadfast invite beta --valid 10m)\"\n  steadfast invite beta --notify 10.0.1.12:7400"
)]
pub struct Args {
    /// The name that the new node will bear
    name: String,
    /// How long the token is valid
    #[arg(long, value_name = "TIME", default_value = "1h")]
    valid: String,
    /// An agent that waits with a token of this name: wake it
    #[arg(long, value_name = "ADDRESS:PORT")]
    notify: Option<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let request = InviteRequest {
        name: args.name.clone(),
        valid: Some(args.valid.clone()),
        notify: args.notify.clone(),
    };
    let invitation: Invitation = context.client.post("/v1/invites", &request).await?;
    match &invitation.token {
        Some(_) => context.output.say(&format!(
            "on {}: steadfast join TOKEN, within {}; the token can be used once",
            args.name, args.valid
        )),
        None => context.output.say(&format!(
            "the token for {} that was made before is good for {} from now, once; leave --notify out for a new one",
            args.name, args.valid
        )),
    }
    context.output.data(&invitation, |invitation| invitation.token.clone().unwrap_or_default());
    Ok(())
}
