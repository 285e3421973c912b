//! Random programs, and what they must come to.
//!
//! [`Script::random`] writes a program of up to twenty commands over three layers of keyed instances; [`Script::count`] says what
//! it adds to which counter, by reading it. Must never run anything: what is expected comes from here alone.

use std::collections::BTreeMap;

use crate::random::Random;

/// How many commands one program has at most, those of its parts included.
pub(super) const COMMANDS_MAX: u64 = 20;
/// How many layers there are; an instance speaks only to those of the next one, so nobody waits in a circle.
pub(super) const LAYERS: usize = 3;
/// What the foreign system answers to a payment, and what that adds.
pub(super) const RECEIPT: u64 = 5;
/// The longest time that a command waits for by itself.
const PAUSE_MS_MAX: u64 = 20;
/// How deep children are begun within children.
const FAMILY_MAX: usize = 2;

/// A counter: a layer, and a key in it.
pub(super) type Counter = (usize, u64);

/// One thing that an instance does. A part of the program is named by its index in [`Script::parts`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Command {
    /// Adds this to the counter of the instance.
    Increment(u64),
    /// Waits for so many milliseconds.
    Sleep(u64),
    /// Lets an instance of the next layer run a part, and goes on.
    Tell(usize),
    /// The same, and adds what is answered: how many commands the part has.
    Call(usize),
    /// Lets an instance of the next layer run a part after so many milliseconds, and goes on.
    Later(usize, u64),
    /// Begins an instance that runs a part, and goes on; what it counted is added when it ends.
    Begin(usize),
    /// The same, and waits for that.
    BeginAndWait(usize),
    /// Pays at the foreign system, and adds what is on the receipt.
    Pay,
}

/// Who runs a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The instance of the layer with that key.
    Layer(u64),
    /// An instance of its own.
    Child,
}

/// What one instance runs in one go.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) commands: Vec<Command>,
    pub(super) place: Place,
    pub(super) layer: usize,
    /// The part that waits for the answer.
    pub(super) asker: Option<usize>,
}

/// A program; it begins with its first part, of which there is always one.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) parts: Vec<Part>,
}

impl Script {
    /// One that follows from what `random` gives, with so many keys in each layer.
    pub(super) fn random(random: &mut Random, keys: u64) -> Script {
        let mut writer = Writer { parts: Vec::new(), left: random.between(1, COMMANDS_MAX), random, keys };
        let place = writer.layer();
        let most = writer.left;
        writer.part(Part { commands: Vec::new(), place, layer: 0, asker: None }, most, 0);
        Script { parts: writer.parts }
    }

    /// How many commands it has.
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(|part| part.commands.len()).sum()
    }

    /// How often it pays.
    pub(super) fn payments(&self) -> usize {
        let commands = self.parts.iter().flat_map(|part| &part.commands);
        commands.filter(|command| matches!(command, Command::Pay)).count()
    }

    /// Adds what it must come to.
    pub(super) fn count(&self, totals: &mut BTreeMap<Counter, u64>) {
        let Some(Part { place: Place::Layer(key), .. }) = self.parts.first() else { return };
        self.count_part(0, (0, *key), totals);
    }

    /// What part `index` adds, when `counter` is that of the instance that runs it, or of whoever hears of its end.
    fn count_part(&self, index: usize, counter: Counter, totals: &mut BTreeMap<Counter, u64>) {
        for command in &self.parts[index].commands {
            let own = match command {
                Command::Increment(amount) => *amount,
                Command::Pay => RECEIPT,
                Command::Call(part) => self.parts[*part].commands.len() as u64,
                Command::Sleep(_)
                | Command::Tell(_)
                | Command::Later(..)
                | Command::Begin(_)
                | Command::BeginAndWait(_) => 0,
            };
            *totals.entry(counter).or_default() += own;
            if let Some(part) = command.part() {
                let next = match self.parts[part].place {
                    Place::Layer(key) => (self.parts[part].layer, key),
                    Place::Child => counter,
                };
                self.count_part(part, next, totals);
            }
        }
    }
}

impl Command {
    /// The part that it lets run.
    fn part(self) -> Option<usize> {
        match self {
            Command::Increment(_) | Command::Sleep(_) | Command::Pay => None,
            Command::Tell(part)
            | Command::Call(part)
            | Command::Later(part, _)
            | Command::Begin(part)
            | Command::BeginAndWait(part) => Some(part),
        }
    }
}

