//! `steadfast nodes`: every node that the catalog knows.

use super::Context;
use crate::api::types::Node;
use crate::failure::Failure;
use crate::output::table;
use crate::units;

/// List the nodes of the cluster
///
/// DOMAIN is the failure domain that a node's configuration names, widest first. A node that lends nothing and runs no
/// containers is a witness or an observer.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast nodes\n  steadfast -o json nodes | jq -r '.[] | select(.state == \"member\") | .name'"
)]
pub struct Args {}

pub(super) async fn run(_args: Args, context: &Context) -> Result<(), Failure> {
    let nodes: Vec<Node> = context.client.get("/v1/nodes").await?;
    context.output.data(&nodes, |nodes| {
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
