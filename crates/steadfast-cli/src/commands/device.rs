//! `steadfast device`: the cluster's names of block devices: list, give, change, take away; and a label for an empty one.
//!
//! `label` alone works on this machine and not through the agent. What may be named is decided by the agent.

use std::path::PathBuf;

use clap::Subcommand;

use super::Context;
use crate::api::device_types::{Device, DeviceReport, DevicesHere, NameDevice, RenameDevice, UnnameDevice};
use crate::codes::Code;
use crate::failure::Failure;
use crate::output::table;
use crate::units::human_size;

/// Show and change the cluster's names of block devices
///
/// A device has the same name on every node that sees it: a link under /dev/steadfast/ that follows the device. Names are
/// for ever: one that was given is never given to a second device.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast device list\n  steadfast device name naa:5000c500a1b2c3d4 data1\n  steadfast device name sdb                      # this node's sdb; the next automatic name\n  steadfast device rename data1 archive\n  steadfast device unname archive\n  steadfast run --device data1 -- ./store /dev/steadfast/data1"
)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the devices that have a name or are seen
    ///
    /// SHARED says whether it is one device that several nodes see: "shared" where that is sure, "claimed" where only the
    /// device itself says so, "twins" where it is not so. An asterisk marks a node on which it is in use.
    #[command(
        after_help = "Examples:\n  steadfast device list\n  steadfast -o json device list | jq '.devices[] | select(.sharing == \"shared\") | .name'"
    )]
    List,
    /// Give a device a name
    ///
    /// It takes effect on every node that sees the device; where it is in use under another name it answers to both until
    /// it is free.
    #[command(
        after_help = "Examples:\n  steadfast device name naa:5000c500a1b2c3d4 data1\n  steadfast device name /dev/sdb data1       # this node's sdb\n  steadfast device name sdb                  # the next automatic name, disk-N\n  steadfast device name --local sdb scratch  # on this node only, until the cluster gives it a name"
    )]
    Name {
        /// Its id, or the kernel's name for it on this node
        device: String,
        /// The name: up to 64 letters, digits, '.', '_' and '-' [default: the next automatic one]
        name: Option<String>,
        /// Use the name on this node only, until the cluster gives the device one
        #[arg(long)]
        local: bool,
    },
    /// Take a device's name away
    ///
    /// The name goes to no other device; the device can get it back.
    #[command(after_help = "Examples:\n  steadfast device unname data1")]
    Unname {
        /// The name
        name: String,
    },
    /// Give a device another name
    ///
    /// The old name goes to no other device, and containers that ask for it still get the device.
    #[command(after_help = "Examples:\n  steadfast device rename data1 archive")]
    Rename {
        /// The name that it has
        old: String,
        /// The name that it is to have
        new: String,
    },
    /// Write a label to an empty disk of this machine, or to an image file, so that it has an identity
    ///
    /// It uses the first 8 KiB, which hold nothing but zeros, or the command is refused. Only a device that bears this
    /// label can be proved shared.
    #[command(
        after_help = "Examples:\n  steadfast device label /dev/sdb\n  truncate -s 1G disk.img && steadfast device label disk.img"
    )]
    Label {
        /// The disk or image file
        path: PathBuf,
    },
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let What::Label { path } = &args.what else { return super::block_on(ask(args.what, context))? };
    let id = steadfast::devices::write_label(path)
        .map_err(|error| Failure::new(Code::DiskFailed, format!("{}: {error}", path.display())))?;
    context.output.data(&serde_json::json!({ "id": id.to_string() }), |_| id.to_string());
    Ok(())
}

async fn ask(what: What, context: &Context) -> Result<(), Failure> {
    let client = &context.client;
    let (device, said): (Device, &str) = match what {
        What::List | What::Label { .. } => {
            let report: DeviceReport = client.get("/v1/devices").await?;
            context.output.data(&report, |report| {
                let rows = report.devices.iter().map(row);
                table(["NAME", "DEVICE", "SIZE", "SHARED", "SEEN BY", "NOTE"], rows)
            });
            if !context.output.is_json() {
                report.here.iter().flat_map(notes).for_each(|note| context.output.say(&note));
            }
            return Ok(());
        }
        What::Name { device, name, local } => {
            let request = NameDevice { device, name, local };
            (client.post("/v1/devices/name", &request).await?, "is named")
        }
        What::Rename { old, new } => {
            (client.post("/v1/devices/rename", &RenameDevice { old, new }).await?, "is named")
        }
        What::Unname { name } => {
            (client.post("/v1/devices/unname", &UnnameDevice { name }).await?, "has lost the name")
        }
    };
    let name = device.name.as_ref().or(device.retired.as_ref()).cloned().unwrap_or_default();
    context.output.say(&format!("{} {said} {name}", device.id));
    context.output.data(&device, |_| name);
    Ok(())
}

fn row(device: &Device) -> [String; 6] {
    let nodes = device.nodes.iter().map(|node| {
        let mark = if node.in_use { "*" } else { "" };
        format!("{}:{}{mark}", node.node, node.kernel_name)
    });
    let note = match (&device.problem, &device.retired) {
        (Some(problem), _) => problem.clone(),
        (None, Some(retired)) => format!("was {retired}"),
        (None, None) => String::new(),
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        or_dash(device.name.clone()),
        device.id.clone(),
        or_dash(device.bytes.map(human_size)),
        device.sharing.clone(),
        or_dash(Some(nodes.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty())),
        note,
    ]
}

/// What people should know of this node.
fn notes(here: &DevicesHere) -> Vec<String> {
    let failure = here.failure.iter().map(|why| format!("names can't be kept here: {why}"));
    let waiting = here.waiting.iter().map(|one| {
        let name = one.name.as_deref().unwrap_or("no name");
        format!("{} is to have {name} here: {}", one.device, one.why)
    });
    let unidentified =
        here.unidentified.iter().map(|one| format!("{} has no identity: {}", one.kernel_name, one.why));
    failure.chain(here.in_the_way.iter().cloned()).chain(waiting).chain(unidentified).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::device_types::DeviceOnNode;

    #[test]
    fn a_device_is_one_line() {
        let on = |node: &str, in_use| DeviceOnNode {
            node: node.into(),
            kernel_name: "sdb".into(),
            paths: 2,
            in_use,
        };
        let device = Device {
            id: "naa:5000c500a1b2c3d4".into(),
            name: Some("data1".into()),
            retired: None,
            bytes: Some(1 << 30),
            sharing: "shared".into(),
            nodes: vec![on("alpha", true), on("beta", false)],
            problem: None,
        };
        let expected = ["data1", "naa:5000c500a1b2c3d4", "1.0 GiB", "shared", "alpha:sdb*, beta:sdb", ""];
        let shown = row(&device);
        assert_eq!(
            (&shown[0], &shown[1], &shown[4]),
            (&expected[0].into(), &expected[1].into(), &expected[4].into())
        );
        let retired = Device { name: None, retired: Some("data1".into()), nodes: Vec::new(), ..device };
        assert_eq!((row(&retired)[0].as_str(), row(&retired)[5].as_str()), ("-", "was data1"));
    }
}
