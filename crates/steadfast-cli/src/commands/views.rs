//! `steadfast views`: the agreed lists of members, one after the other: what each changed, who proposed it, and why.
//!
//! It shows what the catalog keeps, the newest thousand; nothing is judged here.

use std::pin::pin;
use std::time::{Duration, UNIX_EPOCH};

use futures_util::StreamExt;

use super::Context;
use crate::api::view_types::ViewRecord;
use crate::failure::Failure;
use crate::output::table;

/// Up to how many members are named in a table; `-o json` has all.
const MEMBERS_SHOWN: usize = 8;
/// The last millisecond that a date of four digits for the year can show.
const LATEST_UNIX_MS: u64 = 253_402_300_799_999;

/// Show the views: what each changed, who proposed it, and on what evidence
///
/// A view is the agreed list of members; each has the number after the last one. Members stand with their incarnation, the
/// number of their start. PROPOSED is the time by the clock of the node that proposed the view. The newest 1000 are kept.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast views\n  steadfast views --follow              # and each new one as it is committed\n  steadfast -o json views --limit 1000 | jq '.[] | select(.change == \"removed\")'"
)]
pub struct Args {
    /// Show the newest N
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1000))]
    limit: u32,
    /// Go on and show each new one
    #[arg(long)]
    follow: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    if args.follow {
        let mut views = pin!(context.client.follow_views(args.limit));
        while let Some(view) = views.next().await {
            context.output.item(&view?, line);
        }
        return Ok(());
    }
    let views = context.client.views(args.limit).await?;
    context.output.data(&views, |views| {
        table(["VIEW", "PROPOSED (UTC)", "BY", "MEMBERS", "WHY"], views.iter().map(row))
    });
    Ok(())
}

fn row(view: &ViewRecord) -> [String; 5] {
    [view.id.to_string(), proposed(view), view.proposer.clone(), members(view), view.reason.clone()]
}

/// One view in one line.
fn line(view: &ViewRecord) -> String {
    format!("{}  view {} by {}: {}; {}", proposed(view), view.id, view.proposer, view.reason, members(view))
}

fn members(view: &ViewRecord) -> String {
    if view.members.len() > MEMBERS_SHOWN {
        return format!("{} members", view.members.len());
    }
    let each = view.members.iter().map(|member| format!("{} ({})", member.node, member.incarnation));
    each.collect::<Vec<_>>().join(", ")
}

fn proposed(view: &ViewRecord) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(view.proposed_unix_ms.min(LATEST_UNIX_MS));
    humantime::format_rfc3339_millis(at).to_string().replace('T', " ").replace('Z', "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view_types::Member;

    fn view(members: u64) -> ViewRecord {
        let members = (1..=members).map(|number| Member { node: format!("n{number}"), incarnation: number });
        ViewRecord {
            id: 12,
            members: members.collect(),
            grantors: Vec::new(),
            change: "removed".into(),
            nodes: Vec::new(),
            proposer: "n1".into(),
            reason: "n3 was removed (host dead), accused by n1, n2".into(),
            proposed_unix_ms: 1_700_000_000_123,
        }
    }

    #[test]
    fn a_view_is_one_line_with_its_time_and_evidence() {
        assert_eq!(
            line(&view(2)),
            "2023-11-14 22:13:20.123  view 12 by n1: n3 was removed (host dead), accused by n1, n2; n1 (1), n2 (2)"
        );
        assert_eq!(members(&view(9)), "9 members");
    }

    #[test]
    fn a_clock_that_is_far_off_is_shown_all_the_same() {
        let far = ViewRecord { proposed_unix_ms: u64::MAX, ..view(1) };
        assert!(proposed(&far).starts_with("9999-12-31"));
    }
}
