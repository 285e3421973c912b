//! Decides where everything of one container lies: its folders, sockets and cgroups. Pure names; nothing here touches
//! the world. Two hosts that share one kernel are kept apart by the scope in every name that the kernel sees.

use std::path::{Path, PathBuf};

use crate::config::HostConfig;

/// The places of one container on one host.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// Small state on the tmpfs.
    pub(crate) run: PathBuf,
    /// Upper layer and logs on the disk.
    pub(crate) data: PathBuf,
    /// Where runc keeps the state of this host's containers.
    pub(crate) runc_root: PathBuf,
    /// `steadfast/<scope>/<id>`, below the top of every cgroup tree.
    pub(crate) cgroup: PathBuf,
    /// The interface on the host's side.
    pub(crate) interface: String,
}

impl Layout {
    pub(crate) fn new(config: &HostConfig, id: &str) -> Self {
        Self {
            run: containers(config).join(id),
            data: config.data_dir.join("c").join(id),
            runc_root: config.run_dir.join("runc"),
            cgroup: Path::new("steadfast").join(&config.scope).join(id),
            interface: interface(&config.scope, id),
        }
    }

    pub(crate) fn plan(&self) -> PathBuf {
        self.run.join("plan.json")
    }
    pub(crate) fn socket(&self) -> PathBuf {
        self.run.join("shim.sock")
    }
    pub(crate) fn relay(&self) -> PathBuf {
        self.run.join("relay.sock")
    }
    pub(crate) fn bundle(&self) -> PathBuf {
        self.run.join("bundle")
    }
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }
    pub(crate) fn lower(&self) -> PathBuf {
        self.run.join("lower")
    }
    pub(crate) fn upper(&self) -> PathBuf {
        self.data.join("upper")
    }
    pub(crate) fn work(&self) -> PathBuf {
        self.data.join("work")
    }
    pub(crate) fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }
    pub(crate) fn epoch_dir(&self) -> PathBuf {
        self.run.join("epoch")
    }
    pub(crate) fn netns(&self) -> PathBuf {
        self.run.join("netns")
    }
    pub(crate) fn criu_dir(&self) -> PathBuf {
        self.run.join("criu")
    }
    pub(crate) fn criu_config(&self) -> PathBuf {
        self.run.join("criu.conf")
    }
    pub(crate) fn runc_log(&self) -> PathBuf {
        self.run.join("runc.log")
    }
    pub(crate) fn pid_file(&self) -> PathBuf {
        self.run.join("pid")
    }
    /// What runc is told as `cgroupsPath`: a child of the fence, in every tree.
    pub(crate) fn runc_cgroup(&self) -> PathBuf {
        Path::new("/").join(&self.cgroup).join("run")
    }
}

/// The folder that holds one folder per container.
pub(crate) fn containers(config: &HostConfig) -> PathBuf {
    config.run_dir.join("c")
}

/// A name of at most 15 bytes that no other host or container on this kernel uses.
fn interface(scope: &str, id: &str) -> String {
    let hash = blake3::hash(format!("{scope}/{id}").as_bytes()).to_hex();
    format!("sf{}", hash.get(..11).expect("a hash has 64 digits"))
}

/// The hardware address of a container: the same on every host, so that peers keep it when the container moves.
pub(crate) fn hardware_address(id: &str) -> [u8; 6] {
    let hash = blake3::hash(id.as_bytes());
    let [a, b, c, d, e, ..] = *hash.as_bytes();
    [0x02, a, b, c, d, e]
}
