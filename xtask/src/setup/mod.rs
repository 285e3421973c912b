//! Brings a fresh Debian machine to where the demo and the tests run, and does nothing where everything is there.
//!
//! Decides what is missing and says why it installs it. Must never leave a service running or enabled that the machine
//! did not have before, and never put a foreign library into the system: a private CRIU lives under one prefix. The
//! search for CRIU is in `criu`, the packages for a private one in `private`, programs to compare with in `apart`, what comes
//! from elsewhere than Debian in `schemathesis` and `restate`.

mod apart;
mod criu;
mod find_etcd;
mod find_restate;
mod find_schemathesis;
mod find_serf;
mod private;
mod restate;
mod schemathesis;

#[allow(unreachable_pub, reason = "public in steadfast-container, whose file this is")]
#[path = "../../../crates/steadfast-container/src/criu/find.rs"]
mod find;
#[allow(unreachable_pub, reason = "public in steadfast-container, whose file this is")]
#[path = "../../../crates/steadfast-container/src/criu/self_test.rs"]
mod self_test;
use crate::run::Run;
use anyhow::{Context, Result, bail};
use std::{
    env,
    fs::{self, File, OpenOptions},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Where everything of ours goes that is not a package.
const PREFIX: &str = "/opt/steadfast";

/// What programs that are run in the agent's sandbox are compiled for.
const WASM: &str = "wasm32-unknown-unknown";

/// A program, the package that brings it, and what for.
const PROGRAMS: [(&str, &str, &str); 9] = [
    ("runc", "runc", "starts and stops containers"),
    ("ip", "iproute2", "makes the test bed's networks"),
    ("nft", "nftables", "cuts networks and drops packets in the test bed"),
    ("redis-server", "redis-server", "is the program whose data must survive in the demo"),
    ("redis-cli", "redis-tools", "asks that program what it kept"),
    ("python3", "python3", "runs the second program of the tests"),
    ("perl", "perl-base", "runs the program of CRIU's self-test"),
    ("timeout", "coreutils", "bounds CRIU's self-test"),
    ("unshare", "util-linux", "gives CRIU's self-test name spaces of its own"),
];

/// What the tests and the benchmarks need beside that.
const MEASURING: [(&str, &str, &str); 3] = [
    ("nats-server", "nats-server", "is the message bus that events are handed on to, and compared with"),
    ("chromium", "chromium", "shows the page"),
    ("chromedriver", "chromium-driver", "drives that browser"),
];

/// What the tests need beside that.
const TESTING: [(&str, &str, &str); 2] = [
    ("faketime", "faketime", "gives an agent of the tests a wrong clock"),
    ("pg_createcluster", "postgresql", "is the database that effects of episodes are carried out on"),
];

/// What fuzzing needs beside the nightly compiler.
const FUZZING: [(&str, &str, &str); 1] = [("c++", "g++", "builds the fuzzing engine")];

/// How much of a machine a task needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// What the product and its demo need.
    Product,
    /// That, what the page is looked at with, and Serf, etcd, NATS and Restate to compare with.
    Benchmarks,
    /// That but Restate, and what else the tests need.
    Tests,
}

/// A machine on which everything needed was found.
#[derive(Debug)]
pub(crate) struct Machine {
    criu: PathBuf,
}

impl Machine {
    /// The command with the CRIU that passed the self-test in its environment; the configuration's default is the
    /// private one, so any other is given to the configuration too.
    pub(crate) fn offer_criu(&self, run: Run) -> Run {
        let run = run.env_quietly(find::CRIU_VARIABLE, &self.criu);
        if self.criu == Path::new(find::CRIU_PRIVATE) {
            return run;
        }
        run.env_quietly("STEADFAST_CONTAINER_CRIU", &self.criu)
    }
}

