//! `steadfast catalog`: back the catalog up, and come back from a backup or from one survivor.

use std::path::PathBuf;

use serde::Serialize;

use super::Context;
use crate::agent::rescue;
use crate::codes::Code;
use crate::config;
use crate::failure::Failure;

/// Back the catalog up, restore it, or recover it from one survivor
///
/// The catalog is what the nodes agree on: members, containers, names. Programs and their checkpoints are not in it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast catalog backup /backup/catalog\n  steadfast init home && steadfast catalog restore /backup/catalog && systemctl start steadfast\n  steadfast catalog recover --from-survivor --lost 2     # of three voters the other two are gone for good"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Write the catalog, as of now, to a file
    ///
    /// Consistent: everything that was acknowledged before is in it. The file is written whole or not at all.
    Backup {
        /// Where to
        file: PathBuf,
    },
    /// Begin a new cluster's catalog with what a backup holds
    ///
    /// After `steadfast init` and before the agent's first start; refused where a catalog exists. A new cluster takes
    /// over containers (as lost: their checkpoints are not here) and names; the same cluster, everything.
    Restore {
        /// The backup
        file: PathBuf,
        /// The configuration file [default: /etc/steadfast/steadfast.toml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Make this node the only voter, when all other voters are gone for good
    ///
    /// What the others acknowledged and this node never received is lost. If others live after all there are then two
    /// clusters: stop their agents first. Theirs are refused until their catalog's folder is removed. The agent must
    /// not be running. The catalog is kept as it was, beside the new one.
    Recover {
        /// Say that this is meant
        #[arg(long)]
        from_survivor: bool,
        /// How many other voters are gone; it must be all of them
        #[arg(long, value_name = "COUNT")]
        lost: usize,
        /// The configuration file [default: /etc/steadfast/steadfast.toml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

#[derive(Clone, Debug, Serialize)]
struct Saved {
    file: PathBuf,
    revision: u64,
    rows: usize,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    match args.verb {
        Verb::Backup { file } => {
            let bytes = context.client.get_bytes("/v1/catalog/backup").await?;
            let (revision, rows) = rescue::store_backup(&bytes, &file)?;
            let saved = Saved { file, revision, rows };
            context.output.say(&format!("{} rows at revision {revision} are saved", saved.rows));
            context.output.data(&saved, |saved| saved.file.display().to_string());
        }
        Verb::Restore { file, config } => {
            let restored = rescue::restore(&config::load(config.as_deref())?, &file)?;
            context.output.say(&format!(
                "the catalog of {} begins with {} rows of the backup, {} are left out; next: start the agent",
                restored.cluster, restored.rows, restored.left_out
            ));
            context.output.data(&restored, |restored| restored.rows.to_string());
        }
        Verb::Recover { from_survivor, lost, config } => {
            if !from_survivor {
                let message = "recovery gives up what only the lost voters had; if that is meant, repeat this with --from-survivor";
                return Err(Failure::new(Code::BadRequest, message));
            }
            let recovered = rescue::recover(&config::load(config.as_deref())?, lost)?;
            context.output.say(&format!(
                "this node is now the only voter of its catalog; {} voters are cut off from it for ever, and what only they had is lost",
                recovered.lost
            ));
            if recovered.uncertain > 0 {
                context.output.say(&format!(
                    "{} changes at the end of its log were perhaps never acknowledged; they are kept",
                    recovered.uncertain
                ));
            }
            context.output.say("next: start the agent; on nodes that come back remove the catalog's folder before theirs, then they join again by themselves");
            context.output.data(&recovered, |recovered| recovered.rows.to_string());
        }
    }
    Ok(())
}
