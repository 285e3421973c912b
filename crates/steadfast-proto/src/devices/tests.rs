//! N1 to N5 of PROTOCOLS 4.2 against independent checkers, and the two known ways to get names wrong, each caught.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::plan::{DeferredReason, Plan, Use, reconcile};
use super::registry::{Claim, Decision, DeviceRows, NamingError, Sharing, assign, name, rename, unname};
use super::table::{LocalName, LocalNameError, Step, StepError, Table};
use super::*;
use crate::catalog::{decode_row, encode_row};
use crate::flaw::{Flaw, plant};

fn id(number: usize) -> DeviceId {
    format!("naa:5000c500{number:08x}").parse().unwrap()
}

fn named(text: &str) -> DeviceName {
    text.parse().unwrap()
}

/// The catalog: rows with versions, and transactions that compare them.
#[derive(Clone, Debug, Default)]
struct Catalog {
    revision: u64,
    rows: BTreeMap<String, (u64, Vec<u8>)>,
}

impl Catalog {
    fn commit(&mut self, claim: &Claim) -> bool {
        let version = |key: &String| self.rows.get(key).map_or(0, |(version, _)| *version);
        if claim.compare.iter().any(|(key, expected)| version(key) != *expected) {
            return false;
        }
        self.revision += 1;
        for (key, bytes) in &claim.puts {
            self.rows.insert(key.clone(), (self.revision, bytes.clone()));
        }
        true
    }

    fn put<T: Serialize>(&mut self, key: DeviceKey, row: &T) {
        self.revision += 1;
        self.rows.insert(key.encode(), (self.revision, encode_row(row).unwrap()));
    }

    fn read(&self) -> DeviceRows {
        let mut rows = DeviceRows::default();
        for (key, (version, bytes)) in &self.rows {
            assert!(rows.learn(key, Some((*version, bytes))).unwrap());
        }
        rows
    }

    /// Lets a node see devices.
    fn show(&mut self, node: u128, devices: impl IntoIterator<Item = usize>) {
        let sighting =
            |bytes| Sighting { kernel_name: "sda".to_owned(), bytes, paths: 1, in_use: false, answer: None };
        let devices = devices.into_iter().map(|number| (id(number), sighting(1 << 20))).collect();
        self.put(DeviceKey::Seen(NodeId(node)), &SeenRow { devices, duplicates: BTreeSet::new() });
    }

    fn carry_out(&mut self, decision: Result<Decision, NamingError>) -> DeviceRow {
        match decision.unwrap() {
            Decision::Already(row) => row,
            Decision::Commit { claim, row } => {
                assert!(self.commit(&claim));
                row
            }
        }
    }

    fn give(&mut self, number: usize, text: &str) {
        let decision = name(&self.read(), &id(number), &named(text), 0);
        self.carry_out(decision);
    }
}

/// N1 and N4, told only what the catalog holds after each transaction.
#[derive(Default)]
struct NamesChecker {
    bearers: BTreeMap<DeviceName, DeviceId>,
    counter: u64,
}

