//! `steadfast nodes`: every node that the catalog knows.

use super::Context;
use crate::api::types::Node;
use crate::failure::Failure;
use crate::output::table;
use crate::units;

/// List the nodes of the cluster
///
/// DOMAIN is the failure domain that a node's configuration names, widest first. A node that lends nothing and runs no
/// containers is a witness or an observer. A candidate is in `probation` until it has shown all that the configuration's
/// `[probation]` asks for; `--evidence` shows how far it is, or what it was eliminated for and what to do.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast nodes\n  steadfast nodes --evidence\n  steadfast -o json nodes | jq -r '.[] | select(.state == \"member\") | .name'"
)]
pub struct Args {
    /// Show each candidate's evidence, criterion by criterion
    #[arg(long)]
    evidence: bool,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let nodes: Vec<Node> = context.client.get("/v1/nodes").await?;
    context.output.data(&nodes, |nodes| {
        if args.evidence {
            return evidence(nodes);
        }
        let rows = nodes.iter().map(|node| {
            let name = if node.this { format!("{} *", node.name) } else { node.name.clone() };
            let addresses = node.addresses.iter().map(|(network, address)| format!("{network} {address}"));
            [
                name,
                node.state.clone(),
                addresses.collect::<Vec<_>>().join(", "),
                if node.domain.is_empty() { "-".to_owned() } else { node.domain.join("/") },
                units::human_size(node.memory_bytes),
                node.containers.join(", "),
                node.id.clone(),
            ]
        });
        table(["NAME", "STATE", "ADDRESSES", "DOMAIN", "LENDS", "CONTAINERS", "ID"], rows)
    });
    Ok(())
}

/// One line for each criterion of each candidate.
fn evidence(nodes: &[Node]) -> String {
    let mut rows: Vec<[String; 4]> = Vec::new();
    for node in nodes {
        let Some(probation) = &node.probation else { continue };
        let name = match &probation.replaces {
            Some(old) => format!("{} for {old}", node.name),
            None => node.name.clone(),
        };
        if let Some(eliminated) = &probation.eliminated {
            let said = format!("{}; {}", eliminated.measured, eliminated.advice);
            rows.push([name, eliminated.criterion.clone(), "eliminated".to_owned(), said]);
            continue;
        }
        rows.extend(
            probation
                .evidence
                .iter()
                .map(|one| [name.clone(), one.criterion.clone(), one.standing.clone(), one.measured.clone()]),
        );
    }
    table(["CANDIDATE", "CRITERION", "STANDING", "MEASURED"], rows)
}
