//! An order, its payment and its shipment: three durable programs in one module.
//!
//! An episode is an ordinary function of the state and the event. It keeps nothing in memory: what is to last is the state,
//! and what is to happen is said to the host, which carries it out when the episode has ended well, exactly once.

mod host;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How much an order may cost.
const CREDIT: u64 = 1_000;
const DAY_MS: i64 = 24 * 3600 * 1000;

/// What is ordered; an order's input and state, and what it is charged for.
#[derive(Deserialize, Serialize)]
struct Order {
    item: String,
    amount: u64,
}

/// Runs one episode of whichever program the instance belongs to.
#[unsafe(no_mangle)]
pub extern "C" fn episode() {
    let name = host::instance();
    let (program, key) = name.split_once('/').expect("a name is PROGRAM/KEY");
    let (kind, source) = (host::event_kind(), host::event_source());
    match (program, kind.as_str()) {
        ("order", "start") => take_order(key),
        ("order", "child.ended") if source.starts_with("payment/") => ship(key),
        ("order", "child.ended") => end(&json!({"order": "delivered", "by": read(&host::event_payload())})),
        ("order", _) => end(&json!({"order": "late"})),
        ("payment", _) => charge(),
        ("shipment", _) => end(&json!({"parcel": format!("P-{key}")})),
        (program, _) => host::give_up(&format!("this module is no program {program}")),
    }
}

fn take_order(key: &str) {
    let payload = host::event_payload();
    let Ok(order) = serde_json::from_slice::<Order>(&payload) else {
        return host::give_up("an order is {\"item\": TEXT, \"amount\": NUMBER}");
    };
    host::log_line(&format!("{} ordered for {}", order.item, order.amount));
    host::set_state(&payload);
    await_child("payment", key, "charge", &payload);
}

fn ship(key: &str) {
    let paid = read(&host::event_payload());
    if paid["paid"] == json!(true) {
        await_child("shipment", key, "ship", &host::state());
    } else {
        end(&json!({"order": "refused"}));
    }
}

fn charge() {
    let order: Result<Order, _> = serde_json::from_slice(&host::event_payload());
    end(&json!({"paid": order.is_ok_and(|order| order.amount <= CREDIT)}));
}

/// Begins a child of the same key and waits a day for its end.
fn await_child(program: &str, key: &str, kind: &str, payload: &[u8]) {
    let child = format!("{program}/{key}");
    host::begin(&child, kind, payload);
    host::wait_for("child.ended", &child);
    host::wait_at_most_ms(DAY_MS);
}

fn read(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_default()
}

fn end(answer: &Value) {
    host::end_with(answer.to_string().as_bytes());
}
