//! The rows of the table of event types; what the columns mean is in the module above.
//!
//! One `kind` per type. A name, once released, keeps its meaning for ever. It must never hold a rule: those are where
//! the rows are read.

use super::{About, Field, Holds, Included, Kind, Reports, Unit, Variant};

const TEXT: Holds = Holds::Text;
const COUNT: Holds = Holds::Number(Unit::Count);
const PERCENT: Holds = Holds::Number(Unit::Percent);
const BYTES: Holds = Holds::Number(Unit::Bytes);
const MILLISECONDS: Holds = Holds::Number(Unit::Milliseconds);

/// A field that no registration fixes.
const fn tells(name: &'static str, holds: Holds, meaning: &'static str) -> Field {
    Field { name, holds, about: About::Never, meaning }
}

/// A field that a registration may fix.
const fn may_fix(name: &'static str, holds: Holds, meaning: &'static str) -> Field {
    Field { name, holds, about: About::May, meaning }
}

/// A field that a registration must fix.
const fn must_fix(name: &'static str, holds: Holds, meaning: &'static str) -> Field {
    Field { name, holds, about: About::Must, meaning }
}

pub(super) const KINDS: &[Kind] = &[
    Kind {
        name: "disk.usage",
        sentence: "A file system fills up or empties by a percent.",
        reports: Reports::Level,
        variant: Variant::Selective,
        included: Included::Always,
        per_second_max: 20,
        fields: &[
            tells("percent", PERCENT, "how full it is"),
            may_fix("path", TEXT, "where it is mounted, or the fixed path in it"),
            tells("used_bytes", BYTES, "what is used"),
            tells("size_bytes", BYTES, "what fits"),
            tells("device", TEXT, "the device"),
        ],
    },
    Kind {
        name: "pressure.cpu",
        sentence: "Programs wait for processors more or less than before.",
        reports: Reports::Level,
        variant: Variant::Selective,
        included: Included::Always,
        per_second_max: 10,
        fields: &[
            tells("some10", PERCENT, "share of the last 10 s in which some program waited"),
            tells("full10", PERCENT, "share of the last 10 s in which all of them waited"),
            tells("level", TEXT, "`none`, `some` from 5 %, `high` from 20 % of it, `full` when all waited"),
            may_fix("cgroup", TEXT, "the control group; the whole machine where none is fixed"),
        ],
    },
    Kind {
        name: "pressure.io",
        sentence: "Programs wait for disks more or less than before.",
        reports: Reports::Level,
        variant: Variant::Selective,
        included: Included::Always,
        per_second_max: 10,
        fields: &[
            tells("some10", PERCENT, "share of the last 10 s in which some program waited"),
            tells("full10", PERCENT, "share of the last 10 s in which all of them waited"),
            tells("level", TEXT, "`none`, `some` from 5 %, `high` from 20 % of it, `full` when all waited"),
            may_fix("cgroup", TEXT, "the control group; the whole machine where none is fixed"),
        ],
    },
    Kind {
        name: "pressure.memory",
        sentence: "Programs wait for memory more or less than before.",
        reports: Reports::Level,
        variant: Variant::Selective,
        included: Included::Always,
        per_second_max: 10,
        fields: &[
            tells("some10", PERCENT, "share of the last 10 s in which some program waited"),
            tells("full10", PERCENT, "share of the last 10 s in which all of them waited"),
            tells("level", TEXT, "`none`, `some` from 5 %, `high` from 20 % of it, `full` when all waited"),
            may_fix("cgroup", TEXT, "the control group; the whole machine where none is fixed"),
        ],
    },
    Kind {
        name: "process.exit",
        sentence: "A process ended.",
        reports: Reports::Edge,
        variant: Variant::Selective,
        included: Included::WhenAsked,
        per_second_max: 1_000,
        fields: &[
            may_fix("pid", COUNT, "its number"),
            may_fix("command", TEXT, "its command"),
            may_fix("container", TEXT, "the container it ran in"),
            tells("status", COUNT, "its exit status, where it ended by itself"),
            tells("signal", COUNT, "the signal that ended it, where one did"),
        ],
    },
    Kind {
        name: "file.change",
        sentence: "A file, or something in a directory, changed.",
        reports: Reports::Edge,
        variant: Variant::Selective,
        included: Included::WhenAsked,
        per_second_max: 20_000,
        fields: &[
            must_fix("path", TEXT, "the file or directory that is watched"),
            tells("change", TEXT, "`created`, `modified`, `deleted`, `moved` or `attributes`"),
            tells("name", TEXT, "which entry of the directory"),
            tells("from", TEXT, "its old name, where it was renamed within the folder"),
        ],
    },
    Kind {
        name: "network.interface",
        sentence: "A network interface changed.",
        reports: Reports::Edge,
        variant: Variant::Selective,
        included: Included::Always,
        per_second_max: 100,
        fields: &[
            may_fix("interface", TEXT, "its name"),
            tells("change", TEXT, "`up`, `down`, `address_added`, `address_removed`, `added` or `removed`"),
            tells("address", TEXT, "the address, where one came or went"),
        ],
    },
    Kind {
        name: "clock.step",
        sentence: "The machine's clock was set.",
        reports: Reports::Edge,
        variant: Variant::All,
        included: Included::Always,
        per_second_max: 10,
        fields: &[tells("by_ms", MILLISECONDS, "by how much; negative when it was set back")],
    },
    Kind {
        name: "memory.oom_kill",
        sentence: "The kernel ended processes because memory ran out.",
        reports: Reports::Edge,
        variant: Variant::All,
        included: Included::Always,
        per_second_max: 100,
        fields: &[
            may_fix("container", TEXT, "the container whose limit was reached, if it was one"),
            may_fix("cgroup", TEXT, "the control group"),
            tells("count", COUNT, "how many processes since the last event"),
        ],
    },
    Kind {
        name: "unit.state",
        sentence: "A systemd unit changed its state.",
        reports: Reports::Edge,
        variant: Variant::Selective,
        included: Included::WhenAsked,
        per_second_max: 100,
        fields: &[
            may_fix("unit", TEXT, "its name"),
            tells("state", TEXT, "`active`, `inactive`, `failed` and their like"),
            tells("sub", TEXT, "its type's own, finer state"),
        ],
    },
    Kind {
        name: "node.joined",
        sentence: "A node became a member.",
        reports: Reports::Edge,
        variant: Variant::Agreed,
        included: Included::Always,
        per_second_max: 100,
        fields: &[
            may_fix("member", TEXT, "the node that this is about"),
            tells("view", COUNT, "the view that has it"),
        ],
    },
    Kind {
        name: "node.suspected",
        sentence: "Something is wrong with a node, its agent or its networks, in the opinion of the node that tells.",
        reports: Reports::Edge,
        variant: Variant::All,
        included: Included::Always,
        per_second_max: 100,
        fields: &[
            may_fix("member", TEXT, "the node that this is about"),
            tells("class", TEXT, "the class of the verdict, as `host-dead`"),
            tells("evidence", TEXT, "what it rests on"),
        ],
    },
    Kind {
        name: "node.cleared",
        sentence: "A node of which something was wrong is well again.",
        reports: Reports::Edge,
        variant: Variant::All,
        included: Included::Always,
        per_second_max: 100,
        fields: &[
            may_fix("member", TEXT, "the node that this is about"),
            tells("class", TEXT, "the class that no longer holds"),
        ],
    },
    Kind {
        name: "node.removed",
        sentence: "A node was removed from the view.",
        reports: Reports::Edge,
        variant: Variant::Agreed,
        included: Included::Always,
        per_second_max: 100,
        fields: &[
            may_fix("member", TEXT, "the node that this is about"),
            tells("view", COUNT, "the first view without it"),
            tells("reason", TEXT, "why, in words"),
        ],
    },
    Kind {
        name: "node.left",
        sentence: "A node left the cluster on request.",
        reports: Reports::Edge,
        variant: Variant::Agreed,
        included: Included::Always,
        per_second_max: 100,
        fields: &[
            may_fix("member", TEXT, "the node that this is about"),
            tells("view", COUNT, "the first view without it"),
        ],
    },
    Kind {
        name: "link.state",
        sentence: "A link of the node that tells changed its state.",
        reports: Reports::Edge,
        variant: Variant::Selective,
        included: Included::Always,
        per_second_max: 1_000,
        fields: &[
            may_fix("peer", TEXT, "the node at the other end"),
            may_fix("network", TEXT, "over which network"),
            tells("state", TEXT, "`up`, `degraded`, `one-way`, `down` or `unknown`"),
            tells("from", TEXT, "the state before"),
        ],
    },
    Kind {
        name: "network.state",
        sentence: "A network as a whole works or does not.",
        reports: Reports::Edge,
        variant: Variant::All,
        included: Included::Always,
        per_second_max: 100,
        fields: &[
            may_fix("network", TEXT, "its name"),
            tells("state", TEXT, "`up` or `down`"),
            tells("class", TEXT, "the class of the verdict"),
            tells("reason", TEXT, "what it rests on"),
        ],
    },
    Kind {
        name: "view.installed",
        sentence: "A new view was agreed on.",
        reports: Reports::Edge,
        variant: Variant::Agreed,
        included: Included::Always,
        per_second_max: 100,
        fields: &[
            tells("view", COUNT, "its number"),
            tells("members", COUNT, "how many nodes it has"),
            tells("change", TEXT, "what is new in it, in words"),
        ],
    },
    Kind {
        name: "catalog.changed",
        sentence: "A row of the catalog was written or removed.",
        reports: Reports::Edge,
        variant: Variant::Agreed,
        included: Included::WhenAsked,
        per_second_max: 10_000,
        fields: &[
            may_fix("key", TEXT, "its key"),
            tells("change", TEXT, "`put` or `deleted`"),
            tells("revision", COUNT, "the catalog's revision"),
        ],
    },
    Kind {
        name: "container.started",
        sentence: "A container was started.",
        reports: Reports::Edge,
        variant: Variant::Agreed,
        included: Included::Always,
        per_second_max: 1_000,
        fields: &[
            may_fix("container", TEXT, "the container"),
            tells("epoch", COUNT, "which run of it, counted by the cluster"),
        ],
    },
    Kind {
        name: "container.stopped",
        sentence: "A container ended, or was stopped on request.",
        reports: Reports::Edge,
        variant: Variant::Agreed,
        included: Included::Always,
        per_second_max: 1_000,
        fields: &[
            may_fix("container", TEXT, "the container"),
            tells("epoch", COUNT, "which run of it"),
            tells("status", COUNT, "its exit status, where it ended by itself"),
            tells("signal", COUNT, "the signal that ended it, where one did"),
        ],
    },
    Kind {
        name: "container.moved",
        sentence: "A container runs on another node without having lost anything.",
        reports: Reports::Edge,
        variant: Variant::Agreed,
        included: Included::Always,
        per_second_max: 1_000,
        fields: &[
            may_fix("container", TEXT, "the container"),
            tells("from", TEXT, "the node it was on"),
            tells("to", TEXT, "the node it is on"),
            tells("epoch", COUNT, "which run of it"),
        ],
    },
    Kind {
        name: "container.restored",
        sentence: "A container runs again from a checkpoint.",
        reports: Reports::Edge,
        variant: Variant::Agreed,
        included: Included::Always,
        per_second_max: 1_000,
        fields: &[
            may_fix("container", TEXT, "the container"),
            tells("from", TEXT, "the node it was on"),
            tells("to", TEXT, "the node it is on"),
            tells("epoch", COUNT, "which run of it"),
            tells("checkpoint", TEXT, "from which checkpoint"),
            tells("age_ms", MILLISECONDS, "how old that was: what it did since is lost"),
        ],
    },
    Kind {
        name: "container.failed",
        sentence: "A container can't be run.",
        reports: Reports::Edge,
        variant: Variant::Agreed,
        included: Included::Always,
        per_second_max: 1_000,
        fields: &[
            may_fix("container", TEXT, "the container"),
            tells("epoch", COUNT, "which run of it"),
            tells("reason", TEXT, "why"),
        ],
    },
    Kind {
        name: "container.frozen",
        sentence: "A container stands still, because its node may not run it at present.",
        reports: Reports::Edge,
        variant: Variant::All,
        included: Included::Always,
        per_second_max: 1_000,
        fields: &[may_fix("container", TEXT, "the container"), tells("reason", TEXT, "why")],
    },
    Kind {
        name: "checkpoint.committed",
        sentence: "A checkpoint is complete and can be restored.",
        reports: Reports::Edge,
        variant: Variant::Agreed,
        included: Included::Always,
        per_second_max: 1_000,
        fields: &[
            may_fix("container", TEXT, "the container"),
            tells("checkpoint", TEXT, "its id"),
            tells("size_bytes", BYTES, "how much it holds"),
            tells("copies", COUNT, "how many copies other nodes have"),
            tells("copies_wanted", COUNT, "how many are asked for"),
            tells("frozen_ms", MILLISECONDS, "how long the program was held still for it"),
        ],
    },
    Kind {
        name: "checkpoint.lost",
        sentence: "No copy of a checkpoint is left.",
        reports: Reports::Edge,
        variant: Variant::Agreed,
        included: Included::Always,
        per_second_max: 1_000,
        fields: &[
            may_fix("container", TEXT, "the container"),
            tells("epoch", COUNT, "the last run of it"),
            tells("reason", TEXT, "why"),
        ],
    },
    Kind {
        name: "device.appeared",
        sentence: "A disk came into sight of the node that tells.",
        reports: Reports::Edge,
        variant: Variant::All,
        included: Included::Always,
        per_second_max: 100,
        fields: &[
            may_fix("device", TEXT, "what identifies it, the same on every node that sees it"),
            tells("path", TEXT, "the kernel's name on that node"),
        ],
    },
    Kind {
        name: "device.removed",
        sentence: "A disk went out of sight of the node that tells.",
        reports: Reports::Edge,
        variant: Variant::All,
        included: Included::Always,
        per_second_max: 100,
        fields: &[
            may_fix("device", TEXT, "what identifies it"),
            tells("path", TEXT, "the kernel's name on that node"),
        ],
    },
    Kind {
        name: "audit.change",
        sentence: "Somebody changed something.",
        reports: Reports::Edge,
        variant: Variant::All,
        included: Included::Always,
        per_second_max: 1_000,
        fields: &[
            tells("who", TEXT, "the certificate, token or user"),
            tells("from", TEXT, "where the request came from"),
            tells("verb", TEXT, "what was asked for"),
            tells("what", TEXT, "of what"),
            tells("outcome", TEXT, "`done`, or the code of the refusal"),
        ],
    },
    Kind {
        name: "user",
        sentence: "Whatever `steadfast events emit` says; its fields are whatever was given.",
        reports: Reports::Edge,
        variant: Variant::Selective,
        included: Included::Always,
        per_second_max: 50_000,
        fields: &[],
    },
];
