//! The copies of mirrored instances that a node holds, for itself and for another.
//!
//! A copy is all instances of one home as one [`Generation`] of its keeper has them. It is made in parts and counts when it is
//! whole; from then on it changes by commits, each of which is carried out for all homes that it names or for none, and is durable
//! before it is answered. Whoever takes homes over has their copies fenced first: after that no commit of the keeper before it is
//! taken. It decides nothing about who keeps what: that is [`super::keeping`]'s.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use steadfast_proto::exchange::{Blob, Name};
use steadfast_proto::flaw::{Flaw, is_planted};

use super::keeping::Table;
use crate::episodes::{Index, IndexError, Lsn};

/// How many bytes of instances one part of a copy that is made, or one page, has; one instance may have more.
pub(super) const PART_BYTES: usize = 2 << 20;

/// One keeping of one home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// One more than that of the keeping before it.
    pub number: u64,
    /// Tells it from other attempts with that number.
    pub nonce: u64,
}

/// An instance of a home as it is, or that it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The home's number.
    pub home: u32,
    /// What the instance is called.
    pub name: Name,
    /// What it is; nothing when it is no more.
    pub bytes: Option<Blob>,
}

/// What a node asks of another one's copies, or of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Adds instances to copies that are being made.
    Stage {
        /// Which copies, and the highest epoch that an instance of each ever had.
        homes: Vec<(u32, Generation, u64)>,
        /// Some of what is in them.
        instances: Vec<Change>,
        /// Whether they are whole with it.
        is_last: bool,
    },
    /// Changes copies; without any change it asks whether they may still be changed.
    Commit {
        /// All copies of one keeper.
        homes: Vec<(u32, Generation)>,
        /// Up to where epochs of instances have come.
        epochs: Vec<(u32, u64)>,
        /// What has changed.
        changes: Vec<Change>,
    },
    /// Nobody may change these copies any more.
    Fence {
        /// Which.
        homes: Vec<(u32, Generation)>,
    },
    /// Reads a copy, a page at a time.
    Read {
        /// Of which home.
        home: u32,
        /// Which copy.
        generation: Generation,
        /// Behind this name.
        after: Option<Name>,
    },
}

/// What comes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is done, and durable.
    Done,
    /// The asker was overtaken. Nothing was changed.
    Fenced,
    /// There is no such copy here that is whole.
    Absent,
    /// A page of a copy.
    Page {
        /// The highest epoch that an instance of it ever had.
        epoch: u64,
        /// In the order of their names.
        instances: Vec<(Name, Blob)>,
        /// Whether nothing follows.
        is_last: bool,
    },
}

/// Bytes that are no question, or no answer, about copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message about copies of instances can't be read")]
pub struct Unreadable;

impl Question {
    /// As it travels.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// What [`Question::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(bytes: &[u8]) -> Result<Question, Unreadable> {
        whole(bytes)
    }
}

impl Answer {
    /// As it travels.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// What [`Answer::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(bytes: &[u8]) -> Result<Answer, Unreadable> {
        whole(bytes)
    }
}

fn whole<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Unreadable> {
    match postcard::take_from_bytes(bytes) {
        Ok((read, [])) => Ok(read),
        Ok(_) | Err(_) => Err(Unreadable),
    }
}

/// The copies of one node; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Copies {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    homes: BTreeMap<u32, Home>,
    /// The folder where they outlast this process.
    folder: Option<PathBuf>,
    /// Nothing while they are kept nowhere, or after an error of the disk.
    index: Option<Index>,
}

#[derive(Debug, Default)]
struct Home {
    /// Copies with a lower number do not change any more.
    fence: u64,
    copies: BTreeMap<Generation, Copy>,
}

#[derive(Debug, Default)]
struct Copy {
    is_whole: bool,
    epoch: u64,
    instances: BTreeMap<Name, Blob>,
}

/// Keys of the index begin with what they are of.
const FENCE: u8 = b'f';
const COPY: u8 = b'c';
const INSTANCE: u8 = b'i';

type Writes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

