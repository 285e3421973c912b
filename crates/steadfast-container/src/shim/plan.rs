//! What a shim is told: one file that the host writes before it starts the shim.
//!
//! Decides nothing. The file stays, so that a restarted agent can read what a container is.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    config::{HostConfig, Spec},
    criu::RestoreMode,
};

/// Everything a shim needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) config: HostConfig,
    pub(crate) id: String,
    pub(crate) epoch: u64,
    pub(crate) spec: Spec,
    /// The image to restore, if it is not a fresh start.
    pub(crate) image: Option<PathBuf>,
    pub(crate) mode: RestoreMode,
}

impl Plan {
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        serde_json::from_slice(&fs::read(path)?).map_err(io::Error::from)
    }

    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, serde_json::to_vec(self)?)
    }

    /// How a child of this shim starts the shim's own program again: through the running process, so that it is the same
    /// program also after an upgrade replaced the file.
    pub(crate) fn shim_words(&self) -> Vec<OsString> {
        let mut words = self.config.shim.clone();
        if let Some(first) = words.first_mut().filter(|first| *first == "/proc/self/exe") {
            *first = format!("/proc/{}/exe", std::process::id()).into();
        }
        words
    }
}
