//! One folder of one disk, as the log uses it.
//!
//! It decides nothing: each call is one thing that can fail, stall or be cut off by a loss of power, so that a simulated
//! disk can do each of those at each call. Nothing is durable before the sync that follows it: contents by
//! [`Disk::sync`], names by [`Disk::sync_folder`]. Read next: `simulated` for the disk that fails on demand.

use std::fmt::Debug;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of zeros that are written at once.
const ZEROS_BYTES: usize = 1 << 20;
/// Files that stay open: the one that is written, and the one before it.
const OPEN_FILES_MAX: usize = 2;

/// A folder of files, by their names.
pub trait Disk: Send + Debug {
    /// The names of the files in it, in any order.
    fn list(&mut self) -> io::Result<Vec<String>>;

    /// Makes a file of so many zeros, written and synced, with its name.
    fn create(&mut self, name: &str, bytes: u64) -> io::Result<()>;

    /// How long a file is, in bytes.
    fn length(&mut self, name: &str) -> io::Result<u64>;

    /// Fills a buffer with what a file holds from an offset on; a file that ends before is an error.
    fn read_at(&mut self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes all of these bytes into a file from an offset on.
    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes durable what was written into a file. After a failure nothing may be assumed of it: never try again.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// Gives a file another name.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Makes durable which names there are.
    fn sync_folder(&mut self) -> io::Result<()>;

    /// A second handle on the same folder for a thread beside this one, or none where everything happens in one order.
    fn twin(&self) -> Option<Box<dyn Disk>>;
}

/// A folder of the operating system, held by one process at a time.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// The folder itself: it carries the lock, and is what is synced for names.
    folder: File,
    /// The files used last, the latest at the end.
    open: Vec<(String, File)>,
}

impl Folder {
    /// Takes a folder for this process alone, and makes it if it is not there. One that another process holds is refused
    /// with [`io::ErrorKind::ResourceBusy`].
    pub fn open(path: &Path) -> io::Result<Folder> {
        if !path.is_dir() {
            fs::create_dir_all(path)?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
        }
        let folder = File::open(path)?;
        folder.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{} is in use by another process", path.display()),
            ),
            TryLockError::Error(error) => error,
        })?;
        Ok(Folder { path: path.to_owned(), folder, open: Vec::new() })
    }

    fn file(&mut self, name: &str) -> io::Result<&File> {
        match self.open.iter().position(|(known, _)| known == name) {
            Some(last) if last + 1 == self.open.len() => {}
            Some(place) => {
                let entry = self.open.remove(place);
                self.open.push(entry);
            }
            None => {
                let file = File::options().read(true).write(true).open(self.path.join(name))?;
                if self.open.len() == OPEN_FILES_MAX {
                    self.open.remove(0);
                }
                self.open.push((name.to_owned(), file));
            }
        }
        let (_, file) = self.open.last().expect("the file was put there just now");
        Ok(file)
    }

    fn forget(&mut self, name: &str) {
        self.open.retain(|(known, _)| known != name);
    }
}

impl Disk for Folder {
    fn list(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&mut self, name: &str, bytes: u64) -> io::Result<()> {
        self.forget(name);
        let file = File::options().write(true).create_new(true).open(self.path.join(name))?;
        // Reserving blocks without writing them would leave their conversion, and its journal, to the first commits.
        let zeros = vec![0; ZEROS_BYTES.min(usize::try_from(bytes).unwrap_or(ZEROS_BYTES))];
        let mut offset = 0;
        while offset < bytes {
            let rest = usize::try_from(bytes - offset).unwrap_or(ZEROS_BYTES);
            let piece = &zeros[..rest.min(zeros.len())];
            file.write_all_at(piece, offset)?;
            offset += piece.len() as u64;
        }
        file.sync_all()?;
        self.sync_folder()
    }

    fn length(&mut self, name: &str) -> io::Result<u64> {
        Ok(self.file(name)?.metadata()?.len())
    }

    fn read_at(&mut self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file(name)?.read_exact_at(into, offset)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all_at(bytes, offset)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.forget(from);
        self.forget(to);
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.forget(name);
        fs::remove_file(self.path.join(name))
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        self.folder.sync_all()
    }

    fn twin(&self) -> Option<Box<dyn Disk>> {
        // A duplicate shares the lock, which is held until the last of them is closed.
        let folder = self.folder.try_clone().ok()?;
        Some(Box::new(Folder { path: self.path.clone(), folder, open: Vec::new() }))
    }
}