impl Copies {
    /// Those in a folder, or none yet.
    ///
    /// # Errors
    /// What is in the folder can't be used, or is used by another program.
    pub fn open(folder: &Path) -> Result<Copies, IndexError> {
        Ok(Copies { inner: Arc::new(Mutex::new(Inner::open(folder)?)) })
    }

    /// Has the disk take something.
    ///
    /// # Errors
    /// As [`Copies::ask`].
    pub fn prove(&self) -> Result<(), IndexError> {
        self.with(|inner| {
            // A batch has a number at least.
            inner.save(Writes::new())?;
            inner.write(Writes::new(), true)
        })
    }

    /// Carries out what is asked.
    ///
    /// # Errors
    /// It can't be made durable; nothing that rests on the copies may be promised. They are read again before the next question.
    pub fn ask(&self, question: Question) -> Result<Answer, IndexError> {
        self.with(|inner| inner.ask(question))
    }

    /// Forgets copies that nobody can need any more by this table.
    ///
    /// # Errors
    /// As [`Copies::ask`].
    pub fn tidy(&self, table: &Table) -> Result<(), IndexError> {
        self.with(|inner| {
            let mut writes = Writes::new();
            for (number, home) in &mut inner.homes {
                let current = table.generation(*number);
                let is_old = |one: &Generation| {
                    one.number < current.number || (one.number == current.number && *one != current)
                };
                home.forget(*number, is_old, &mut writes);
            }
            inner.write(writes, false)
        })
    }

    /// Forgets copies that the table never named.
    pub(super) fn forget(&self, generations: &BTreeMap<u32, Generation>) -> Result<(), IndexError> {
        self.with(|inner| {
            let mut writes = Writes::new();
            for (number, generation) in generations {
                if let Some(home) = inner.homes.get_mut(number) {
                    home.forget(*number, |one| one == generation, &mut writes);
                }
            }
            inner.write(writes, false)
        })
    }

    /// After an error of the disk what is in memory may not be on it, and the index takes nothing more: all is read again.
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> Result<T, IndexError>) -> Result<T, IndexError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(folder), None) = (&inner.folder, &inner.index) {
            *inner = Inner::open(folder)?;
        }
        work(&mut inner).inspect_err(|_| inner.index = None)
    }
}

impl Home {
    fn forget(&mut self, number: u32, is_old: impl Fn(&Generation) -> bool, writes: &mut Writes) {
        let old: Vec<Generation> = self.copies.keys().copied().filter(is_old).collect();
        for generation in old {
            let Some(copy) = self.copies.remove(&generation) else { continue };
            writes.push((copy_key(COPY, number, generation), None));
            let gone = copy.instances.keys().map(|name| (instance_key(number, generation, name), None));
            writes.extend(gone);
        }
    }

    /// The copy of that generation, if its keeper may still change it.
    fn changeable(&self, generation: Generation) -> Option<&Copy> {
        self.copies.get(&generation).filter(|copy| copy.is_whole && generation.number >= self.fence)
    }
}

impl Inner {
    fn open(folder: &Path) -> Result<Inner, IndexError> {
        let index = Index::open(folder)?;
        let mut inner = Inner::default();
        for row in index.load() {
            let (key, value) = row?;
            inner.restore(&key, &value).ok_or_else(|| IndexError::Damaged {
                path: folder.to_owned(),
                what: "a row is none of a copy".to_owned(),
            })?;
        }
        (inner.folder, inner.index) = (Some(folder.to_owned()), Some(index));
        Ok(inner)
    }

    fn ask(&mut self, question: Question) -> Result<Answer, IndexError> {
        match question {
            Question::Stage { homes, instances, is_last } => self.stage(&homes, instances, is_last),
            Question::Commit { homes, epochs, changes } => self.commit(&homes, &epochs, changes),
            Question::Fence { homes } => self.fence(&homes),
            Question::Read { home, generation, after } => Ok(self.read(home, generation, after.as_ref())),
        }
    }

    fn changeable(&self, home: u32, generation: Generation) -> Option<&Copy> {
        self.homes.get(&home)?.changeable(generation)
    }

    fn copy(&mut self, home: u32, generation: Generation) -> Option<&mut Copy> {
        self.homes.get_mut(&home)?.copies.get_mut(&generation)
    }

