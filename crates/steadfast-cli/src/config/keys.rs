//! Every key of the configuration, for the reference page; a test compares the table with what is read.
//!
//! It decides nothing: what a key may hold is checked in [`super`] and [`super::detect`].

use super::EXAMPLE;

/// One key.
#[derive(Clone, Copy, Debug)]
struct Key {
    section: &'static str,
    name: &'static str,
    default: &'static str,
    about: &'static str,
}

const fn key(section: &'static str, name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key { section, name, default, about }
}

#[rustfmt::skip]
const KEYS: &[Key] = &[
    key("[node]", "name", "the host name", "The node's name for people: small letters, digits and `-`."),
    key("[node]", "data", "`/var/lib/steadfast`", "The folder that holds all that lasts: identity, keys, catalog, upper layers, logs."),
    key("[node]", "domain", "none", "Failure domain, widest first, as `[\"site-a\", \"rack-3\"]`, at most 4 levels: what fails together. Copies of checkpoints, voters and grantors are spread over domains where they can; `steadfast status` says which ones the cluster can lose."),
    key("[node]", "mode", "`\"agent\"`", "`\"observe\"`: membership, detection, links and events only. It runs no containers, lends no memory, needs no root, runc or CRIU; it votes in the catalog. `\"witness\"`: the same, and takes commands about containers, which others carry out: a vote and a grantor of leases for a site that has two machines."),
    key("[node]", "standby", "`false`", "`true`: once it has passed its probation it waits, ready, until a member is removed, and takes its place; or until `steadfast replace` names it."),
    key("[[network]]", "name", "needed", "The network's name, the same on every node. One table for each independent network, at most 8."),
    key("[[network]]", "address", "needed", "This node's own address on it, UDP and TCP; port 7400 unless given."),
    key("[detect]", "profile", "`\"gossip\"`", "Which rule suspects a silent peer. `\"gossip\"`: as many missed heartbeats as delay and loss call for. `\"relative\"`: lag behind the other peers. `\"timeout\"`: a timeout that follows the longest recent gap."),
    key("[detect]", "statistics", "`\"source\"`", "How delay statistics follow their samples. `\"source\"` forgets an outlier at once; `\"smooth\"` suits intervals of a second and more."),
    key("[detect]", "interval", "`\"100ms\"`", "Between heartbeats, 10 ms to 10 s. All other times follow from it. A lease must hold three. Use one value on all nodes."),
    key("[detect]", "interval_max", "20 intervals", "The longest that heartbeats are stretched to when round trips are slow (an interval is ten of them), at most 60 s; and never to more than a sixth of the lease."),
    key("[detect]", "timeout_min", "3 intervals", "Profile `\"timeout\"`: the shortest timeout; more than two intervals."),
    key("[detect]", "timeout_max", "50 intervals", "Profile `\"timeout\"`: the longest timeout, however slow a peer has been."),
    key("[detect]", "stall_limit", "`\"10s\"`", "How long a process that is stopped while its machine lives stays a member; ten intervals at least. It is reported as stalled at once."),
    key("[catalog]", "engine", "`\"embedded\"`", "Who keeps the catalog. `\"embedded\"`: up to five of the nodes, by a majority of them. `\"etcd\"`: an etcd of your own, 3.4 or newer. The same on every node, and for the life of the cluster."),
    key("[catalog]", "endpoints", "needed with etcd", "The addresses of etcd's members for clients, as `[\"10.0.1.21:2379\", \"10.0.1.22:2379\"]`, at most 16; port 2379 unless given. Each is asked when another does not answer."),
    key("[catalog]", "prefix", "`\"steadfast\"`", "What this cluster's keys in etcd begin with; another one for each cluster."),
    key("[catalog]", "ca", "none: no TLS", "A PEM file with the authority that etcd's certificates are checked against. With it everything goes over TLS."),
    key("[catalog]", "certificate", "none", "A PEM file with this node's certificate for etcd, where etcd asks for one (`--client-cert-auth`)."),
    key("[catalog]", "key", "none", "A PEM file with the key of `certificate`."),
    key("[probation]", "seen", "`\"3s\"`", "A node that wants to be a member, or to be one again, is in probation first. For how long every member must have heard it. Use one section on all nodes: the first member in rank judges."),
    key("[probation]", "clean", "`\"10s\"`", "For how long no member may have missed it on any network."),
    key("[probation]", "deadline", "`\"10m\"`", "When it is eliminated, with what it lacks: so long after its evaluation began, after it last was ready where it waits in readiness, or after it was asked to replace a member. Longer than `seen` and `clean`."),
    key("[probation]", "round_trip", "`\"500ms\"`", "The longest round trip to a member that all but one in a hundred may take, on any network."),
    key("[probation]", "loss", "0.05", "The largest share of its heartbeats that a network may lose."),
    key("[probation]", "clock", "`\"5s\"`", "How far its clock may be from the judge's."),
    key("[probation]", "memory", "none", "The least checkpoint memory that it must have free."),
    key("[probation]", "domain", "`\"any\"`", "`\"distinct\"`: no member may share its widest failure domain."),
    key("[probation]", "lag", "1000", "How many changes of the catalog it may be behind; at the moment when it becomes a member, none."),
    key("[checkpoint]", "memory", "a quarter of this machine's", "Lent to the cluster for checkpoints."),
    key("[checkpoint]", "folder", "`chunks` in `[container] run`", "Where lent memory lies: a tmpfs."),
    key("[container]", "run", "`/run/steadfast`", "A folder on a tmpfs for sockets, bundles and images."),
    key("[container]", "bridge", "`\"sf0\"` with an uplink", "The containers' bridge; without one they have loopback only."),
    key("[container]", "uplink", "none", "The interface that takes the bridge outside."),
    key("[container]", "runc", "the first on PATH", "The runc to use."),
    key("[container]", "criu", "the first that is new enough", "The CRIU to use."),
    key("[devices]", "include", "`[\"*\"]`", "Patterns of the kernel's names of the block devices that are looked at: `*` is any text, `?` one character. `[]`: this node takes no part in device names."),
    key("[devices]", "links", "`/dev/steadfast`", "The folder in which each name is a link to its device. Two agents on one machine need folders of their own."),
    key("[devices]", "automatic", "`true`", "Whether this node gives the next automatic name to a device that several nodes see, that is surely one, and that was never named."),
    key("[episodes.postgresql.NAME]", "address", "needed", "A database that programs call NAME in the effects that they send to `effect/postgresql`, as `\"host=db.example dbname=shop user=steadfast\"` or `\"host=/run/postgresql dbname=shop user=steadfast\"`; without a password. Its table `steadfast_effects` is made when it is not there. On every node that keeps instances."),
    key("[episodes.postgresql.NAME]", "password_file", "none", "The file that holds the password."),
    key("[episodes.postgresql.NAME]", "ca", "none: no TLS", "A PEM file with the authority that the database's certificate is checked against. With it everything goes over TLS."),
    key("[episodes.shared]", "address", "none: no shared store", "The database in which the instances of programs are that were deployed with `--store shared`, as `\"host=db.example dbname=episodes user=steadfast\"`; without a password. The same on every node that keeps instances. Its tables `steadfast_store`, `steadfast_home` and `steadfast_instance` are made when they are not there; each cluster needs a database of its own, or a schema of its own by the user's `search_path`."),
    key("[episodes.shared]", "password_file", "none", "The file that holds the password."),
    key("[episodes.shared]", "ca", "none: no TLS", "A PEM file with the authority that the database's certificate is checked against. With it everything goes over TLS."),
    key("[api]", "socket", "`steadfast.sock` in `data`", "The API's socket; its owner only."),
    key("[page]", "listen", "none: no page", "Where this node serves its page, as `\"127.0.0.1:7480\"`; port 7480 unless given. On an address of the loopback it is plain HTTP, which a tunnel can reach; on any other it has TLS with this node's certificate. `steadfast page` makes a token that opens it."),
    key("[traces]", "endpoint", "none: no traces", "Where an OpenTelemetry collector takes OTLP over HTTP, as `\"http://127.0.0.1:4318\"`: traces of what people ask for and of recoveries, across nodes. Only a steadfast that was built with the cargo feature `otel` has them."),
];

