//! Sets a container up and starts it: fence first, then root, network, bundle, guard, and last runc.
//!
//! Must never start a process of the container outside of the fence, which is closed from its creation. What fails
//! midway is removed by the host, which knows where everything is.

use std::{
    collections::BTreeSet,
    fs, io,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::AtomicU64},
    thread,
};

use rustix::{
    fs::Mode,
    pipe::{PipeFlags, pipe_with},
    process::umask,
};

use super::{plan::Plan, wire::Wire};
use crate::{
    bundle::{self, Foreign},
    cgroup::FenceGroup,
    criu::{Criu, Engine, Subject, Tools, reason},
    layout::{Layout, hardware_address},
    log::LogWriter,
    network::arp,
    protocol::Prepared,
    root,
};

/// Everything that is in place when a container may be started.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) layout: Layout,
    pub(crate) group: FenceGroup,
    pub(crate) wire: Wire,
    pub(crate) tools: Tools,
    pub(crate) guard: Child,
    pub(crate) listener: UnixListener,
    pub(crate) log_lines_lost: Arc<AtomicU64>,
    pub(crate) lower: PathBuf,
    /// The container's ends of its output pipes.
    pub(crate) stdio: (OwnedFd, OwnedFd),
}

/// Carries out every step up to the start.
pub(crate) fn prepare(plan: &Plan) -> Result<Parts, Prepared> {
    umask(Mode::from_raw_mode(0o022));
    let config = &plan.config;
    let layout = Layout::new(config, &plan.id);
    let group = FenceGroup::new(&layout.cgroup).map_err(failed("fence"))?;
    group.create_frozen().map_err(failed("fence"))?;
    let guard = start_guard(plan, &group).map_err(failed("guard"))?;
    let asking = ask_for_address(plan).map_err(failed("address"))?;

    let foreign = bundle::lower(&plan.spec).map_err(failed("root"))?;
    mount(plan, &layout, &foreign)?;
    write_epoch(&layout, plan.epoch).map_err(failed("epoch file"))?;
    let bridge = config.bridge.as_ref().map(|bridge| bridge.name.as_str());
    let wire = Wire::create(&layout, &plan.id, bridge, plan.spec.address, plan.image.is_some())
        .map_err(failed("network"))?;
    bundle::write(&layout, &plan.spec, &foreign).map_err(failed("bundle"))?;

    let tools = Tools {
        shim: plan.shim_words(),
        runc: config.runc.clone(),
        criu: config.criu.clone(),
        procs: group.tools_procs(),
        id: plan.id.clone(),
    };
    tools.install_criu(&layout).map_err(failed("bundle"))?;
    fs::create_dir_all(&layout.runc_root).map_err(failed("bundle"))?;
    let log_lines_lost = Arc::new(AtomicU64::new(0));
    let stdio = start_log(plan, &layout, Arc::clone(&log_lines_lost)).map_err(failed("log"))?;
    if let Some(asking) = asking {
        match asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
            Ok(None) => {}
            Ok(Some(holder)) => return Err(Prepared::AddressTaken { holder }),
            Err(e) => return Err(failed("address")(e)),
        }
    }
    let listener = UnixListener::bind(layout.socket()).map_err(failed("socket"))?;
    Ok(Parts { layout, group, wire, tools, guard, listener, log_lines_lost, lower: foreign.rootfs, stdio })
}

fn failed<E: ToString>(step: &'static str) -> impl Fn(E) -> Prepared {
    move |error| Prepared::Failed { step: step.to_owned(), reason: error.to_string() }
}

