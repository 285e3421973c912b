//! The links that make names usable: one symbolic link per name, in a folder of our own.
//!
//! Links follow the table and decide nothing. A link is made aside and renamed into place, so whoever opens it sees
//! the old device or the new one. Only symbolic links are ever replaced or removed: anything else in the folder was
//! put there by somebody, and is reported. After a crash, links that are wrong go before others are made.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::DevicesError;
use super::store::effect;

/// Links that are looked at; a folder that holds more is not ours alone.
const LINKS_MAX: usize = 64 << 10;
/// What a link's name begins with before it is in place; no name begins with a dot.
const ASIDE: &str = ".new-";

/// The folder of links.
#[derive(Debug)]
pub(super) struct Links {
    directory: PathBuf,
}

/// Something under a name that is no link of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{path} is in the way: it is no symbolic link, so it is left alone; remove it to have the name there"
)]
pub struct InTheWay {
    /// What is in the way.
    pub path: PathBuf,
}

impl Links {
    pub(super) fn open(directory: &Path) -> Result<Links, DevicesError> {
        std::fs::create_dir_all(directory).map_err(DevicesError::io("make", directory))?;
        Ok(Links { directory: directory.to_path_buf() })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the folder show these links and no others; gives what is in the way.
    pub(super) fn show(&self, wanted: &BTreeMap<String, PathBuf>) -> Result<Vec<InTheWay>, DevicesError> {
        let mut in_the_way = Vec::new();
        let mut there = BTreeMap::new();
        let error = || DevicesError::io("list", &self.directory);
        for entry in std::fs::read_dir(&self.directory).map_err(error())?.take(LINKS_MAX) {
            let entry = entry.map_err(error())?;
            let path = entry.path();
            let name = entry.file_name().into_string().ok();
            match (name, std::fs::read_link(&path)) {
                (Some(name), Ok(target)) => there.insert(name, target),
                (Some(name), Err(_)) if wanted.contains_key(&name) => {
                    in_the_way.push(InTheWay { path });
                    None
                }
                (Some(_) | None, _) => None,
            };
        }
        for (name, target) in &there {
            if wanted.get(name) != Some(target) {
                self.remove(name)?;
            }
        }
        for (name, target) in wanted {
            let path = self.directory.join(name);
            if there.get(name) != Some(target) && !in_the_way.iter().any(|one| one.path == path) {
                self.set(name, target)?;
            }
        }
        Ok(in_the_way)
    }

    /// Makes `name` lead to `target`. What is there must be a link or nothing.
    pub(super) fn set(&self, name: &str, target: &Path) -> Result<(), DevicesError> {
        let path = self.directory.join(name);
        let aside = self.directory.join(format!("{ASIDE}{name}"));
        let linked = || {
            effect()?;
            match std::fs::remove_file(&aside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            std::os::unix::fs::symlink(target, &aside)?;
            effect()?;
            std::fs::rename(&aside, &path)
        };
        linked().map_err(DevicesError::io("make the link", &path))
    }

    /// Removes the link `name`, if there is one.
    pub(super) fn remove(&self, name: &str) -> Result<(), DevicesError> {
        let path = self.directory.join(name);
        if std::fs::read_link(&path).is_err() {
            return Ok(());
        }
        let removed = effect().and_then(|()| std::fs::remove_file(&path));
        removed.map_err(DevicesError::io("remove the link", &path))
    }

    /// Whether something that is no link has this name.
    pub(super) fn in_the_way(&self, name: &str) -> Option<InTheWay> {
        let path = self.directory.join(name);
        let is_other =
            std::fs::symlink_metadata(&path).is_ok_and(|metadata| !metadata.file_type().is_symlink());
        is_other.then_some(InTheWay { path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_shows_what_is_wanted_and_leaves_what_is_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let links = Links::open(folder.path()).unwrap();
        let at = |name: &str| std::fs::read_link(folder.path().join(name)).ok();
        std::fs::write(folder.path().join("taken"), "somebody's").unwrap();
        std::os::unix::fs::symlink("/dev/null", folder.path().join(".new-a")).unwrap();
        let wanted: BTreeMap<String, PathBuf> = [("a", "/dev/x"), ("b", "/dev/y"), ("taken", "/dev/z")]
            .map(|(name, to)| (name.into(), to.into()))
            .into();
        let in_the_way = links.show(&wanted).unwrap();
        assert_eq!(in_the_way, [InTheWay { path: folder.path().join("taken") }]);
        assert_eq!((at("a"), at("b"), at(".new-a")), (Some("/dev/x".into()), Some("/dev/y".into()), None));
        let swapped = [("b".to_owned(), PathBuf::from("/dev/x"))].into();
        links.show(&swapped).unwrap();
        assert_eq!((at("a"), at("b")), (None, Some("/dev/x".into())));
        assert_eq!(std::fs::read(folder.path().join("taken")).unwrap(), b"somebody's");
    }
}