impl NamesChecker {
    fn observe(&mut self, catalog: &Catalog) -> Result<(), String> {
        for (key, (_, bytes)) in &catalog.rows {
            match DeviceKey::decode(key) {
                Some(DeviceKey::Device(_)) => {
                    let row: DeviceRow = decode_row(bytes).unwrap();
                    let bearer = self.bearers.entry(row.name.clone()).or_insert_with(|| row.id.clone());
                    if *bearer != row.id {
                        return Err(format!("N1: {} was {bearer}'s and is {}'s", row.name, row.id));
                    }
                }
                Some(DeviceKey::Naming) => {
                    let row: NamingRow = decode_row(bytes).unwrap();
                    if row.counter < self.counter {
                        return Err(format!("N4: the counter fell from {} to {}", self.counter, row.counter));
                    }
                    self.counter = row.counter;
                }
                Some(DeviceKey::Name(_) | DeviceKey::Seen(_) | DeviceKey::Proof(_)) | None => {}
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Request {
    Assign(usize),
    Name(usize, usize),
    Rename(usize, usize),
    Unname(usize),
}

const POOL: [&str; 8] = ["data1", "data2", "logs", "disk-1", "disk-2", "disk-3", "swap", "disk-4"];

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (0..6usize).prop_map(Request::Assign),
        (0..6usize, 0..POOL.len()).prop_map(|(device, name)| Request::Name(device, name)),
        (0..POOL.len(), 0..POOL.len()).prop_map(|(old, new)| Request::Rename(old, new)),
        (0..POOL.len()).prop_map(Request::Unname),
    ]
}

fn decide(rows: &DeviceRows, request: &Request) -> Result<Decision, NamingError> {
    match request {
        Request::Assign(device) => assign(rows, &id(*device), 0),
        Request::Name(device, new) => name(rows, &id(*device), &named(POOL[*new]), 0),
        Request::Rename(old, new) => rename(rows, &named(POOL[*old]), &named(POOL[*new])),
        Request::Unname(old) => unname(rows, &named(POOL[*old])),
    }
}

/// Three clients that decide on what they last read and commit later, or crash in between.
fn run_clients(events: &[(usize, Option<Request>)]) -> Result<(), String> {
    let mut catalog = Catalog::default();
    catalog.show(1, 0..6);
    let mut checker = NamesChecker::default();
    let mut views: [DeviceRows; 3] = std::array::from_fn(|_| catalog.read());
    let mut waiting: [Option<Claim>; 3] = Default::default();
    for (client, event) in events {
        match event {
            Some(request) => {
                waiting[*client] = match decide(&views[*client], request) {
                    Ok(Decision::Commit { claim, .. }) => Some(claim),
                    Ok(Decision::Already(_)) | Err(_) => None,
                };
            }
            None => {
                if let Some(claim) = waiting[*client].take() {
                    catalog.commit(&claim);
                }
                views[*client] = catalog.read();
            }
        }
        checker.observe(&catalog)?;
    }
    Ok(())
}

fn events() -> impl Strategy<Value = Vec<(usize, Option<Request>)>> {
    proptest::collection::vec((0..3usize, proptest::option::of(request())), 0..60)
}

proptest! {
    #[test]
    fn no_name_ever_goes_to_a_second_device_and_the_counter_only_grows(events in events()) {
        run_clients(&events).map_err(TestCaseError::fail)?;
    }
}

#[test]
fn a_counter_that_is_used_twice_is_caught() {
    let ask = |client, request| (client, Some(request));
    // The name `disk-1` is taken away before the second device comes.
    let events = [
        ask(0, Request::Assign(0)),
        (0, None),
        ask(0, Request::Unname(3)),
        (0, None),
        ask(0, Request::Assign(1)),
        (0, None),
    ];
    run_clients(&events).unwrap();
    let error = flawed(Flaw::CounterReused, || run_clients(&events)).unwrap_err();
    assert!(error.starts_with("N1"), "{error}");
}

/// What comes of `work` with a planted flaw.
fn flawed<T>(flaw: Flaw, work: impl FnOnce() -> T) -> T {
    plant(Some(flaw));
    let outcome = work();
    plant(None);
    outcome
}

#[test]
fn automatic_names_count_up_and_a_retired_device_keeps_its_row() {
    let mut catalog = Catalog::default();
    catalog.show(1, 0..4);
    let assigned = |catalog: &mut Catalog, number| {
        let decision = assign(&catalog.read(), &id(number), 5);
        catalog.carry_out(decision)
    };
    assert_eq!(assigned(&mut catalog, 0).name, named("disk-1"));
    assert_eq!(assigned(&mut catalog, 1).name, named("disk-2"));
    let decision = unname(&catalog.read(), &named("disk-1"));
    assert!(catalog.carry_out(decision).is_retired);
    let again = assigned(&mut catalog, 0);
    assert!(again.is_retired && again.name == named("disk-1"), "its row is given as it is");
    assert_eq!(assigned(&mut catalog, 2).name, named("disk-3"));
    catalog.give(0, "archive");
    assert_eq!(catalog.read().named(&named("archive")).unwrap().added_unix_ms, 5);
    let decision = rename(&catalog.read(), &named("archive"), &named("disk-1"));
    assert_eq!(catalog.carry_out(decision).id, id(0), "its own former name, although an automatic one");
}

#[test]
fn every_wrong_name_is_refused_with_its_reason() {
    let mut catalog = Catalog::default();
    catalog.show(1, 0..3);
    catalog.give(0, "data1");
    catalog.give(1, "data2");
    let decision = unname(&catalog.read(), &named("data2"));
    catalog.carry_out(decision);
    let rows = catalog.read();
    let told = |result: Result<Decision, NamingError>| result.unwrap_err().to_string();
    assert!(told(name(&rows, &id(2), &named("data1"), 0)).contains("is taken by naa:5000c50000000000"));
    assert!(told(name(&rows, &id(2), &named("data2"), 0)).contains("is retired"));
    assert!(told(name(&rows, &id(2), &named("disk-9"), 0)).contains("reserved"));
    assert!(told(name(&rows, &id(7), &named("data7"), 0)).contains("no node sees"));
    assert!(told(assign(&rows, &id(7), 0)).contains("no node sees"));
    assert!(told(name(&rows, &id(0), &named("other"), 0)).contains("is named data1 already"));
    assert!(told(rename(&rows, &named("data2"), &named("data3"))).contains("no device is named data2"));
    assert!(told(rename(&rows, &named("data1"), &named("data2"))).contains("is retired"));
    assert!(told(unname(&rows, &named("nothing"))).contains("no device is named nothing"));
    for (text, is_name) in
        [("a", true), ("", false), (".x", false), ("a/b", false), ("a!b", false), ("ä", false)]
    {
        assert_eq!(text.parse::<DeviceName>().is_ok(), is_name, "{text}");
    }
    assert!("a".repeat(65).parse::<DeviceName>().is_err());
    for text in ["", "naa", "naa:", ":x", "NAA:1", "naa:a b", "naa:a/b"] {
        assert!(text.parse::<DeviceId>().is_err(), "{text}");
    }
}

#[test]
fn devices_that_look_alike_are_not_named() {
    let mut catalog = Catalog::default();
    catalog.show(1, 0..2);
    catalog.put(DeviceKey::Seen(NodeId(2)), &SeenRow { duplicates: [id(0)].into(), ..SeenRow::default() });
    let refused = name(&catalog.read(), &id(0), &named("data1"), 0).unwrap_err();
    assert_eq!(refused, NamingError::DuplicateDeviceId { device: id(0), node: NodeId(2) });
    let larger =
        Sighting { kernel_name: "sdb".to_owned(), bytes: 2 << 20, paths: 1, in_use: false, answer: None };
    let row = SeenRow { devices: [(id(1), larger)].into(), duplicates: BTreeSet::new() };
    catalog.put(DeviceKey::Seen(NodeId(2)), &row);
    let refused = assign(&catalog.read(), &id(1), 0).unwrap_err();
    assert!(refused.to_string().contains("these are two devices"), "{refused}");
}

#[test]
fn a_device_is_shared_once_everybody_read_what_one_wrote() {
    let mut catalog = Catalog::default();
    let see = |catalog: &mut Catalog, node, answer: Option<(u128, bool)>| {
        let answer = answer.map(|(number, is_there)| Answer { number, is_there });
        let sighting = Sighting { kernel_name: "sda".to_owned(), bytes: 1, paths: 1, in_use: false, answer };
        let row = SeenRow { devices: [(id(0), sighting)].into(), duplicates: BTreeSet::new() };
        catalog.put(DeviceKey::Seen(NodeId(node)), &row);
        catalog.read().sharing(&id(0))
    };
    assert_eq!(see(&mut catalog, 1, None), Sharing::NotShared);
    assert_eq!(see(&mut catalog, 2, None), Sharing::Claimed);
    catalog.put(DeviceKey::Proof(id(0)), &ProofRow { node: NodeId(1), number: 7 });
    assert_eq!(see(&mut catalog, 1, Some((7, true))), Sharing::Claimed);
    assert_eq!(see(&mut catalog, 2, Some((6, false))), Sharing::Claimed, "an answer to an older question");
    assert_eq!(see(&mut catalog, 2, Some((7, true))), Sharing::Proved([NodeId(1), NodeId(2)].into()));
    assert_eq!(see(&mut catalog, 3, None), Sharing::Claimed);
    let twins = Sharing::Twins { writer: NodeId(1), reader: NodeId(3) };
    assert_eq!(see(&mut catalog, 3, Some((7, false))), twins);
    let refused = assign(&catalog.read(), &id(0), 0).unwrap_err();
    assert!(refused.to_string().contains("is not on the device that node"), "{refused}");
}

#[test]
fn a_device_is_located_only_where_it_is_certain() {
    let mut catalog = Catalog::default();
    let label = |number: usize| format!("label:{number}").parse::<DeviceId>().unwrap();
    let see = |catalog: &mut Catalog, node, answer: Option<(u128, bool)>| {
        let answer = answer.map(|(number, is_there)| Answer { number, is_there });
        let sighting =
            |answer| Sighting { kernel_name: "sda".to_owned(), bytes: 1, paths: 1, in_use: false, answer };
        let devices = [(label(0), sighting(answer)), (id(0), sighting(None))].into();
        catalog.put(DeviceKey::Seen(NodeId(node)), &SeenRow { devices, duplicates: BTreeSet::new() });
    };
    let on = |catalog: &Catalog, name: &str| -> Vec<u128> {
        let located = catalog.read().located();
        located.iter().filter(|(_, names)| names.contains(name)).map(|(node, _)| node.0).collect()
    };
    let members = |nodes: &[u128]| nodes.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
    see(&mut catalog, 1, None);
    let decision = name(&catalog.read(), &label(0), &named("data1"), 0);
    catalog.carry_out(decision);
    let decision = name(&catalog.read(), &id(0), &named("wide"), 0);
    catalog.carry_out(decision);
    assert_eq!(on(&catalog, "data1"), [1], "the only node that sees it");
    see(&mut catalog, 2, None);
    assert_eq!((on(&catalog, "data1"), on(&catalog, "wide")), (vec![], vec![1, 2]));
    assert_eq!(catalog.read().next_writer(&label(0), &members(&[1, 2])), Some(NodeId(1)));
    assert_eq!(
        catalog.read().next_writer(&label(0), &members(&[2])),
        None,
        "a node that is away proves nothing"
    );
    assert_eq!(
        catalog.read().next_writer(&id(0), &members(&[1, 2])),
        None,
        "nothing is written to a disk with content"
    );
    catalog.put(DeviceKey::Proof(label(0)), &ProofRow { node: NodeId(1), number: 7 });
    assert_eq!(catalog.read().next_writer(&label(0), &members(&[1, 2])), None);
    see(&mut catalog, 1, Some((7, true)));
    see(&mut catalog, 2, Some((7, true)));
    see(&mut catalog, 3, None);
    assert_eq!(on(&catalog, "data1"), [1, 2], "the third has not read it yet");
    see(&mut catalog, 3, Some((7, false)));
    assert!(on(&catalog, "data1").is_empty(), "the third has a twin, and nothing tells which one is meant");
    see(&mut catalog, 1, Some((7, false)));
    let writer = catalog.read().next_writer(&label(0), &members(&[1, 2]));
    assert_eq!(
        writer,
        Some(NodeId(1)),
        "a number that its writer does not find was overwritten, and proves nothing"
    );
    assert_eq!(catalog.read().sharing(&label(0)), Sharing::Claimed);
    let decision = rename(&catalog.read(), &named("wide"), &named("other"));
    catalog.carry_out(decision);
    assert_eq!(
        (on(&catalog, "wide"), on(&catalog, "other")),
        (vec![1, 2, 3], vec![1, 2, 3]),
        "old names count"
    );
    let decision = unname(&catalog.read(), &named("other"));
    catalog.carry_out(decision);
    assert_eq!((on(&catalog, "wide"), on(&catalog, "other")), (vec![], vec![]));
    assert!(!catalog.read().wants_name(&id(0)), "its name was taken away on purpose");
}

#[test]
fn keys_survive_being_written_and_read() {
    let keys = [
        DeviceKey::Naming,
        DeviceKey::Device(id(1)),
        DeviceKey::Name(named("a.b")),
        DeviceKey::Seen(NodeId(7)),
        DeviceKey::Proof(id(2)),
    ];
    for key in keys {
        assert_eq!(DeviceKey::decode(&key.encode()), Some(key.clone()));
        assert_eq!(crate::catalog::Key::decode(&key.encode()), None, "the core has other rows");
    }
    for text in ["devices/", "devices/id/x", "devices/name/.", "devices/else/1", "name/a"] {
        assert_eq!(DeviceKey::decode(text), None, "{text}");
    }
}

// ---- One node's table -------------------------------------------------------------------------------------------

/// What a table looks like from outside: names and who bears them, with no rule of its own.
#[derive(Clone, Debug, Default, PartialEq)]
struct Shown(BTreeMap<String, DeviceId>);

impl Shown {
    /// N3: a step that would take a name from another device is an error.
    fn take(&mut self, step: &Step) -> Result<(), String> {
        let mut set = |name: String, id: &DeviceId| match self.0.insert(name.clone(), id.clone()) {
            Some(bearer) if bearer != *id => Err(format!("N3: {name} was taken from {bearer} for {id}")),
            Some(_) | None => Ok(()),
        };
        match step {
            Step::Take { id, name, .. } | Step::Alias { id, name } => set(name.to_string(), id),
            Step::Move { id, from, to } => {
                set(to.to_string(), id)?;
                if self.0.get(&from.to_string()) == Some(id) {
                    self.0.remove(&from.to_string());
                }
                Ok(())
            }
            Step::Release { id, .. } => {
                self.0.retain(|_, bearer| bearer != id);
                Ok(())
            }
            Step::DropAlias { name, .. } => {
                self.0.remove(name.as_str());
                Ok(())
            }
        }
    }
}

fn shown(table: &Table) -> Shown {
    let mut shown = Shown::default();
    for (id, entry) in table.entries() {
        shown.0.insert(entry.name.to_string(), id.clone());
        if let Some(alias) = &entry.alias {
            shown.0.insert(alias.to_string(), id.clone());
        }
    }
    shown
}

fn carry_out(table: &mut Table, plan: &Plan) {
    let mut outside = shown(table);
    for step in &plan.steps {
        outside.take(step).unwrap();
        assert_eq!(table.take(step), Ok(true), "{step:?}");
        assert_eq!(table.take(step), Ok(false), "N5: {step:?} again");
        assert_eq!(shown(table), outside);
    }
}

fn idle(numbers: impl IntoIterator<Item = usize>) -> BTreeMap<DeviceId, Use> {
    numbers.into_iter().map(|number| (id(number), Use::Idle)).collect()
}

/// A table in which device `number` bears the name of device `bears(number)`.
fn local_table(count: usize, bears: impl Fn(usize) -> usize) -> Table {
    let mut table = Table::default();
    for number in 0..count {
        let step =
            table.name_locally(&id(number), &named(&format!("data{}", bears(number))), PREFIX).unwrap();
        table.take(&step).unwrap();
    }
    table
}

fn named_rows(count: usize) -> Catalog {
    let mut catalog = Catalog::default();
    catalog.show(1, 0..count);
    for number in 0..count {
        catalog.give(number, &format!("data{number}"));
    }
    catalog
}

fn names_of(table: &Table) -> BTreeMap<DeviceId, String> {
    table.entries().iter().map(|(id, entry)| (id.clone(), entry.name.to_string())).collect()
}

#[test]
fn four_nodes_agree_after_a_ring_of_32_names_with_a_crash_at_every_step() {
    const COUNT: usize = 32;
    let rows = named_rows(COUNT).read();
    let seen = idle(0..COUNT);
    let expected: BTreeMap<_, _> = (0..COUNT).map(|number| (id(number), format!("data{number}"))).collect();
    // One ring, the ring backwards, sixteen pairs, two rings.
    let nodes: [fn(usize) -> usize; 4] = [
        |number| (number + 1) % COUNT,
        |number| (number + COUNT - 1) % COUNT,
        |number| number ^ 1,
        |number| (number + 2) % COUNT,
    ];
    for bears in nodes {
        let start = local_table(COUNT, bears);
        let plan = reconcile(&start, &rows, &seen);
        assert!(plan.deferred.is_empty());
        for first in 0..=plan.steps.len() {
            let mut crashed = start.clone();
            carry_out(&mut crashed, &Plan { steps: plan.steps[..first].to_vec(), ..Plan::default() });
            let rest = reconcile(&crashed, &rows, &seen);
            for second in 0..=rest.steps.len() {
                let mut again = crashed.clone();
                carry_out(&mut again, &Plan { steps: rest.steps[..second].to_vec(), ..Plan::default() });
                let last = reconcile(&again, &rows, &seen);
                carry_out(&mut again, &last);
                assert_eq!(names_of(&again), expected, "N2 after crashes at {first} and {second}");
                assert_eq!(reconcile(&again, &rows, &seen), Plan::default(), "N5");
            }
        }
    }
}

#[test]
fn a_ring_renamed_without_temporary_names_is_caught() {
    let rows = named_rows(32).read();
    let start = local_table(32, |number| (number + 1) % 32);
    let plan = reconcile(&start, &rows, &idle(0..32));
    let is_aside = |step: &Step| matches!(step, Step::Move { to: LocalName::Temporary(_), .. });
    assert_eq!(plan.steps.iter().filter(|step| is_aside(step)).count(), 1);
    assert_eq!(plan.steps.len(), 33);
    let flawed = flawed(Flaw::NoTemporaryNames, || reconcile(&start, &rows, &idle(0..32)));
    assert_eq!(flawed.steps.len(), 32);
    let (mut outside, mut table) = (shown(&start), start.clone());
    let caught: Vec<_> = flawed.steps.iter().map(|step| (outside.take(step), table.take(step))).collect();
    assert!(caught[0].0.as_ref().is_err_and(|error| error.starts_with("N3")), "{:?}", caught[0]);
    assert!(caught.iter().any(|(_, step)| matches!(step, Err(StepError::Occupied { .. }))));
}

#[test]
fn a_device_in_use_keeps_its_name_and_answers_to_the_new_one_until_it_is_free() {
    let rows = named_rows(3).read();
    let mut table = Table::default();
    for (number, text) in [(0, "old0"), (1, "data2")] {
        let step = table.name_locally(&id(number), &named(text), PREFIX).unwrap();
        table.take(&step).unwrap();
    }
    let mut seen = idle(0..3);
    seen.insert(id(0), Use::Busy);
    seen.insert(id(1), Use::Busy);
    let plan = reconcile(&table, &rows, &seen);
    carry_out(&mut table, &plan);
    assert_eq!(names_of(&table), [(id(0), "old0".to_owned()), (id(1), "data2".to_owned())].into());
    assert_eq!(table.bearer(&LocalName::Named(named("data0"))), Some(&id(0)));
    assert_eq!(table.bearer(&LocalName::Named(named("data1"))), Some(&id(1)));
    let reasons: Vec<_> = plan.deferred.iter().map(|one| (one.id.clone(), one.reason.clone())).collect();
    assert!(reasons.contains(&(id(0), DeferredReason::InUse)));
    assert!(reasons.contains(&(id(2), DeferredReason::HeldBy(id(1)))), "{reasons:?}");
    assert_eq!(reconcile(&table, &rows, &seen).steps, [], "N5");
    let plan = reconcile(&table, &rows, &idle(0..3));
    assert!(plan.steps.contains(&Step::Move {
        id: id(0),
        from: LocalName::Named(named("old0")),
        to: LocalName::Named(named("data0"))
    }));
    carry_out(&mut table, &plan);
    assert_eq!(names_of(&table).into_values().collect::<Vec<_>>(), ["data0", "data1", "data2"]);
}

#[test]
fn a_name_taken_away_gives_back_the_one_from_before_unless_the_cluster_gave_it_to_another() {
    let mut catalog = named_rows(2);
    let mut table = Table::default();
    for (number, text) in [(0, "mine"), (1, "data0")] {
        let step = table.name_locally(&id(number), &named(text), PREFIX).unwrap();
        table.take(&step).unwrap();
    }
    let plan = reconcile(&table, &catalog.read(), &idle(0..2));
    carry_out(&mut table, &plan);
    for text in ["data0", "data1"] {
        let decision = unname(&catalog.read(), &named(text));
        catalog.carry_out(decision);
    }
    catalog.show(1, 0..3);
    let plan = reconcile(&table, &catalog.read(), &idle(0..2));
    carry_out(&mut table, &plan);
    assert_eq!(names_of(&table).get(&id(0)).map(String::as_str), Some("mine"));
    // `data0` was borne by another when device 1 lost its name, so it waits for the next round at most.
    let plan = reconcile(&table, &catalog.read(), &idle(0..2));
    carry_out(&mut table, &plan);
    assert_eq!(reconcile(&table, &catalog.read(), &idle(0..2)), Plan::default());
    let refused = table.name_locally(&id(2), &named("disk-4"), PREFIX).unwrap_err();
    assert!(matches!(refused, LocalNameError::Reserved { .. }), "{refused}");
    let refused = table.name_locally(&id(2), &named("mine"), PREFIX).unwrap_err();
    assert!(refused.to_string().contains("can't be called mine"), "{refused}");
}

#[test]
fn a_name_that_a_damaged_catalog_gives_twice_goes_to_neither() {
    let mut catalog = named_rows(1);
    let row = DeviceRow { id: id(1), name: named("data0"), added_unix_ms: 0, is_retired: false };
    catalog.put(DeviceKey::Device(id(1)), &row);
    let plan = reconcile(&Table::default(), &catalog.read(), &idle(0..2));
    assert_eq!(plan.steps, []);
    assert_eq!(plan.deferred.len(), 2);
}

#[derive(Clone, Debug)]
struct World {
    local: Vec<Option<usize>>,
    rows: Vec<Option<(usize, bool)>>,
    busy: Vec<bool>,
    seen: Vec<bool>,
}

fn world() -> impl Strategy<Value = World> {
    const COUNT: usize = 9;
    let names = || Just((0..COUNT).collect::<Vec<_>>()).prop_shuffle();
    let flags = || proptest::collection::vec(any::<bool>(), COUNT);
    (names(), flags(), names(), flags(), flags(), flags(), flags()).prop_map(
        |(local, has_local, rows, has_row, retired, busy, seen)| World {
            local: local.into_iter().zip(has_local).map(|(name, has)| has.then_some(name)).collect(),
            rows: rows
                .into_iter()
                .zip(has_row)
                .zip(retired)
                .map(|((name, has), gone)| has.then_some((name, gone)))
                .collect(),
            busy,
            seen,
        },
    )
}

fn build(world: &World) -> (Table, DeviceRows, BTreeMap<DeviceId, Use>) {
    let mut table = Table::default();
    for (number, name) in world.local.iter().enumerate() {
        let Some(name) = name else { continue };
        let step = table.name_locally(&id(number), &named(&format!("n{name}")), PREFIX).unwrap();
        table.take(&step).unwrap();
    }
    let mut catalog = Catalog::default();
    for (number, row) in world.rows.iter().enumerate() {
        let Some((name, is_retired)) = row else { continue };
        let row = DeviceRow {
            id: id(number),
            name: named(&format!("n{name}")),
            added_unix_ms: 0,
            is_retired: *is_retired,
        };
        catalog.put(DeviceKey::Device(id(number)), &row);
    }
    let seen = (0..world.seen.len())
        .filter(|number| world.seen[*number])
        .map(|number| (id(number), if world.busy[number] { Use::Busy } else { Use::Idle }))
        .collect();
    (table, catalog.read(), seen)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn whatever_the_start_every_crash_ends_in_the_same_names(world in world()) {
        let (start, rows, seen) = build(&world);
        let plan = reconcile(&start, &rows, &seen);
        let mut whole = start.clone();
        carry_out(&mut whole, &plan);
        let after = reconcile(&whole, &rows, &seen);
        prop_assert_eq!(&after.steps, &vec![], "N5");
        // Nothing waits when nothing is in use.
        let calm: BTreeMap<_, _> = seen.keys().map(|id| (id.clone(), Use::Idle)).collect();
        for first in 0..=plan.steps.len() {
            let mut table = start.clone();
            carry_out(&mut table, &Plan { steps: plan.steps[..first].to_vec(), ..Plan::default() });
            let rest = reconcile(&table, &rows, &calm);
            prop_assert!(rest.deferred.is_empty(), "{:?}", rest.deferred);
            carry_out(&mut table, &rest);
            for (id, entry) in table.entries() {
                prop_assert!(entry.name.named().is_some() && entry.alias.is_none());
                let Some(row) = rows.device(id).filter(|row| !row.is_retired) else { continue };
                prop_assert_eq!(entry.name.named(), Some(&row.name), "N2");
            }
            for id in calm.keys().filter(|id| rows.device(id).is_some_and(|row| !row.is_retired)) {
                prop_assert!(table.entries().contains_key(id), "N2");
            }
        }
    }
}
