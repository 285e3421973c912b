//! What the kernel tells until a consumer of the library's hub in the same process has it, and what emitting costs.
//!
//! Runs in a network name space of its own, whose links it takes down.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use steadfast::events::hub::{Hub, Parts, Subscription};
use steadfast::events::producers::Producers;
use steadfast::net::rpc::{Limits, Peers, Services};
use steadfast::net::tls::{Authority, Credentials, NodeKey};
use steadfast_proto::events::{Delivery, EventType, Fields, Interest, Life, Rate, Settings, Topic, Value};
use steadfast_proto::ids::{ClusterId, Incarnation, NodeId};

use super::{quantile, us_since};
use crate::report::{Report, median};

const NODE: NodeId = NodeId(1);
/// Changes of each kind.
const CHANGES: usize = 500;
/// Fewer, since the kernel takes its time.
const LINK_CHANGES: usize = 100;
/// Events that nobody hears, of one round.
const UNHEARD: u32 = 1_000_000;
/// How long a producer is given to begin to watch; no figure rests on it.
const SETTLE: Duration = Duration::from_millis(15);
const PATIENCE: Duration = Duration::from_secs(20);

/// Measures in a process with a network of its own and passes its figures on.
pub fn measure(report: &mut Report) -> anyhow::Result<()> {
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--kill-child", "--fork", "sh", "-c"])
        .arg("mount -t sysfs sysfs /sys && exec \"$0\" events local-inside")
        .arg(std::env::current_exe()?)
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("measuring in a network of its own failed: {text}");
    }
    for line in text.lines() {
        if line.starts_with("FIGURE ") { report.pass(line) } else { println!("{line}") }
    }
    Ok(())
}

/// The part that runs there.
pub fn inside() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // On one of the runtime's own threads, where an agent's consumers are too.
    let all = runtime.block_on(async { tokio::spawn(measured()).await? });
    let (mut report, all) = all?;
    report.figure("events.local_p50_us", quantile(&all, 0.5), "us");
    report.figure("events.local_p99_us", quantile(&all, 0.99), "us");
    report.print();
    Ok(())
}

/// All but the sum: the figures, and all times.
async fn measured() -> anyhow::Result<(Report, Vec<f64>)> {
    let mut report = Report::default();
    let hub = start_hub()?;
    emit_unheard(&hub, &mut report)?;
    let (links, calls) = links(&hub).await?;
    report.figure("events.local_link_call_p50_us", quantile(&calls, 0.5), "us");
    let (exits, floors) = exits(&hub).await.context("a process ended")?;
    report.figure("events.local_exit_kernel_p50_us", quantile(&floors, 0.5), "us");
    let files = files(&hub).await.context("a file was made")?;
    let kinds = [("exit", exits), ("file", files), ("link", links)];
    for (name, times) in &kinds {
        report.figure(&format!("events.local_{name}_p50_us"), quantile(times, 0.5), "us");
        report.figure(&format!("events.local_{name}_p99_us"), quantile(times, 0.99), "us");
    }
    Ok((report, kinds.into_iter().flat_map(|(_, times)| times).collect()))
}

/// A node without others. Its events are not limited in rate, which is no part of any figure.
pub fn start_hub() -> anyhow::Result<Hub> {
    let authority = Authority::create(ClusterId(1))?;
    let key = NodeKey::generate()?;
    let issued = authority.issue(NODE, &key.public())?;
    let credentials = Credentials::new(NODE, authority.certificate(), &issued, &key.private_pkcs8())?;
    let (producers, reports) = Producers::new(|_| None);
    let rate = Rate { per_second: 100_000_000, burst: 100_000_000 };
    Ok(Hub::start(Parts {
        life: Life { node: NODE, incarnation: Incarnation(1) },
        settings: Settings { rate, ..Settings::default() },
        peers: Peers::new(credentials),
        services: Services::new(Limits::default()),
        producers,
        reports,
    }))
}