/// The task: `setup [--prefix DIRECTORY]`.
pub(crate) fn task(arguments: &[String]) -> Result<()> {
    let prefix = match arguments {
        [] => PathBuf::from(PREFIX),
        [flag, prefix] if flag == "--prefix" && Path::new(prefix).is_absolute() => PathBuf::from(prefix),
        _ => bail!("`setup` takes nothing, or `--prefix /DIRECTORY` to put a private CRIU elsewhere"),
    };
    let machine = prepare_in(Scope::Tests, &prefix)?;
    eprintln!("setup: everything is there; CRIU is {}", machine.criu.display());
    Ok(())
}

/// Installs what this scope needs and the machine lacks.
pub(crate) fn prepare(scope: Scope) -> Result<Machine> {
    prepare_in(scope, Path::new(PREFIX))
}

fn prepare_in(scope: Scope, prefix: &Path) -> Result<Machine> {
    let myself = fs::metadata("/proc/self").context("/proc is needed to see who runs this")?;
    if myself.uid() != 0 {
        bail!(
            "name spaces, runc and CRIU need root; repeat this as root, for example with `sudo -E env PATH=$PATH cargo xtask setup`"
        );
    }
    if let Some(machine) = ready(scope, prefix) {
        return Ok(machine);
    }
    fs::create_dir_all(prefix).with_context(|| format!("could not make {}", prefix.display()))?;
    let _alone = lock(prefix)?;
    install_programs(&missing(&programs(scope)))?;
    if scope == Scope::Tests && !has_nextest() {
        eprintln!("setup: building cargo-nextest, which runs the tests (some minutes, once)");
        Run::cargo("install --locked cargo-nextest").perform()?;
    }
    if scope == Scope::Tests && !has_wasm() {
        eprintln!("setup: installing Rust's library for WebAssembly, for which the tests compile an example");
        // Not all compilers come from rustup; without the library that one test says that it did not run.
        let _ = Run::new("rustup").words("target add").args([WASM]).succeeds();
    }
    if scope != Scope::Product {
        apart::find_or_unpack()?;
    }
    if scope == Scope::Tests {
        schemathesis::find_or_install()?;
    }
    if scope == Scope::Benchmarks {
        restate::find_or_install()?;
    }
    Ok(Machine { criu: criu::find_or_install(prefix)? })
}

/// The quick look: nothing is started but cargo, to ask for nextest.
fn ready(scope: Scope, prefix: &Path) -> Option<Machine> {
    let criu = criu::known_good(prefix)?;
    let complete = missing(&programs(scope)).is_empty()
        && (scope == Scope::Product || apart::are_found())
        && (scope != Scope::Benchmarks || restate::is_found())
        && (scope != Scope::Tests || (has_nextest() && has_wasm() && schemathesis::is_found()));
    complete.then_some(Machine { criu })
}

/// All that this scope needs as packages of the system.
fn programs(scope: Scope) -> Vec<(&'static str, &'static str, &'static str)> {
    let mut programs = PROGRAMS.to_vec();
    if scope != Scope::Product {
        programs.extend(MEASURING);
    }
    if scope == Scope::Tests {
        programs.extend(TESTING);
    }
    programs
}

/// One set-up at a time: two tasks that start together must not both install.
fn lock(prefix: &Path) -> Result<File> {
    let path = prefix.join("setup.lock");
    let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = open.with_context(|| format!("could not open {}", path.display()))?;
    file.lock().with_context(|| format!("could not lock {}", path.display()))?;
    Ok(file)
}

fn has_nextest() -> bool {
    has_program("cargo-nextest") || Run::cargo("nextest --version").succeeds()
}

fn has_wasm() -> bool {
    let folder = Run::new("rustc").words("--print target-libdir --target").args([WASM]).read();
    folder.is_ok_and(|folder| Path::new(folder.trim()).is_dir())
}

