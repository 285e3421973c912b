//! Keepers with real folders, and programs in Rust: what is answered is kept, and what crosses nodes arrives once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use steadfast_proto::episode::{
    Answer, Effect, Input, Instance, Key, Program, Request, RequestError, Settings, Stopped,
};
use steadfast_proto::exchange::{Blob, Frame, Message, Name};
use steadfast_proto::ids::{Incarnation, NodeId};

use crate::episodes::{
    Carrier, Context, Deployment, Durable, Embedded, Keeper, Known, Parts, Runner, Then, runner,
};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default, Serialize, Deserialize)]
struct Account {
    balance: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", content = "payload", rename_all = "lowercase")]
enum Told {
    Start(i64),
    Transfer { to: String, amount: i64 },
    Deposit(i64),
    Balance,
    Panic,
}

struct Bank;

impl Durable for Bank {
    type State = Account;
    type Told = Told;

    fn episode(&self, account: &mut Account, told: Told, context: &mut Context<'_>) -> Result<Then, String> {
        match told {
            Told::Start(amount) | Told::Deposit(amount) => account.balance += amount,
            Told::Transfer { to, amount } => {
                account.balance -= amount;
                context.send(&to, &Told::Deposit(amount))?;
            }
            Told::Balance => context.answer(&account.balance)?,
            Told::Panic => panic!("on purpose"),
        }
        Ok(Then::anything())
    }
}

/// Hands frames over in this process, but every seventh.
#[derive(Clone, Default)]
pub(super) struct Lossy {
    pub(super) me: u128,
    pub(super) keepers: Arc<Mutex<BTreeMap<NodeId, Keeper>>>,
    pub(super) count: u64,
}

impl Carrier for Lossy {
    fn send(&mut self, to: NodeId, frame: Frame) {
        self.count += 1;
        let keepers = self.keepers.lock().expect("nobody panics with it");
        if let Some(keeper) = keepers.get(&to).filter(|_| !self.count.is_multiple_of(7)) {
            keeper
                .receive(NodeId(self.me), Frame::decode(&frame.encode()).expect("a frame survives the wire"));
        }
    }

    fn keep(&mut self, _: &Name, _: Vec<Message>) {}

    fn carry_out(&mut self, _: Effect) {}
}

fn start(folder: &Path, me: u128, lossy: &Lossy) -> Keeper {
    begin_life(folder, me, 1, lossy)
}

fn begin_life(folder: &Path, me: u128, life: u64, lossy: &Lossy) -> Keeper {
    let carrier = Box::new(Lossy { me, ..lossy.clone() });
    let me = NodeId(me);
    let settings = Settings { retry: Duration::from_millis(1), attempts_max: 3, ..Settings::default() };
    let parts = Parts { me, settings, carrier, life: Incarnation(life) };
    let store = Embedded::open(folder, 1).expect("the folder can be used");
    let keeper = Keeper::start(store, parts, Known::default()).expect("what it holds can be used");
    let deployment = Deployment { program: Program::default(), runners: BTreeMap::from([(1, runner(Bank))]) };
    keeper.deploy(BTreeMap::from([("bank".into(), deployment)]));
    lossy.keepers.lock().expect("nobody panics with it").insert(me, keeper.clone());
    keeper
}

fn name(key: impl std::fmt::Display) -> Name {
    Name::parse(&format!("bank/{key}")).expect("a name")
}

fn begin(key: impl std::fmt::Display, amount: i64) -> Request {
    let payload = Blob::from(amount.to_string().into_bytes());
    Request::Start { name: name(key), payload, key: None, wait: false }
}

fn tell(key: impl std::fmt::Display, told: &Told, wait: bool) -> Request {
    tell_once(key, told, wait, None)
}

fn tell_once(of: impl std::fmt::Display, told: &Told, wait: bool, key: Option<Key>) -> Request {
    let value = serde_json::to_value(told).expect("it is JSON");
    let kind = value["kind"].as_str().expect("it has a kind").into();
    let payload =
        value.get("payload").map_or_else(Blob::empty, |payload| payload.to_string().into_bytes().into());
    Request::Send { name: name(of), kind, correlation: None, payload, key, wait }
}

async fn balance(keeper: &Keeper, key: impl std::fmt::Display) -> i64 {
    let answer = keeper.ask(tell(key, &Told::Balance, true)).await.expect("it runs").expect("it is taken");
    let Answer::Answered(answer) = answer else { panic!("it says {answer:?}") };
    serde_json::from_slice(&answer).expect("a number")
}

async fn until<T: Send + 'static>(
    keeper: &Keeper,
    look: impl Fn(&steadfast_proto::episode::Episodes) -> Option<T> + Clone + Send + 'static,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = keeper.look(look.clone()).await.expect("it runs") {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "it does not come to that");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let lossy = Lossy::default();
    let keeper = start(folder.path(), 1, &lossy);
    keeper.ask(begin(1, 100)).await.expect("it runs").expect("it begins");
    let key = Some(Key { text: "once".into(), digest: 7 });
    let deposit = |key| tell_once(1, &Told::Deposit(5), false, key);
    keeper.ask(deposit(key.clone())).await.expect("it runs").expect("it is taken");
    assert_eq!(balance(&keeper, 1).await, 105);
    keeper.stop().expect("it ends well");

