//! scratch
use std::time::Duration;
use steadfast_sim::detection::*;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let nodes: usize = args[1].parse().unwrap();
    let networks: usize = args[2].parse().unwrap();
    let loss: f64 = args[3].parse().unwrap();
    let secs: u64 = args[4].parse().unwrap();
    let trace = std::env::var("TRACE").is_ok();
    let mut plan = Plan { nodes, duration: Duration::from_secs(secs), trace, check: true, ..Plan::default() };
    plan.networks = vec![NetworkPlan { loss, ..NetworkPlan::default() }; networks];
    if let Ok(b) = std::env::var("BURST") {
        for n in &mut plan.networks {
            n.burst = Some(Burst {
                length: Duration::from_millis(300),
                every: Duration::from_secs(b.parse().unwrap()),
            });
        }
    }
    plan.settings.profile = match std::env::var("PROFILE").as_deref() {
        Ok("relative") => steadfast_proto::detect::Profile::Relative,
        Ok("timeout") => steadfast_proto::detect::Profile::Timeout,
        _ => steadfast_proto::detect::Profile::Gossip,
    };
    plan.faults = args[5..].iter().map(|f| f.parse().unwrap()).collect();
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let start = std::time::Instant::now();
    let report = World::new(&plan, seed).unwrap().run();
    for line in &report.lines {
        println!("{:?} {} {} {}", line.at, line.node, if line.is_right { "" } else { "WRONG" }, line.what);
    }
    for f in &report.findings {
        println!(
            "{} {}: first {:?} median {:?} last {:?} missing {} noticed {:?}..{:?} {:?} last {:?}",
            f.fault,
            f.subject,
            f.first(),
            f.median(),
            f.known.last(),
            f.missing,
            f.noticed.first(),
            f.noticed.last(),
            f.classes,
            f.classes_last
        );
    }
    println!("{:?} views {} removed {:?}\n{:?}", report.wrong, report.views, report.removed, report.cost);
    for e in report.examples.iter().take(8) {
        println!("{e:?}");
    }
    for v in report.violations.iter().take(8) {
        println!("{v}");
    }
    println!("took {:?}", start.elapsed());
}
