//! `steadfast logs`: what a container printed.

use std::io::{self, Write};
use std::pin::pin;

use futures_util::StreamExt;

use super::Context;
use crate::api::client::segment;
use crate::api::types::LogLine;
use crate::failure::Failure;

/// Show what a container printed
///
/// What it wrote to stdout comes on stdout, what it wrote to stderr on stderr.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast logs redis\n  steadfast logs -f --tail 20 redis\n  steadfast logs --time redis"
)]
pub struct Args {
    /// The container
    name: String,
    /// Go on as it prints more
    #[arg(short, long)]
    follow: bool,
    /// Begin with this many last lines [default: all that is kept]
    #[arg(long, value_name = "LINES")]
    tail: Option<u32>,
    /// Put the time before each line
    #[arg(long)]
    time: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let tail = args.tail.map_or_else(String::new, |tail| format!("&tail={tail}"));
    let path = format!("/v1/containers/{}/logs?follow={}{tail}", segment(&args.name), args.follow);
    let mut lines = pin!(context.client.follow::<LogLine>(&path).await?);
    while let Some(line) = lines.next().await {
        let line = line?;
        if context.output.is_json() {
            context.output.item(&line, |_| String::new());
            continue;
        }
        let time = if args.time { format!("{} ", clock(line.at_unix_ms)) } else { String::new() };
        if line.stream == "stderr" {
            // The reader of stderr may be gone; the lines of stdout still count.
            let _ = writeln!(io::stderr(), "{time}{}", line.text);
        } else {
            crate::output::line(&format!("{time}{}", line.text));
        }
    }
    Ok(())
}

fn clock(at_unix_ms: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(at_unix_ms);
    humantime::format_rfc3339_millis(time).to_string()
}