/// The whole reference page, `docs/reference/config.md`.
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration\n\nGenerated from `crates/steadfast-cli/src/config`. One TOML file, `/etc/steadfast/steadfast.toml` unless `--config` names another.\nTimes and sizes have a unit (`\"450ms\"`, `\"8GiB\"`). All problems of a file are reported at once, with key and line; an\nunknown key is one of them.\n",
    );
    let mut section = "";
    for key in KEYS {
        if key.section != section {
            section = key.section;
            text.push_str(&format!("\n## `{section}`\n\n| key | default | what it does |\n|---|---|---|\n"));
        }
        text.push_str(&format!("| `{}` | {} | {} |\n", key.name, key.default, key.about));
    }
    text.push_str(&format!("\n## Environment\n\nThese replace what the file says: {}.\n", variables()));
    text.push_str(&format!("\n## An example\n\n```toml\n{EXAMPLE}```\n"));
    text
}

fn variables() -> String {
    super::VARIABLES.map(|name| format!("`{name}`")).join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::check_text;

    #[test]
    fn the_table_has_every_key_that_is_read_and_no_other() {
        let sections: BTreeSet<&str> = KEYS.iter().map(|key| key.section).collect();
        for section in sections {
            let refused =
                check_text("f", &format!("{section}\nqqqqqqqqqqqqqqqq = 1\n"), |_| None).unwrap_err();
            let line = refused.message.lines().find(|line| line.contains("unknown key")).unwrap();
            let known: BTreeSet<&str> = line.rsplit("known here: ").next().unwrap().split(", ").collect();
            let listed: BTreeSet<&str> =
                KEYS.iter().filter(|key| key.section == section).map(|key| key.name).collect();
            assert_eq!(known, listed, "{section}");
        }
        let refused = check_text("f", "qqqqqqqqqqqqqqqq = 1\n", |_| None).unwrap_err().message;
        let known: BTreeSet<&str> =
            refused.lines().find_map(|line| line.split("known here: ").nth(1)).unwrap().split(", ").collect();
        let listed: BTreeSet<&str> =
            KEYS.iter().filter_map(|key| key.section.trim_matches(['[', ']']).split('.').next()).collect();
        assert_eq!(known, listed);
    }
}
