//! `steadfast episode deploy`: a version of a program comes into the cluster, or the programs that are there are listed.

use std::path::PathBuf;

use data_encoding::BASE64;

use super::super::Context;
use crate::api::client::segment;
use crate::api::episode_types::{DeployRequest, Program};
use crate::failure::{Failure, disk};
use crate::output::table;

/// Deploy a version of a program; without a name, list those that are there
///
/// A WebAssembly module goes with it to all nodes; an end point or a command has to be reachable, or there, on each of them.
/// New instances run the version that was deployed last; older ones go on with the one that they began with.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast episode deploy\n  steadfast episode deploy order --wasm order.wasm\n  steadfast episode deploy payment --http http://127.0.0.1:8080/payment --mode pipelined\n  steadfast episode deploy stock --store mirror --http http://127.0.0.1:8080/stock\n  steadfast episode deploy shipment --version 2 --command python3 /srv/shipment.py --verbose"
)]
pub(super) struct Args {
    /// What the program is called: the part of its instances' names before the slash
    name: Option<String>,
    /// A WebAssembly module, as its bytes or as text
    #[arg(long, value_name = "FILE", conflicts_with_all = ["http", "command"], requires = "name")]
    wasm: Option<PathBuf>,
    /// An end point: http://HOST:PORT/PATH, https://… or unix:/PATH/OF/SOCKET
    #[arg(long, value_name = "URL", conflicts_with = "command", requires = "name")]
    http: Option<String>,
    /// A command that is run once for each episode; everything behind it belongs to it
    #[arg(long, value_name = "CMD", num_args = 1.., allow_hyphen_values = true, requires = "name")]
    command: Option<Vec<String>>,
    /// Which version it is [default: the next]
    #[arg(long, value_name = "N", requires = "name")]
    version: Option<u32>,
    /// When an episode may begin: strict, when all messages of the last one are finished, or pipelined, when all are
    /// acknowledged [default: as it was; strict for a new program]
    #[arg(long, value_name = "MODE", requires = "name")]
    mode: Option<String>,
    /// Where its instances are kept: local, on the disk of one node each, mirror, on the disks of two, or shared, in the
    /// database that all nodes reach; with both of these others go on when a node is lost; stays so for ever [default: as it was; local for a new program]
    #[arg(long, value_name = "STORE", requires = "name")]
    store: Option<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let Some(name) = args.name else {
        let programs: Vec<Program> = context.client.get("/v1/programs").await?;
        context.output.data(&programs, |programs| list(programs));
        return Ok(());
    };
    let wasm = match &args.wasm {
        None => None,
        Some(file) => {
            let bytes = std::fs::read(file).map_err(|error| disk("read", file, &error))?;
            Some(BASE64.encode(&bytes))
        }
    };
    let request = DeployRequest {
        wasm,
        http: args.http,
        command: args.command,
        version: args.version,
        mode: args.mode,
        store: args.store,
    };
    let program: Program = context.client.put(&format!("/v1/programs/{}", segment(&name)), &request).await?;
    if !program.unaware.is_empty() {
        let nodes = program.unaware.join(", ");
        context.output.say(&format!("{nodes} did not answer, and will know of it when back"));
    }
    context.output.data(&program, |program| format!("{} version {}", program.name, program.current));
    Ok(())
}

fn list(programs: &[Program]) -> String {
    let rows = programs.iter().flat_map(|program| {
        program.versions.iter().map(|version| {
            let current = if version.version == program.current { "current" } else { "" };
            [
                program.name.clone(),
                version.version.to_string(),
                current.to_owned(),
                program.mode.clone(),
                program.store.clone(),
                version.source.clone(),
                version.what.clone(),
            ]
        })
    });
    table(["PROGRAM", "VERSION", "", "MODE", "STORE", "BY", "WHAT"], rows)
}
