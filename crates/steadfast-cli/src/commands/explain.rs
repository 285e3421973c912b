//! `steadfast explain`: what an error code means and what to do.

use super::Context;
use crate::codes::{self, Code};
use crate::failure::Failure;

/// Explain an error code: likely causes and what to do
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  steadfast explain SF-0013\n  steadfast explain --all")]
pub struct Args {
    /// The code
    #[arg(required_unless_present = "all")]
    code: Option<String>,
    /// List all codes
    #[arg(long)]
    all: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let chosen: Vec<Code> =
        match &args.code {
            Some(text) if !args.all => {
                vec![text.parse().map_err(|error: codes::ParseCodeError| {
                    Failure::new(Code::CodeUnknown, error.to_string())
                })?]
            }
            Some(_) | None => Code::ALL.to_vec(),
        };
    let values: Vec<serde_json::Value> = chosen
        .iter()
        .map(|code| {
            serde_json::json!({"code": code.to_string(), "title": code.title(), "exit": code.exit().number(),
                "causes": code.causes(), "remedy": code.remedy()})
        })
        .collect();
    context.output.data(&values, |_| {
        if args.all {
            crate::output::table(
                ["CODE", "EXIT", "MEANING"],
                chosen.iter().map(|code| {
                    [code.to_string(), code.exit().number().to_string(), code.title().to_owned()]
                }),
            )
        } else {
            chosen.iter().map(|code| codes::page(*code)).collect::<Vec<_>>().join("\n").trim_end().to_owned()
        }
    });
    Ok(())
}
