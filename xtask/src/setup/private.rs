//! Unpacks CRIU, with every library it needs, from a Debian suite into a folder of its own.
//!
//! An empty status file makes apt believe that nothing is installed, so that it resolves the whole closure, libc
//! included; the program is then started by the loader that came with it. Must never touch the system's packages, its
//! lists or its libraries: all of apt's folders are redirected into a working folder that is removed at the end.

use super::find;
use crate::run::Run;
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process,
};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The suites to try: this machine's own, then the newest, then the one that will be released next.
pub(super) fn suites() -> Result<Vec<String>> {
    let release = fs::read_to_string("/etc/os-release").context("could not read /etc/os-release")?;
    let own = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let own = own.map(|name| name.trim_matches('"').to_owned());
    let newest = ["sid", "testing"].map(str::to_owned);
    Ok(own.into_iter().chain(newest).collect())
}

/// Downloads and unpacks the suite's CRIU into `PREFIX/criu-VERSION`, and writes the program `criu` there.
pub(super) fn unpack(prefix: &Path, suite: &str) -> Result<PathBuf> {
    ensure!(
        Path::new(KEYRING).is_file(),
        "{KEYRING} is missing; run: apt-get install debian-archive-keyring"
    );
    let machine = architecture()?;
    let work = Work::create(prefix)?;
    let apt = Apt::prepare(&work, suite)?;
    apt.run("apt-get", "update").read()?;
    apt.offers_new_enough(suite)?;
    apt.run("apt-get", "install --yes --no-install-recommends --download-only criu").read()?;

    let packages = work.packages()?;
    let version = packages.iter().find_map(|package| upstream_version(package));
    let version = version.with_context(|| format!("apt downloaded no CRIU from {suite}"))?;
    let unpacked = work.folder.join("unpacked");
    for package in &packages {
        Run::new("dpkg").args(["-x", text(package)?, text(&unpacked)?]).read()?;
    }
    let folder = prefix.join(format!("criu-{version}"));
    write_program(&unpacked, &folder, &machine)?;
    if folder.exists() {
        fs::rename(&folder, work.folder.join("replaced")).context("could not move the old CRIU away")?;
    }
    fs::rename(&unpacked, &folder).with_context(|| format!("could not make {}", folder.display()))?;
    eprintln!("setup: unpacked CRIU {version} and its {} packages into {}", packages.len(), folder.display());
    Ok(folder)
}

/// Makes `PREFIX/criu` mean this folder, in one step, and returns the program's lasting path.
pub(super) fn choose(prefix: &Path, folder: &Path) -> Result<PathBuf> {
    let link = prefix.join("criu");
    let fresh = prefix.join(format!("criu.{}", process::id()));
    let name = folder.file_name().context("the folder of a CRIU has a name")?;
    symlink(name, &fresh).with_context(|| format!("could not make {}", fresh.display()))?;
    fs::rename(&fresh, &link).with_context(|| format!("could not make {}", link.display()))?;
    Ok(link.join("criu"))
}

/// Debian's name of the machine, its folder of libraries, and its loader.
struct Architecture {
    libraries: &'static str,
    loader: &'static str,
}

fn architecture() -> Result<Architecture> {
    match Run::new("dpkg").args(["--print-architecture"]).read()?.trim() {
        "amd64" => Ok(Architecture { libraries: "x86_64-linux-gnu", loader: "ld-linux-x86-64.so.2" }),
        "arm64" => Ok(Architecture { libraries: "aarch64-linux-gnu", loader: "ld-linux-aarch64.so.1" }),
        other => bail!("the set-up knows where the loader is on amd64 and arm64, not on {other}"),
    }
}