    fn stage(
        &mut self,
        homes: &[(u32, Generation, u64)],
        instances: Vec<Change>,
        is_last: bool,
    ) -> Result<Answer, IndexError> {
        let mut writes = Writes::new();
        let mut generations = BTreeMap::new();
        for (number, generation, epoch) in homes {
            let home = self.homes.entry(*number).or_default();
            if generation.number < home.fence {
                return Ok(Answer::Fenced);
            }
            let copy = home.copies.entry(*generation).or_default();
            (copy.epoch, copy.is_whole) = (*epoch, is_last);
            writes.push((copy_key(COPY, *number, *generation), Some(copy_value(copy))));
            generations.insert(*number, *generation);
        }
        for Change { home, name, bytes } in instances {
            let (Some(generation), Some(bytes)) = (generations.get(&home), bytes) else { continue };
            writes.push((instance_key(home, *generation, &name), Some(bytes.to_vec())));
            if let Some(copy) = self.copy(home, *generation) {
                copy.instances.insert(name, bytes);
            }
        }
        self.write(writes, is_last)?;
        Ok(Answer::Done)
    }

    fn commit(
        &mut self,
        homes: &[(u32, Generation)],
        epochs: &[(u32, u64)],
        changes: Vec<Change>,
    ) -> Result<Answer, IndexError> {
        let generations: BTreeMap<u32, Generation> = homes.iter().copied().collect();
        let is_kept = |(home, generation): &(u32, Generation)| self.changeable(*home, *generation).is_some();
        if !homes.iter().all(is_kept) || !changes.iter().all(|change| generations.contains_key(&change.home))
        {
            return Ok(Answer::Fenced);
        }
        let (mut writes, has_changes) = (Writes::new(), !changes.is_empty());
        for (number, generation) in &generations {
            if let Some(home) = self.homes.get_mut(number) {
                // The table names this generation, or it would not commit.
                home.forget(*number, |one| one.number < generation.number, &mut writes);
            }
        }
        for (number, epoch) in epochs {
            let Some(generation) = generations.get(number) else { continue };
            if let Some(copy) = self.copy(*number, *generation) {
                copy.epoch = copy.epoch.max(*epoch);
                writes.push((copy_key(COPY, *number, *generation), Some(copy_value(copy))));
            }
        }
        for Change { home, name, bytes } in changes {
            let Some(generation) = generations.get(&home).copied() else { continue };
            let Some(copy) = self.copy(home, generation) else { continue };
            writes.push((instance_key(home, generation, &name), bytes.as_ref().map(|bytes| bytes.to_vec())));
            match bytes {
                Some(bytes) => copy.instances.insert(name, bytes),
                None => copy.instances.remove(&name),
            };
        }
        self.write(writes, has_changes)?;
        Ok(Answer::Done)
    }

    fn fence(&mut self, homes: &[(u32, Generation)]) -> Result<Answer, IndexError> {
        let is_whole = |(number, generation): &(u32, Generation)| {
            let copy = self.homes.get(number).and_then(|home| home.copies.get(generation));
            copy.is_some_and(|copy| copy.is_whole)
        };
        if !homes.iter().all(is_whole) {
            return Ok(Answer::Absent);
        }
        if is_planted(Flaw::MirrorNoFence) {
            return Ok(Answer::Done);
        }
        let mut writes = Writes::new();
        for (number, generation) in homes {
            let home = self.homes.entry(*number).or_default();
            home.fence = home.fence.max(generation.number.saturating_add(1));
            let key = [&[FENCE][..], &number.to_be_bytes()].concat();
            writes.push((key, Some(home.fence.to_be_bytes().to_vec())));
        }
        self.write(writes, true)?;
        Ok(Answer::Done)
    }

