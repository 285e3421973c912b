//! What this machine can do for containers, as far as other nodes must know it.
//!
//! A checkpoint is restored only where CRIU's version and the processor are the same; both are told to the catalog at
//! every start. A machine without root, runc or a usable CRIU is a node all the same, and runs no containers.

use std::path::PathBuf;

use steadfast_container::criu::{self, find};

use crate::config::{Config, Mode};

/// Why an observer runs no containers.
pub(crate) const OBSERVES: &str = "it only observes (mode = \"observe\" in its configuration)";
/// Why a witness runs no containers.
const WITNESSES: &str = "it is a witness, which only votes (mode = \"witness\" in its configuration)";

/// What was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    /// CRIU's version, `4.2.1`; empty where no containers can run.
    pub(crate) criu: String,
    /// The processor as one comparable word; empty where no containers can run.
    pub(crate) processor: String,
    /// The runc to use.
    pub(crate) runc: PathBuf,
    /// The CRIU to use.
    pub(crate) criu_program: PathBuf,
    /// Why no containers can run here.
    pub(crate) why_not: Option<String>,
}

/// Looks at this machine; an observer's or a witness's is of no concern.
pub(crate) fn look(config: &Config) -> Machine {
    let why_not = match config.mode {
        Mode::Agent => None,
        Mode::Observe => Some(OBSERVES.to_owned()),
        Mode::Witness => Some(WITNESSES.to_owned()),
    };
    if why_not.is_some() {
        return Machine { why_not, ..Machine::default() };
    }
    match usable(config) {
        Ok(machine) => machine,
        Err(why_not) => Machine { why_not: Some(why_not), ..Machine::default() },
    }
}

fn usable(config: &Config) -> Result<Machine, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("the agent does not run as root".to_owned());
    }
    let runc = match &config.container.runc {
        Some(path) if path.is_file() => path.clone(),
        Some(path) => return Err(format!("`[container] runc` names {}, which is not there", path.display())),
        None => on_path("runc").ok_or("runc is not installed: apt-get install runc")?,
    };
    let criu_program =
        find::find_criu(config.container.criu.as_deref()).map_err(|error| error.to_string())?;
    let (major, minor, patch) = find::version(&criu_program).map_err(|error| error.to_string())?;
    Ok(Machine {
        criu: format!("{major}.{minor}.{patch}"),
        processor: criu::cpu(),
        runc,
        criu_program,
        why_not: None,
    })
}

/// The first program of this name on PATH, or in the places where root's programs are.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join(program)).find(|path| path.is_file())
}