    let keeper = begin_life(folder.path(), 1, 2, &lossy);
    keeper.ask(deposit(key)).await.expect("it runs").expect("the same request again is the same request");
    assert_eq!(balance(&keeper, 1).await, 105);
    let other = Some(Key { text: "once".into(), digest: 8 });
    let refused = keeper.ask(deposit(other)).await.expect("it runs");
    assert!(matches!(refused, Err(RequestError::KeyReused(..))), "{refused:?}");
    keeper.stop().expect("it ends well");
}

#[tokio::test]
async fn what_crosses_a_lossy_network_arrives_once_and_nothing_is_left_over() {
    let folders = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
    let lossy = Lossy::default();
    let keepers = [start(folders[0].path(), 1, &lossy), start(folders[1].path(), 2, &lossy)];
    for keeper in &keepers {
        keeper.input(Input::Homes(vec![NodeId(1), NodeId(2)]));
    }
    let keeper_of = |key: usize| &keepers[steadfast_proto::episode::home_of(&name(key), 2)];
    for key in 0..8 {
        keeper_of(key).ask(begin(key, 100)).await.expect("it runs").expect("it begins");
    }
    for round in 0..10 {
        for key in 0..8 {
            let told = Told::Transfer { to: name((key + 1 + round) % 8).to_string(), amount: 10 };
            keeper_of(key).ask(tell(key, &told, false)).await.expect("it runs").expect("it is taken");
        }
    }
    for keeper in &keepers {
        until(keeper, |episodes| episodes.instances().all(Instance::is_quiet).then_some(())).await;
    }
    let mut total = 0;
    for key in 0..8 {
        total += balance(keeper_of(key), key).await;
    }
    assert_eq!(total, 800);
    let mut left = 0;
    for keeper in &keepers {
        left += keeper
            .look(|all| all.instances().map(Instance::bytes_of_messages).sum::<usize>())
            .await
            .expect("it runs");
        keeper.stop().expect("it ends well");
    }
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_program_that_panics_is_parked_and_disturbs_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let keeper = start(folder.path(), 1, &Lossy::default());
    for key in [1, 2] {
        keeper.ask(begin(key, 100)).await.expect("it runs").expect("it begins");
    }
    keeper.ask(tell(1, &Told::Panic, false)).await.expect("it runs").expect("it is taken");
    let stopped = until(&keeper, |episodes| match &episodes.instance(&name(1))?.stopped {
        Some(Stopped::Failing { why, until: None, .. }) => Some(why.clone()),
        _ => None,
    });
    assert!(stopped.await.contains("on purpose"));
    assert_eq!(balance(&keeper, 2).await, 100);
    keeper.stop().expect("it ends well");
}

#[tokio::test]
async fn a_runner_that_goes_away_fails_its_episode() {
    let folder = tempfile::tempdir().expect("a folder");
    let keeper = start(folder.path(), 1, &Lossy::default());
    let drops = Runner::Elsewhere(Arc::new(|_, done| drop(done)));
    let deployment = Deployment { program: Program::default(), runners: BTreeMap::from([(1, drops)]) };
    keeper.deploy(BTreeMap::from([("bank".into(), deployment)]));
    keeper.ask(begin(1, 1)).await.expect("it runs").expect("it begins");
    let why = until(&keeper, |episodes| match &episodes.instance(&name(1))?.stopped {
        Some(Stopped::Failing { why, .. }) => Some(why.clone()),
        _ => None,
    });
    assert!(why.await.contains("went away"));
    keeper.stop().expect("it ends well");
}

#[tokio::test]
async fn two_keepers_never_use_one_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let keeper = start(folder.path(), 1, &Lossy::default());
    assert!(Embedded::open(folder.path(), 1).is_err());
    keeper.stop().expect("it ends well");
}
