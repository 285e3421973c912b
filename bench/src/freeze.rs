//! How long a checkpoint holds a 1 GiB program still, against plain `criu dump` of the same program to a tmpfs.
//!
//! The program itself notices; both are asked in turn, so that the machine's moods hit both.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::bail;
use steadfast_cli::bed::{Bed, service_address};

use crate::ballast::{longest_gap_us, unix_us, wait_ready};
use crate::report::{Report, median};
use crate::steadfast;

const MIB: &str = "1024";
const ROUNDS: usize = 7;

/// How long the program is given to write down what it noticed.
const SETTLE: Duration = Duration::from_millis(100);

/// Where the container sees the folder that the reports are written to.
const INSIDE: &str = "/ballast";

/// Measures both, in turn.
pub fn measure(report: &mut Report) -> anyhow::Result<()> {
    println!("freeze: a program of {MIB} MiB, {ROUNDS} checkpoints each");
    // The hosts of the bed have a /dev/shm of their own; the reports are small and may lie on a disk.
    let folder = Scratch::new("/tmp")?;
    let images = Scratch::new("/dev/shm")?;
    let bed = Bed::builder(steadfast()?).hosts(3).networks(2).memory("4GiB").build()?;
    bed.init_cluster("bench")?;
    let own = std::env::current_exe()?;
    // The container sees the folder, but not necessarily where this program lies.
    fs::copy(&own, folder.0.join("program"))?;
    let (inside, outside) = (folder.0.join("inside"), folder.0.join("outside"));
    let volume = format!("{}:{INSIDE}", folder.0.display());
    let address = format!("{}/24", service_address(7));
    bed.host(0).steadfast_text(&[
        "run",
        "--name",
        "ballast",
        "--address",
        &address,
        "--every",
        "never",
        "--volume",
        &volume,
        "--",
        &format!("{INSIDE}/program"),
        "ballast",
        MIB,
        &format!("{INSIDE}/inside"),
    ])?;
    let plain = Ballast::start(&own, &outside)?;
    wait_ready(&inside)?;
    wait_ready(&outside)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let from = unix_us();
        bed.host(0).steadfast_text(&["checkpoint", "ballast"])?;
        sleep(SETTLE);
        let own_ms = longest_gap_us(&inside, from, unix_us())? / 1e3;
        let from = unix_us();
        dump(plain.0.id(), &images.0.join("dump"))?;
        sleep(SETTLE);
        let plain_ms = longest_gap_us(&outside, from, unix_us())? / 1e3;
        println!("freeze: steadfast {own_ms:.1} ms, criu dump {plain_ms:.1} ms");
        // The first of each touches memory that nothing has touched before.
        if round > 0 {
            ours.push(own_ms);
            theirs.push(plain_ms);
        }
    }
    report.time_ratio("main.freeze_1g.vs_criu", median(&ours), median(&theirs), "ms");
    Ok(())
}

/// Dumps into pages that have been free for as long as those that our own checkpoint gets: a virtual machine may have
/// given back pages that were freed seconds ago, and those freed just now are several times faster.
fn dump(pid: u32, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let criu = std::env::var_os("STEADFAST_CRIU").unwrap_or_else(|| "/opt/steadfast/criu/criu".into());
    let output = Command::new(criu)
        .args(["dump", "--leave-running", "--shell-job", "-v0", "-t", &pid.to_string(), "-D"])
        .arg(folder)
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        bail!("criu dump failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    fs::remove_dir_all(folder)?;
    Ok(())
}

struct Ballast(Child);

impl Ballast {
    fn start(program: &Path, report: &Path) -> anyhow::Result<Ballast> {
        let child = Command::new("setsid")
            .arg(program)
            .args(["ballast", MIB])
            .arg(report)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Ballast(child))
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &str) -> anyhow::Result<Scratch> {
        let path = PathBuf::from(format!("{parent}/steadfast-bench-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