/// Starts the process that kills what is behind the fence when this one ends.
pub(crate) fn start_guard(plan: &Plan, group: &FenceGroup) -> io::Result<Child> {
    let words = plan.shim_words();
    let mut words = words.iter();
    let program = words.next().ok_or(io::ErrorKind::NotFound)?;
    Command::new(program)
        .args(words)
        .arg("guard")
        .arg(group.path())
        .arg(std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

type Asking = thread::JoinHandle<io::Result<Option<String>>>;

/// Asks the neighbours for the address while the rest is set up.
fn ask_for_address(plan: &Plan) -> io::Result<Option<Asking>> {
    let (Some(address), Some(bridge)) = (plan.spec.address, plan.config.bridge.clone()) else {
        return Ok(None);
    };
    let hardware = hardware_address(&plan.id);
    let asking = thread::Builder::new()
        .name("address".into())
        .spawn(move || arp::holder(&bridge.name, address.ip, hardware))?;
    Ok(Some(asking))
}

fn mount(plan: &Plan, layout: &Layout, foreign: &Foreign) -> Result<(), Prepared> {
    if let Some(image) = &plan.image {
        root::unpack_upper(&image.join(root::UPPER_ARCHIVE), &layout.upper()).map_err(failed("root"))?;
    }
    let config = &plan.config;
    let mut hidden = BTreeSet::new();
    if foreign.rootfs == Path::new("/") {
        hidden.extend([&config.data_dir, &config.run_dir, &config.image_dir].map(PathBuf::clone));
        hidden.extend(config.hidden.iter().cloned());
        hidden.retain(|path| !SEPARATE.iter().any(|mount| path.starts_with(mount)));
    }
    root::mount_root(layout, &foreign.rootfs, &hidden).map_err(failed("root"))
}

/// What is mounted afresh in every container.
const SEPARATE: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];

/// Every mount point inside that is not of the root.
pub(crate) fn separate(plan: &Plan) -> Vec<PathBuf> {
    let volumes = plan.spec.volumes.iter().map(|volume| volume.target.clone());
    SEPARATE.iter().map(PathBuf::from).chain(volumes).collect()
}

/// What the program reads under /run/steadfast: the number changes whenever it may have lost time.
fn write_epoch(layout: &Layout, epoch: u64) -> io::Result<()> {
    let folder = layout.epoch_dir();
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("epoch"), format!("{epoch}\n"))
}

fn start_log(plan: &Plan, layout: &Layout, lost: Arc<AtomicU64>) -> io::Result<(OwnedFd, OwnedFd)> {
    let (stdout, stdout_inside) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, stderr_inside) = pipe_with(PipeFlags::CLOEXEC)?;
    let log = LogWriter::new(&layout.logs(), plan.config.log_bytes_max, plan.config.log_files_max, lost);
    thread::Builder::new().name("log".into()).spawn(move || log.run(stdout, stderr))?;
    Ok((stdout_inside, stderr_inside))
}

/// Creates or restores the container, and returns its first process once it may run. The fence holds every step up
/// until a lease is there.
pub(crate) fn start(
    plan: &Plan,
    layout: &Layout,
    tools: &Tools,
    wire: &Wire,
    lower: &Path,
    stdio: (OwnedFd, OwnedFd),
) -> Result<u32, String> {
    let stdio = (Stdio::from(stdio.0), Stdio::from(stdio.1));
    match &plan.image {
        Some(image) => {
            let subject = Subject { layout, tools, wire, lower, separate: &[] };
            Criu.restore(&subject, image, plan.mode, stdio)?;
        }
        None => {
            let mut create = tools.runc(layout);
            create
                .args(["create", "--bundle"])
                .arg(layout.bundle())
                .arg("--pid-file")
                .arg(layout.pid_file())
                .arg(&tools.id);
            run(create.stdout(stdio.0).stderr(stdio.1), layout)?;
            drop(create);
            run(tools.runc(layout).arg("start").arg(&tools.id), layout)?;
        }
    }
    let path = layout.pid_file();
    let text = fs::read_to_string(&path).map_err(|e| format!("runc left no {}: {e}", path.display()))?;
    text.trim().parse().map_err(|_| format!("runc wrote {text:?} into {}", path.display()))
}

fn run(command: &mut Command, layout: &Layout) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(reason::runc_error(&layout.runc_log())
            .unwrap_or_else(|| format!("runc ended with {status} and said nothing"))),
        Err(e) => Err(format!("runc could not be started: {e}")),
    }
}
