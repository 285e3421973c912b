//! The demo's other scene: the machine under the server is swapped for one that stands by, while the server is written to.
//!
//! Every acknowledged write must be there afterwards, and another node looks all the time whether the checkpoint has as many
//! copies as asked. It ends with one sentence if either is not so.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use super::load::Writer;
use super::{Kept, NAME, PATIENCE, off};
use crate::bed::{Bed, BedError, Host, wait_for};
use crate::failure::Failure;
use crate::output::{Output, line};

/// Replaces the node that the server runs on by the one that stands by; says which writes must be there.
pub(super) fn machine(bed: &Bed, writer: Writer, output: Output) -> Result<Kept, Failure> {
    let container = bed.wait_container(NAME, "running", |container| container.state == "running")?;
    let old = bed.host_named(&container.node).ok_or_else(|| off(format!("{NAME} runs on no host")))?;
    let new = bed.hosts().last().ok_or_else(|| off("nobody stands by".into()))?;
    let mut others = bed.hosts().iter().filter(|host| ![old.name(), new.name()].contains(&host.name()));
    let (Some(operator), Some(observer)) = (others.next(), others.next()) else {
        return Err(off("there are not three members".into()));
    };

    let progress = output.progress(&format!("waiting until {} has proved itself", new.name()));
    wait_for("a standby that is ready", PATIENCE, || is_ready(operator, new.name()).then_some(()))?;
    progress.done(&format!("{} has passed every criterion of its probation", new.name()));

    let progress = output.progress(&format!("replacing {} by {}", old.name(), new.name()));
    let copies = watched(observer, || operator.steadfast_text(&["replace", old.name(), new.name()]))?;
    let gone_over = bed.wait_container(NAME, "running on another machine", |now| {
        now.state == "running" && now.epoch > container.epoch && now.node != old.name()
    })?;
    let before = writer.acknowledged();
    wait_for("writes on the new machine", PATIENCE, || (writer.acknowledged() > before + 50).then_some(()))?;
    progress.done(&format!("one view swapped them; {NAME} goes on on {}", gone_over.node));

    let wait_ms = writer.longest_wait().as_secs_f64() * 1e3;
    let count = writer.acknowledged();
    drop(writer);
    let still_ms = stood_still_ms(observer, &gone_over.node)?;
    line(&format!(
        "\nthe last checkpoint, the view and the restore took {still_ms:.0} ms; no write waited longer than {wait_ms:.0} ms"
    ));
    let fewest: Vec<String> = (copies.iter())
        .map(|(number, (copies, wanted))| format!("checkpoint {number}: {copies} of {wanted}"))
        .collect();
    line(&format!("never fewer copies than asked ({})", fewest.join("; ")));
    Ok(Kept { count, when: "all the time" })
}

fn is_ready(host: &Host, name: &str) -> bool {
    let Ok(nodes) = host.nodes() else { return false };
    let node = nodes.into_iter().find(|node| node.name == name);
    node.and_then(|node| node.probation).is_some_and(|probation| probation.ready)
}

/// The fewest copies that each checkpoint had while it was the newest one, by its number, and how many it should have.
type Copies = BTreeMap<u64, (usize, u32)>;

/// Does `work`, and has `observer` look meanwhile at the copies of the newest checkpoint.
fn watched(observer: &Host, work: impl FnOnce() -> Result<String, BedError>) -> Result<Copies, Failure> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut seen = Copies::new();
            while !ended.load(Ordering::SeqCst) {
                look(observer, &mut seen)?;
            }
            look(observer, &mut seen)?;
            Ok::<Copies, Failure>(seen)
        });
        let worked = work();
        ended.store(true, Ordering::SeqCst);
        let seen = watching.join().map_err(|_| off("the observer ended early".into()))?;
        worked?;
        seen
    })
}

fn look(observer: &Host, seen: &mut Copies) -> Result<(), Failure> {
    // In this order: a copy counts unless the node that runs the program has it.
    let owner = observer.container(NAME)?.map(|container| container.node);
    let checkpoints = observer.checkpoints(NAME)?;
    if let Some(latest) = checkpoints.iter().find(|checkpoint| checkpoint.role == "latest") {
        let copies = latest.copies.iter().filter(|copy| Some(&copy.node) != owner.as_ref()).count();
        let wanted = latest.copies_wanted;
        if latest.protection != "protected" {
            let (number, protection) = (latest.number, &latest.protection);
            return Err(off(format!("checkpoint {number} was {protection}: {copies} copies of {wanted}")));
        }
        let fewest = seen.entry(latest.number).or_insert((copies, wanted));
        fewest.0 = fewest.0.min(copies);
    }
    Ok(())
}

/// From the instant that the last checkpoint shows until the server ran on `node`, in ms, as `observer` knows it.
fn stood_still_ms(observer: &Host, node: &str) -> Result<f64, Failure> {
    let latest = observer.checkpoints(NAME)?.into_iter().find(|checkpoint| checkpoint.role == "latest");
    let latest = latest.ok_or_else(|| off(format!("{NAME} has no checkpoint after the replacement")))?;
    let timeline = observer.status()?.timeline;
    let ran = timeline.iter().rev().find(|happening| {
        happening.what == "running"
            && happening.container.as_deref() == Some(NAME)
            && happening.node.as_deref() == Some(node)
    });
    let ran = ran.ok_or_else(|| off(format!("{} did not see {NAME} run on {node}", observer.name())))?;
    #[allow(clippy::cast_precision_loss, reason = "below 2^53 for 280,000 years")]
    Ok(ran.at_unix_ms - latest.taken_unix_ms as f64)
}