struct Writer<'a> {
    parts: Vec<Part>,
    left: u64,
    random: &'a mut Random,
    keys: u64,
}

impl Writer<'_> {
    fn layer(&mut self) -> Place {
        Place::Layer(self.random.below(self.keys))
    }

    /// Writes a part of up to `most` commands, so far as the program may still grow.
    fn part(&mut self, part: Part, most: u64, family: usize) -> usize {
        let (index, layer) = (self.parts.len(), part.layer);
        self.parts.push(part);
        for _ in 0..most {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            let command = self.command(index, layer, family);
            self.parts[index].commands.push(command);
        }
        index
    }

    fn command(&mut self, index: usize, layer: usize, family: usize) -> Command {
        let can_nest = self.left > 0;
        let (is_last, is_old) = (layer + 1 == LAYERS, family == FAMILY_MAX);
        match self.random.below(12) {
            0 | 1 if can_nest && !is_last => Command::Tell(self.below(layer, None, family)),
            2 | 3 if can_nest && !is_last => Command::Call(self.below(layer, Some(index), family)),
            4 if can_nest && !is_last => {
                let part = self.below(layer, None, family);
                Command::Later(part, self.random.between(1, PAUSE_MS_MAX))
            }
            5 if can_nest && !is_old => Command::Begin(self.child(layer, family)),
            6 if can_nest && !is_old => Command::BeginAndWait(self.child(layer, family)),
            7 => Command::Sleep(self.random.between(1, PAUSE_MS_MAX)),
            8 => Command::Pay,
            _ => Command::Increment(self.random.between(1, 9)),
        }
    }

    fn below(&mut self, layer: usize, asker: Option<usize>, family: usize) -> usize {
        let place = self.layer();
        let most = self.random.between(1, 6);
        self.part(Part { commands: Vec::new(), place, layer: layer + 1, asker }, most, family)
    }

    fn child(&mut self, layer: usize, family: usize) -> usize {
        let most = self.random.between(1, 6);
        self.part(Part { commands: Vec::new(), place: Place::Child, layer, asker: None }, most, family + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_stays_within_its_bounds_and_uses_everything() {
        let mut random = Random::new(1);
        let mut seen = [0u32; 8];
        for _ in 0..1_000 {
            let script = Script::random(&mut random, 4);
            assert!((1..=20).contains(&script.len()), "{script:?}");
            for command in script.parts.iter().flat_map(|part| &part.commands) {
                let place = match command {
                    Command::Increment(_) => 0,
                    Command::Sleep(_) => 1,
                    Command::Tell(_) => 2,
                    Command::Call(_) => 3,
                    Command::Later(..) => 4,
                    Command::Begin(_) => 5,
                    Command::BeginAndWait(_) => 6,
                    Command::Pay => 7,
                };
                seen[place] += 1;
            }
            assert!(script.parts.iter().all(|part| part.layer < LAYERS && !part.commands.is_empty()));
        }
        assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
    }

    #[test]
    fn what_a_program_comes_to_is_read_off_it() {
        let part = |commands: &[Command], place, layer, asker| Part {
            commands: commands.to_vec(),
            place,
            layer,
            asker,
        };
        let first = [Command::Increment(2), Command::Call(1), Command::Begin(2), Command::Later(4, 3)];
        let script = Script {
            parts: vec![
                part(&first, Place::Layer(7), 0, None),
                part(&[Command::Increment(4), Command::Sleep(1)], Place::Layer(8), 1, Some(0)),
                part(&[Command::Increment(3), Command::Tell(3)], Place::Child, 0, None),
                part(&[Command::Pay], Place::Layer(8), 1, None),
                part(&[Command::Increment(9)], Place::Layer(9), 1, None),
            ],
        };
        let mut totals = BTreeMap::new();
        script.count(&mut totals);
        assert_eq!(totals, BTreeMap::from([((0, 7), 2 + 2 + 3), ((1, 8), 4 + RECEIPT), ((1, 9), 9)]));
        assert_eq!((script.len(), script.payments()), (10, 1));
    }
}