/// What emitting costs while nobody listens.
fn emit_unheard(hub: &Hub, report: &mut Report) -> anyhow::Result<()> {
    let kind: EventType = "user".parse()?;
    let fields = Fields::from([("n".to_owned(), Value::Integer(1))]);
    let mut costs = Vec::new();
    for _ in 0..super::ROUNDS {
        let start = Instant::now();
        for _ in 0..UNHEARD {
            hub.emit(&kind, &fields);
        }
        costs.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(UNHEARD));
    }
    report.figure("events.emit_unheard_ns", median(&costs), "ns");
    Ok(())
}

/// The times of exits, and beside them how long the kernel takes until a thread that waits for nothing else in a call of its own
/// knows of one: what no path can be shorter than.
async fn exits(hub: &Hub) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let (mut times, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..CHANGES {
        let mut child = Command::new("sleep").arg("1000").spawn()?;
        let mut heard = subscribe(hub, "process.exit", "pid", &child.id().to_string())?;
        tokio::time::sleep(SETTLE).await;
        let start = Instant::now();
        child.kill()?;
        let waited = until(&mut heard, |_| true).await;
        times.push(us_since(start));
        child.wait()?;
        waited?;
        let mut child = Command::new("sleep").arg("1000").spawn()?;
        tokio::time::sleep(SETTLE).await;
        let start = Instant::now();
        child.kill()?;
        child.wait()?;
        floors.push(us_since(start));
    }
    Ok((times, floors))
}

async fn files(hub: &Hub) -> anyhow::Result<Vec<f64>> {
    let folder = crate::catalog::member::folder("events")?;
    let mut heard = subscribe(hub, "file.change", "path", &folder.display().to_string())?;
    tokio::time::sleep(SETTLE).await;
    let mut times = Vec::new();
    for number in 0..CHANGES {
        let name = format!("file-{number}-");
        let start = Instant::now();
        fs::File::create(folder.join(&name))?;
        until(&mut heard, |fields| {
            fields.values().any(|value| matches!(value, Value::Text(text) if text.contains(&name)))
        })
        .await?;
        times.push(us_since(start));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    fs::remove_dir_all(&folder)?;
    Ok(times)
}

/// One end of a cable is taken down and up by writing its flags; the times are of taking it down. The second list is how long the
/// kernel's own call took, which is the larger part.
async fn links(hub: &Hub) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    ip("link add one type veth peer name two")?;
    ip("link set two up")?;
    let flags = "/sys/class/net/one/flags";
    let (down, up) = ("0x1002", "0x1003");
    let mut heard = subscribe(hub, "network.interface", "interface", "one")?;
    tokio::time::sleep(SETTLE).await;
    let is = |fields: &Fields, what: &str| {
        fields.get("change").is_some_and(|change| *change == Value::Text(what.to_owned()))
    };
    let (mut times, mut calls) = (Vec::new(), Vec::new());
    for _ in 0..LINK_CHANGES {
        fs::write(flags, up).context("a link's flags can be written")?;
        until(&mut heard, |fields| is(fields, "up")).await.context("a link came up")?;
        let start = Instant::now();
        fs::write(flags, down)?;
        calls.push(us_since(start));
        until(&mut heard, |fields| is(fields, "down")).await.context("a link went down")?;
        times.push(us_since(start));
    }
    Ok((times, calls))
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    if !Command::new("ip").args(arguments.split(' ')).status()?.success() {
        bail!("`ip {arguments}` failed");
    }
    Ok(())
}

fn subscribe(hub: &Hub, kind: &str, field: &str, value: &str) -> anyhow::Result<Subscription> {
    let mut topic = Topic::from(kind.parse::<EventType>()?);
    topic.about.insert(field.to_owned(), value.to_owned());
    hub.subscribe(Interest::local(topic)).map_err(refused)
}

fn refused(refusal: impl std::fmt::Debug) -> anyhow::Error {
    anyhow::anyhow!("a registration was refused: {refusal:?}")
}

/// Waits for an event like this one.
async fn until(heard: &mut Subscription, is_it: impl Fn(&Fields) -> bool) -> anyhow::Result<()> {
    loop {
        let next = tokio::time::timeout(PATIENCE, heard.next()).await.context("no event came")?;
        for delivery in next.map_err(refused)? {
            match delivery {
                Delivery::Event(event) if is_it(&event.what.fields) => return Ok(()),
                Delivery::Event(_) => {}
                other => bail!("instead of an event came {other:?}"),
            }
        }
    }
}
