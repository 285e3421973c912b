//! From a machine's power loss to the program's next answer, as its client sees it, and where the time goes.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use steadfast_cli::bed::{Bed, service_address};

use crate::report::{Report, median};
use crate::steadfast;

const ROUNDS: usize = 7;
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures the whole way, with the default lease and with a short one.
pub fn measure(report: &mut Report) -> anyhow::Result<()> {
    let default = rounds(None)?;
    report.figure("main.loss_to_answer.p50", median(&default), "s");
    report.figure("main.loss_to_answer.max", default.iter().copied().fold(0.0, f64::max), "s");
    let short = rounds(Some(Duration::from_millis(450)))?;
    report.figure("main.loss_to_answer.lease450ms.p50", median(&short), "s");
    Ok(())
}

fn rounds(lease: Option<Duration>) -> anyhow::Result<Vec<f64>> {
    println!("loss: {ROUNDS} power losses, lease {lease:?}");
    let mut builder = Bed::builder(steadfast()?).hosts(3).networks(2);
    if let Some(lease) = lease {
        builder = builder.lease(lease);
    }
    let bed = builder.build()?;
    bed.init_cluster("bench")?;
    let address = service_address(9);
    let with_prefix = format!("{address}/24");
    bed.host(0).steadfast_text(&[
        "run",
        "--name",
        "redis",
        "--address",
        &with_prefix,
        "--every",
        "never",
        "--",
        "redis-server",
        "--save",
        "",
        "--appendonly",
        "no",
        "--bind",
        "0.0.0.0",
        "--protected-mode",
        "no",
    ])?;
    let address = SocketAddr::from((address, 6379));
    let mut seconds = Vec::new();
    for _ in 0..ROUNDS {
        let container = bed.wait_container("redis", "running", |container| container.state == "running")?;
        let host = bed.host_named(&container.node).context("the container is on a host of the bed")?;
        host.steadfast_text(&["checkpoint", "redis"])?;
        wait_answer(&bed, address)?;
        let silent = host.power_off()?;
        wait_answer(&bed, address)?;
        let taken = silent.elapsed().as_secs_f64();
        println!("loss: {taken:.3} s");
        seconds.push(taken);
        host.power_on()?;
        host.start_agent()?;
        host.wait_ready()?;
        bed.wait_members(3)?;
    }
    Ok(seconds)
}

fn wait_answer(bed: &Bed, address: SocketAddr) -> anyhow::Result<()> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if ask(bed, address).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bail!("redis at {address} gave no answer within {} s", PATIENCE.as_secs())
}

fn ask(bed: &Bed, address: SocketAddr) -> std::io::Result<()> {
    let mut stream = bed.client().tcp_connect(address, Duration::from_millis(50))?;
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    if &answer == b"+PONG\r\n" { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}
