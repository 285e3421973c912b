//! A disk in memory that fails on demand: it counts its calls, and at any of them loses its power, fails, or stalls.
//!
//! It is as unkind as a real one may be: what was not synced is lost, kept or torn by sectors; a name that was not synced
//! with its folder may be gone; after a failed sync the file reads well and the bytes will never be on the disk. It never
//! draws a number of its own: the same faults and seeds give the same disk.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::disk::Disk;

/// What the disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// What happens at one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power is lost in the middle of the call.
    Crash(Loss),
    /// The call fails, a write after its first half.
    Fail(io::ErrorKind),
    /// The call takes so long, which [`SimulatedDisk::stalled`] adds up.
    Stall(Duration),
}

/// What becomes of what was not synced when the power is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It is gone.
    Everything,
    /// It is there.
    Nothing,
    /// Each sector is as it was at some moment since the last sync, chosen by this seed.
    Torn(u64),
}

/// A handle on a simulated disk; all clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimulatedDisk {
    shared: Arc<Mutex<State>>,
    /// In which life this handle was made: it is of no use after the power was lost.
    life: u64,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, Contents>,
    /// The names as they are, as they are on the disk, and as they were after each change in between.
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    changes: Vec<BTreeMap<String, u64>>,
    next_file: u64,
    calls: u64,
    faults: BTreeMap<u64, Fault>,
    life: u64,
    stalled: Duration,
}

#[derive(Debug, Default)]
struct Contents {
    /// What a reader sees.
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// What was written since the last sync.
    writes: Vec<(usize, Vec<u8>)>,
}

impl SimulatedDisk {
    /// An empty disk.
    pub fn new() -> SimulatedDisk {
        SimulatedDisk { shared: Arc::default(), life: 0 }
    }

    /// Lets something happen at the call of this number; the first is 0.
    pub fn plan(&self, call: u64, fault: Fault) {
        self.state().faults.insert(call, fault);
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// How long calls stalled altogether.
    pub fn stalled(&self) -> Duration {
        self.state().stalled
    }

    /// Whether the power was lost since this handle was made.
    pub fn is_dead(&self) -> bool {
        self.state().life != self.life
    }

    /// Loses the power now.
    pub fn crash(&self, loss: Loss) {
        self.state().crash(loss);
    }

    /// A handle after the power came back, or for another process.
    #[must_use]
    pub fn restart(&self) -> SimulatedDisk {
        let life = self.state().life;
        SimulatedDisk { shared: Arc::clone(&self.shared), life }
    }

    /// A disk with the same contents as this one has, all durable, and no faults planned.
    #[must_use]
    pub fn fork(&self) -> SimulatedDisk {
        let copy = SimulatedDisk::new();
        for (name, bytes) in self.contents() {
            copy.put(&name, bytes);
        }
        copy
    }

    /// Every file with what it holds.
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let seen = |number| state.files.get(number).map(|file| file.seen.clone()).unwrap_or_default();
        state.names.iter().map(|(name, number)| (name.clone(), seen(number))).collect()
    }