/// Installs what fuzzing needs: a C++ compiler, the nightly toolchain and cargo-fuzz.
pub(crate) fn provide_fuzzing() -> Result<()> {
    install_programs(&missing(&FUZZING))?;
    if !Run::cargo("+nightly --version").succeeds() {
        eprintln!("setup: installing the nightly toolchain, whose compiler can instrument the targets");
        Run::new("rustup").words("toolchain install nightly --profile minimal").perform()?;
    }
    if !Run::cargo("fuzz --version").succeeds() {
        eprintln!("setup: building cargo-fuzz, which drives the targets (a minute, once)");
        Run::cargo("install --locked cargo-fuzz").perform()?;
    }
    Ok(())
}

fn missing(programs: &[(&str, &'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let missing = programs.iter().filter(|(program, _, _)| !has_program(program));
    missing.map(|&(_, package, purpose)| (package, purpose)).collect()
}

/// The folders of system programs may be missing from the `PATH` that a plain user took along to root.
fn has_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).any(|folder| folder.join(name).is_file())
}

fn install_programs(missing: &[(&str, &str)]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    if !has_program("apt-get") {
        let packages: Vec<&str> = missing.iter().map(|&(package, _)| package).collect();
        bail!("this machine has no apt-get; install by hand what Debian calls {}", packages.join(", "));
    }
    for (package, purpose) in missing {
        eprintln!("setup: installing {package}, which {purpose}");
    }
    let _quiet = NoServices::declare()?;
    update();
    let packages = missing.iter().map(|&(package, _)| package);
    apt("install --yes --no-install-recommends").args(packages).read()?;
    if missing.iter().any(|&(package, _)| package == "redis-server") {
        // The package enables its service for the next boot; nobody asked for it. Without an init system there is
        // nothing to switch off, and that is no failure.
        Run::new("update-rc.d").words("redis-server disable").succeeds();
    }
    for brought in ["nats-server", "postgresql"] {
        if missing.iter().any(|&(package, _)| package == brought) {
            // The same, by the unit that this package brings instead of a script.
            Run::new("systemctl").words("disable").args([brought]).succeeds();
        }
    }
    Ok(())
}

/// Fills a folder anew, or leaves none: a half one would pass for a whole one if its program were there already.
fn whole_or_not(folder: &Path, fill: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("could not remove {}", folder.display()))?;
    }
    let filled = fill(folder.to_str().context("the folder's name is text")?);
    if filled.is_err() {
        // It may not have been made yet.
        let _ = fs::remove_dir_all(folder);
    }
    filled
}

/// One unreachable source among several must not stop what the others can give; the installation then says so.
fn update() {
    if let Err(error) = apt("update").read() {
        eprintln!("setup: going on with the package lists that are there, because {error:#}");
    }
}

fn apt(words: &str) -> Run {
    Run::new("apt-get")
        .words("-oDPkg::Lock::Timeout=300 -oAcquire::Retries=2 -oAPT::Update::Error-Mode=any")
        .words(words)
        .env_quietly("DEBIAN_FRONTEND", "noninteractive")
        .env_quietly("LC_ALL", "C")
}

/// While it exists, packages that are installed may not start their services.
struct NoServices {
    policy: Option<PathBuf>,
}

impl NoServices {
    /// A policy that the machine already has is left as it is: it is the owner's word.
    fn declare() -> Result<Self> {
        let policy = PathBuf::from("/usr/sbin/policy-rc.d");
        if policy.exists() {
            return Ok(Self { policy: None });
        }
        fs::write(
            &policy,
            "#!/bin/sh\n# Made by `cargo xtask setup` for the time of one installation.\nexit 101\n",
        )
        .and_then(|()| fs::set_permissions(&policy, std::os::unix::fs::PermissionsExt::from_mode(0o755)))
        .with_context(|| format!("could not write {}", policy.display()))?;
        Ok(Self { policy: Some(policy) })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = &self.policy
            && let Err(error) = fs::remove_file(policy)
        {
            eprintln!("setup: remove {} by hand, or no service can start: {error}", policy.display());
        }
    }
}
