//! Histories of joins that race, crash and come from copied folders; after each step U1, U3 and U4 of PROTOCOLS 4.5 hold.
//!
//! Real folders on disk and a real catalog of one node; only the connection between joiner and inviter is left out. Each
//! planted flaw must break a rule in some history.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use steadfast::identity::Identity;
use steadfast::token::Token;
use steadfast_proto::catalog::NodeRow;
use steadfast_proto::flaw::{self, Flaw};
use steadfast_proto::ids::NodeId;

use super::tests::{Cluster, request, run};

const HISTORIES: u64 = 24;
const STEPS: usize = 14;
const NAMES: [&str; 3] = ["beta", "gamma", "delta"];

struct World<'a> {
    cluster: &'a Cluster,
    folder: &'a Path,
    dice: oorandom::Rand32,
    machines: Vec<PathBuf>,
    tokens: Vec<Token>,
    /// Which machine was told that it bears which name.
    told: BTreeMap<String, BTreeSet<usize>>,
    /// The id that each name belongs to.
    owners: BTreeMap<String, NodeId>,
}

impl World<'_> {
    fn below(&mut self, bound: usize) -> usize {
        self.dice.rand_range(0..u32::try_from(bound).unwrap()) as usize
    }

    fn new_machine(&mut self) -> PathBuf {
        let path = self.folder.join(format!("machine-{}", self.machines.len()));
        self.machines.push(path.clone());
        path
    }

    /// Machines ask with the same token at the same moment; whoever has crashed by the time of the answer asks again later.
    async fn join(&mut self, machines: &[usize], name: usize) -> Result<(), String> {
        let token = &self.tokens[name];
        let mut requests = Vec::new();
        for machine in machines {
            let identity = open(&self.machines[*machine])?;
            let host = u8::try_from(20 + machine).unwrap();
            requests.push(request(token, identity.node(), &identity.fingerprint().short(), host));
        }
        let answers = requests.into_iter().map(|request| self.cluster.inviter.answer(request));
        for (machine, answer) in machines.iter().zip(futures_util::future::join_all(answers).await) {
            if answer.is_ok() {
                self.told.entry(token.name.clone()).or_default().insert(*machine);
            }
        }
        self.check().await
    }

    async fn check(&mut self) -> Result<(), String> {
        let rows: Vec<(NodeRow, u64)> = self.cluster.inviter.rows.all("node/").await.unwrap();
        let joined: Vec<&NodeRow> =
            rows.iter().map(|(row, _)| row).filter(|row| row.name != "alpha").collect();
        let mut durable = BTreeSet::new();
        for machine in self.machines.iter().filter(|machine| machine.exists()) {
            durable.insert(open(machine)?.node());
        }
        for row in joined {
            let owner = *self.owners.entry(row.name.clone()).or_insert(row.id);
            if owner != row.id {
                return Err(format!("U1: {} was {owner} and is {}", row.name, row.id));
            }
            if !durable.contains(&row.id) {
                return Err(format!("U3: {} is in the catalog and on no disk", row.id));
            }
            if !NAMES.contains(&row.name.as_str()) {
                return Err(format!("U4: nobody invited {}", row.name));
            }
        }
        match self.told.iter().find(|(_, machines)| machines.len() > 1) {
            Some((name, machines)) => Err(format!("U1: machines {machines:?} are all {name}")),
            None => Ok(()),
        }
    }

    async fn step(&mut self) -> Result<(), String> {
        let machine = self.below(self.machines.len());
        let name = self.below(NAMES.len());
        match self.below(4) {
            // A disk is copied to another machine.
            0 if self.machines[machine].exists() && self.machines.len() < 8 => {
                let (from, to) = (self.machines[machine].clone(), self.new_machine());
                copy(&from, &to);
                Ok(())
            }
            1 => {
                let other = (machine + 1) % self.machines.len();
                self.join(&[machine, other], name).await
            }
            _ => self.join(&[machine], name).await,
        }
    }
}

/// The identity of a machine whose process has just been started.
fn open(folder: &Path) -> Result<Identity, String> {
    Identity::open_for_start(folder).map_err(|error| format!("U3: {error}"))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn history(seed: u64) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    run(async |cluster| {
        let mut tokens = Vec::new();
        for name in NAMES {
            tokens.push(cluster.token(name).await);
        }
        let dice = oorandom::Rand32::new(seed);
        let (told, owners) = (BTreeMap::new(), BTreeMap::new());
        let mut world =
            World { cluster, folder: folder.path(), dice, machines: Vec::new(), tokens, told, owners };
        for _ in 0..3 {
            world.new_machine();
        }
        for _ in 0..STEPS {
            world.step().await?;
        }
        Ok(())
    })
}

#[test]
fn every_history_of_joins_keeps_the_rules_of_identity() {
    for seed in 0..HISTORIES {
        history(seed).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
    }
}

#[test]
fn planted_flaws_of_identity_are_caught() {
    for (flaw, rule) in
        [(Flaw::IdentityLate, "U3"), (Flaw::InviteNotCompared, "U1"), (Flaw::CloneAdmitted, "U1")]
    {
        flaw::plant(Some(flaw));
        let broken = (0..HISTORIES).find_map(|seed| history(seed).err());
        flaw::plant(None);
        assert!(broken.as_ref().is_some_and(|broken| broken.starts_with(rule)), "{flaw:?}: {broken:?}");
    }
}