    fn read(&self, home: u32, generation: Generation, after: Option<&Name>) -> Answer {
        let copy = self.homes.get(&home).and_then(|home| home.copies.get(&generation));
        let Some(copy) = copy.filter(|copy| copy.is_whole) else { return Answer::Absent };
        let (mut instances, mut bytes) = (Vec::new(), 0);
        let mut rest = copy.instances.iter().filter(|(name, _)| after.is_none_or(|after| *name > after));
        for (name, blob) in rest.by_ref() {
            instances.push((name.clone(), blob.clone()));
            bytes += name.as_str().len() + blob.len();
            if bytes >= PART_BYTES {
                break;
            }
        }
        Answer::Page { epoch: copy.epoch, instances, is_last: rest.next().is_none() }
    }

    fn write(&mut self, writes: Writes, is_durable: bool) -> Result<(), IndexError> {
        if !writes.is_empty() {
            self.save(writes)?;
        }
        if is_durable && let Some(index) = &mut self.index {
            index.settle()?;
        }
        Ok(())
    }

    fn save(&mut self, writes: Writes) -> Result<(), IndexError> {
        let Some(index) = &mut self.index else { return Ok(()) };
        let next = Lsn(index.upto().0 + 1);
        index.save(writes, next)
    }

    /// Takes a row of the index, unless it is none.
    fn restore(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let (kind, key) = key.split_first()?;
        let (number, key) = key.split_first_chunk::<4>()?;
        let home = self.homes.entry(u32::from_be_bytes(*number)).or_default();
        if *kind == FENCE {
            home.fence = u64::from_be_bytes(value.try_into().ok()?);
            return Some(());
        }
        let (first, key) = key.split_first_chunk::<8>()?;
        let (second, name) = key.split_first_chunk::<8>()?;
        let generation =
            Generation { number: u64::from_be_bytes(*first), nonce: u64::from_be_bytes(*second) };
        let copy = home.copies.entry(generation).or_default();
        if *kind == COPY {
            (copy.is_whole, copy.epoch) = postcard::from_bytes(value).ok()?;
        } else {
            let name = Name::parse(std::str::from_utf8(name).ok()?).ok()?;
            copy.instances.insert(name, value.into());
        }
        Some(())
    }
}

fn copy_value(copy: &Copy) -> Vec<u8> {
    postcard::to_allocvec(&(copy.is_whole, copy.epoch)).unwrap_or_default()
}

fn copy_key(kind: u8, home: u32, generation: Generation) -> Vec<u8> {
    let Generation { number, nonce } = generation;
    [&[kind][..], &home.to_be_bytes(), &number.to_be_bytes(), &nonce.to_be_bytes()].concat()
}

fn instance_key(home: u32, generation: Generation, name: &Name) -> Vec<u8> {
    let mut key = copy_key(INSTANCE, home, generation);
    key.extend_from_slice(name.as_str().as_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_an_error_of_the_disk_all_is_read_again_by_whoever_asks() {
        let folder = tempfile::tempdir().expect("a folder");
        let copies = Copies::open(folder.path()).expect("a folder of its own");
        let generation = Generation { number: 1, nonce: 1 };
        let name = Name::parse("x/1").expect("a name");
        let change = |text: &str| Change { home: 5, name: name.clone(), bytes: Some(text.as_bytes().into()) };
        let stage = Question::Stage {
            homes: vec![(5, generation, 1)],
            instances: vec![change("one")],
            is_last: true,
        };
        assert_eq!(copies.ask(stage), Ok(Answer::Done));
        // The keeper's, which lives on meanwhile.
        let keepers = copies.clone();
        let failed = copies.with(|inner| {
            let copy = inner.copy(5, generation).expect("it is there");
            copy.instances.insert(name.clone(), b"never written".as_slice().into());
            Err::<(), _>(IndexError::InUse { path: folder.path().to_owned() })
        });
        assert!(failed.is_err());
        let read = Question::Read { home: 5, generation, after: None };
        let instances = vec![(name.clone(), b"one".as_slice().into())];
        assert_eq!(keepers.ask(read), Ok(Answer::Page { epoch: 1, instances, is_last: true }));
        assert_eq!(copies.prove(), Ok(()));
        let commit = Question::Commit {
            homes: vec![(5, generation)],
            epochs: Vec::new(),
            changes: vec![change("two")],
        };
        assert_eq!(copies.ask(commit), Ok(Answer::Done));
    }
}