    /// Puts a file there, durably.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.state();
        let number = state.next_file;
        state.next_file += 1;
        state.files.insert(number, Contents { seen: bytes.clone(), durable: bytes, writes: Vec::new() });
        state.names.insert(name.to_owned(), number);
        state.durable_names.insert(name.to_owned(), number);
    }

    /// Changes bits of one byte on the disk itself, where the file has it.
    pub fn flip(&self, name: &str, offset: usize, mask: u8) {
        let mut state = self.state();
        let Some(number) = state.names.get(name).copied() else { return };
        let Some(file) = state.files.get_mut(&number) else { return };
        for bytes in [&mut file.seen, &mut file.durable] {
            if let Some(byte) = bytes.get_mut(offset) {
                *byte ^= mask;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call and lets happen what was planned for it.
    fn call<T>(
        &self,
        act: impl FnOnce(&mut State) -> io::Result<T>,
        fail: impl FnOnce(&mut State),
    ) -> io::Result<T> {
        let mut state = self.state();
        if state.life != self.life {
            return Err(power_lost());
        }
        let call = state.calls;
        state.calls += 1;
        match state.faults.remove(&call) {
            None => act(&mut state),
            Some(Fault::Stall(time)) => {
                state.stalled += time;
                act(&mut state)
            }
            Some(Fault::Fail(kind)) => {
                fail(&mut state);
                Err(io::Error::new(kind, "the simulated disk refuses"))
            }
            Some(Fault::Crash(loss)) => {
                // What the call had begun to write is lost, kept or torn like the rest; an error of its own is nobody's.
                let _ = act(&mut state);
                state.crash(loss);
                Err(power_lost())
            }
        }
    }

    /// A sync that the power cuts off has done nothing yet, and after one that failed nothing is left to be synced.
    fn sync_call(
        &self,
        act: impl FnOnce(&mut State) -> io::Result<()>,
        fail: impl FnOnce(&mut State),
    ) -> io::Result<()> {
        let crash = {
            let state = self.state();
            matches!(state.faults.get(&state.calls), Some(Fault::Crash(_)))
        };
        self.call(|state| if crash { Ok(()) } else { act(state) }, fail)
    }
}

impl Default for SimulatedDisk {
    fn default() -> SimulatedDisk {
        SimulatedDisk::new()
    }
}

impl State {
    fn number(&self, name: &str) -> io::Result<u64> {
        let number = self.names.get(name).copied();
        number.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no file {name}")))
    }

    fn file(&mut self, name: &str) -> io::Result<&mut Contents> {
        let number = self.number(name)?;
        self.files.get_mut(&number).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn renamed(&mut self) {
        self.changes.push(self.names.clone());
    }

    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let file = self.file(name)?;
        put_at(&mut file.seen, offset, bytes);
        file.writes.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn crash(&mut self, loss: Loss) {
        self.life += 1;
        let mut random = Random(match loss {
            Loss::Torn(seed) => seed,
            Loss::Everything | Loss::Nothing => 0,
        });
        for file in self.files.values_mut() {
            file.crash(loss, &mut random);
        }
        let names = match loss {
            Loss::Everything => None,
            Loss::Nothing => self.changes.pop(),
            // Names change through a journal, which keeps their order.
            Loss::Torn(_) => {
                let kept = random.below(self.changes.len() + 1);
                kept.checked_sub(1).map(|last| self.changes.swap_remove(last))
            }
        };
        self.durable_names = names.unwrap_or_else(|| self.durable_names.clone());
        self.names = self.durable_names.clone();
        self.changes.clear();
    }
}

impl Contents {
    fn crash(&mut self, loss: Loss, random: &mut Random) {
        let writes = std::mem::take(&mut self.writes);
        match loss {
            Loss::Everything => {}
            Loss::Nothing => {
                writes.iter().for_each(|(offset, bytes)| put_at(&mut self.durable, *offset, bytes))
            }
            Loss::Torn(_) => self.tear(&writes, random),
        }
        self.seen = self.durable.clone();
    }

    fn tear(&mut self, writes: &[(usize, Vec<u8>)], random: &mut Random) {
        let length = writes.iter().map(|(offset, bytes)| offset + bytes.len()).max().unwrap_or(0);
        for sector in (0..length.div_ceil(SECTOR_BYTES)).map(|sector| sector * SECTOR_BYTES) {
            let touched = |(offset, bytes): &&(usize, Vec<u8>)| {
                *offset < sector + SECTOR_BYTES && offset + bytes.len() > sector
            };
            let touching: Vec<_> = writes.iter().filter(touched).collect();
            for (offset, bytes) in &touching[..random.below(touching.len() + 1)] {
                let from = sector.max(*offset);
                let to = (sector + SECTOR_BYTES).min(offset + bytes.len());
                put_at(&mut self.durable, from, &bytes[from - offset..to - offset]);
            }
        }
    }

    fn sync(&mut self) {
        for (offset, bytes) in std::mem::take(&mut self.writes) {
            put_at(&mut self.durable, offset, &bytes);
        }
    }
}

fn put_at(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(bytes);
}

fn power_lost() -> io::Error {
    io::Error::other("the simulated disk has lost its power")
}

/// Numbers that a seed decides (splitmix64).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let drawn = (mixed ^ (mixed >> 31)) % bound.max(1) as u64;
        usize::try_from(drawn).expect("it is below a number of this size")
    }
}

impl Disk for SimulatedDisk {
    fn list(&mut self) -> io::Result<Vec<String>> {
        self.call(|state| Ok(state.names.keys().cloned().collect()), |_| {})
    }

    fn create(&mut self, name: &str, bytes: u64) -> io::Result<()> {
        let make = |state: &mut State| {
            if state.names.contains_key(name) {
                return Err(io::Error::from(io::ErrorKind::AlreadyExists));
            }
            let number = state.next_file;
            state.next_file += 1;
            state.files.insert(number, Contents::default());
            state.names.insert(name.to_owned(), number);
            state.renamed();
            Ok(())
        };
        let zeros = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        self.call(make, |_| {})?;
        self.write_at(name, 0, &zeros)?;
        self.sync(name)?;
        self.sync_folder()
    }

    fn length(&mut self, name: &str) -> io::Result<u64> {
        self.call(|state| Ok(state.file(name)?.seen.len() as u64), |_| {})
    }

    fn read_at(&mut self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.call(
            |state| {
                let offset = usize::try_from(offset).map_err(io::Error::other)?;
                let seen = &state.file(name)?.seen;
                let bytes = seen.get(offset..).and_then(|rest| rest.get(..into.len()));
                into.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
                Ok(())
            },
            |_| {},
        )
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.call(
            |state| state.write(name, offset, bytes),
            |state| {
                // The file may not be there, and then nothing of it is written.
                let _ = state.write(name, offset, &bytes[..bytes.len() / 2]);
            },
        )
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.sync_call(
            |state| {
                state.file(name)?.sync();
                Ok(())
            },
            |state| {
                if let Ok(file) = state.file(name) {
                    file.writes.clear();
                }
            },
        )
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.call(
            |state| {
                let number = state.number(from)?;
                state.names.remove(from);
                state.names.insert(to.to_owned(), number);
                state.renamed();
                Ok(())
            },
            |_| {},
        )
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.call(
            |state| {
                state.number(name)?;
                state.names.remove(name);
                state.renamed();
                Ok(())
            },
            |_| {},
        )
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        self.sync_call(
            |state| {
                state.durable_names = state.names.clone();
                state.changes.clear();
                Ok(())
            },
            |_| {},
        )
    }

    fn twin(&self) -> Option<Box<dyn Disk>> {
        None
    }
}