fn write_program(unpacked: &Path, folder: &Path, machine: &Architecture) -> Result<()> {
    let Architecture { libraries, loader } = machine;
    let loader_inside = PathBuf::from(format!("usr/lib/{libraries}/{loader}"));
    ensure!(unpacked.join(&loader_inside).exists(), "the packages brought no {}", loader_inside.display());
    ensure!(unpacked.join("usr/sbin/criu").exists(), "the packages brought no usr/sbin/criu");
    let base = text(folder)?;
    let program = format!(
        "#!/bin/sh\nexec {base}/usr/lib/{libraries}/{loader} --library-path {base}/usr/lib/{libraries} {base}/usr/sbin/criu \"$@\"\n"
    );
    let path = unpacked.join("criu");
    fs::write(&path, program).with_context(|| format!("could not write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("could not make criu executable")
}

/// `criu_4.2.1-1_amd64.deb` is 4.2.1.
fn upstream_version(package: &Path) -> Option<String> {
    let name = package.file_name()?.to_str()?.strip_prefix("criu_")?;
    let full = name.split('_').next()?;
    Some(full.split('-').next()?.to_owned())
}

/// A working folder under the prefix, so that the result can be renamed into place; gone when dropped.
pub(super) struct Work {
    pub(super) folder: PathBuf,
}

impl Work {
    pub(super) fn create(prefix: &Path) -> Result<Self> {
        let folder = prefix.join(format!("work.{}", process::id()));
        for inside in ["lists/partial", "archives/partial", "unpacked"] {
            let path = folder.join(inside);
            fs::create_dir_all(&path).with_context(|| format!("could not make {}", path.display()))?;
        }
        Ok(Self { folder })
    }

    pub(super) fn packages(&self) -> Result<Vec<PathBuf>> {
        let mut packages = Vec::new();
        for entry in
            fs::read_dir(self.folder.join("archives")).context("could not list what apt downloaded")?
        {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                packages.push(path);
            }
        }
        packages.sort();
        Ok(packages)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("setup: remove {} by hand: {error}", self.folder.display());
        }
    }
}

/// Apt with one source and folders of its own.
struct Apt {
    options: Vec<String>,
    source: String,
}

impl Apt {
    fn prepare(work: &Work, suite: &str) -> Result<Self> {
        let base = text(&work.folder)?;
        let mirror = mirror()?;
        let source = format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        fs::write(work.folder.join("sources"), source).context("could not write the source list")?;
        fs::write(work.folder.join("status"), "").context("could not write the empty status file")?;
        let options = [
            format!("-oDir::Etc::sourcelist={base}/sources"),
            "-oDir::Etc::sourceparts=/dev/null".to_owned(),
            format!("-oDir::State::Lists={base}/lists"),
            format!("-oDir::State::status={base}/status"),
            format!("-oDir::Cache::Archives={base}/archives"),
            format!("-oDir::Cache::pkgcache={base}/pkgcache"),
            format!("-oDir::Cache::srcpkgcache={base}/srcpkgcache"),
            "-oAPT::Sandbox::User=root".to_owned(),
            "-oAcquire::Languages=none".to_owned(),
            "-oAcquire::Retries=2".to_owned(),
            "-oAPT::Update::Error-Mode=any".to_owned(),
            "-oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ];
        Ok(Self { options: options.into(), source: format!("{suite} of {mirror}") })
    }

    fn run(&self, program: &str, words: &str) -> Run {
        let run = Run::new(program).args(&self.options).words(words);
        let run = run.known_as(format!("{program} {words}` from `{}", self.source));
        run.env_quietly("DEBIAN_FRONTEND", "noninteractive").env_quietly("LC_ALL", "C")
    }

    /// A suite whose CRIU is too old need not be downloaded to be refused.
    fn offers_new_enough(&self, suite: &str) -> Result<()> {
        let shown = self.run("apt-cache", "--no-all-versions show criu").read()?;
        let version = shown.lines().find_map(|line| line.strip_prefix("Version: "));
        let version = version.with_context(|| format!("the suite {suite} gives no version of criu"))?;
        let mut numbers =
            version.split(['.', '-', '+', '~']).map(|number| number.parse::<u32>().unwrap_or(0));
        let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        ensure!(found >= find::VERSION_MIN, "its CRIU is {version}, too old for this kernel");
        Ok(())
    }
}

/// The mirror that this machine's own apt uses for Debian itself.
fn mirror() -> Result<String> {
    let targets =
        Run::new("apt-get").args(["indextargets", "--format", "$(CREATED_BY) $(REPO_URI)"]).read()?;
    let mirrors = || targets.lines().filter_map(|line| line.strip_prefix("Packages ")).map(str::trim);
    let debian = mirrors().find(|mirror| mirror.trim_end_matches('/').ends_with("/debian"));
    let Some(mirror) = debian else {
        bail!(
            "apt knows no mirror of Debian (an address that ends with /debian); add one to /etc/apt/sources.list"
        );
    };
    Ok(mirror.to_owned())
}

pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} must be UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_name_of_the_package() {
        let version = |name: &str| upstream_version(Path::new(name));
        assert_eq!(version("/a/criu_4.2.1-1_amd64.deb").as_deref(), Some("4.2.1"));
        assert_eq!(version("/a/criu_4.3_arm64.deb").as_deref(), Some("4.3"));
        assert_eq!(version("/a/libcompel1_4.2.1-1_amd64.deb"), None);
    }
}
