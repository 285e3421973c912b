//! `steadfast episode show`: what an instance waits for, what its outboxes hold, and why it does not go on.

use super::super::Context;
use super::path;
use crate::api::episode_types::Instance;
use crate::api::episode_words::sentences;
use crate::failure::Failure;

/// How much of a state is shown, in bytes.
const STATE_SHOWN: usize = 2_000;

/// Show an instance: what it waits for, what it sends, why it does not go on
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast episode show order/17\n  steadfast -o json episode show order/17 | jq .state"
)]
pub(super) struct Args {
    /// The instance
    #[arg(value_name = "PROGRAM/KEY")]
    name: String,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let instance: Instance = context.client.get(&path(&args.name)?).await?;
    context.output.data(&instance, page);
    Ok(())
}

fn page(instance: &Instance) -> String {
    let row = &instance.row;
    let place = match instance.store.as_str() {
        "shared" => "in the shared store, now on",
        "mirror" => "mirrored, now on",
        _ => "on",
    };
    let mut lines = vec![format!(
        "{} {place} {}, version {}, mode {}, after {} episodes: {}",
        row.name, row.node, row.version, instance.mode, row.episode, row.doing
    )];
    lines.extend(sentences(instance).into_iter().map(|sentence| format!("  {sentence}")));
    let mut field = |name: &str, text: String| {
        if !text.is_empty() {
            lines.push(format!("{name:<10}{text}"));
        }
    };
    let state = instance.state.get();
    let shown = state.get(..state.floor_char_boundary(STATE_SHOWN)).unwrap_or(state);
    let more = if shown.len() < state.len() { format!("… ({} bytes)", state.len()) } else { String::new() };
    field("state", format!("{shown}{more}"));
    field("answer", instance.answer.as_ref().map_or_else(String::new, |answer| answer.get().to_owned()));
    let events = instance.events.iter().map(|event| {
        let source = event.source.as_ref().map_or_else(String::new, |source| format!(" from {source}"));
        format!("{}{source}", event.kind)
    });
    field("inbox", events.collect::<Vec<_>>().join(", "));
    let peers = instance.peers.iter().map(|peer| {
        let kept =
            if peer.remembered == 0 { String::new() } else { format!(", {} remembered", peer.remembered) };
        format!("{} ({} finished{kept})", peer.name, peer.finished)
    });
    field("heard", peers.collect::<Vec<_>>().join(", "));
    field("parent", instance.parent.clone().unwrap_or_default());
    field("children", instance.children.join(", "));
    lines.join("\n")
}
