//! The order of the guide, a durable program in Rust: it is charged, then shipped. Run by every node's agent over HTTP.

use serde::{Deserialize, Serialize};
use steadfast::episodes::{Context, Durable, Then, serve};

#[derive(Default, Serialize, Deserialize)]
struct Order {
    item: String,
    amount: u64,
}

#[derive(Deserialize)]
#[serde(tag = "kind", content = "payload", rename_all = "lowercase")]
enum Told {
    Start(Order),
    Paid(u64),
    Shipped(String),
}

#[derive(Serialize)]
#[serde(tag = "kind", content = "payload", rename_all = "lowercase")]
enum Says<'a> {
    Charge(u64),
    Ship(&'a str),
}

#[derive(Serialize)]
struct Done<'a> {
    item: &'a str,
    tracking: &'a str,
}

struct Orders;

impl Durable for Orders {
    type State = Order;
    type Told = Told;

    fn episode(&self, order: &mut Order, told: Told, context: &mut Context<'_>) -> Result<Then, String> {
        let key = context.name().key().to_owned();
        match told {
            Told::Start(new) => {
                *order = new;
                context.begin(&format!("payment/{key}"), &Says::Charge(order.amount))?;
                Ok(Then::one_of(&["paid"]))
            }
            Told::Paid(paid) if paid < order.amount => Err(format!("{paid} of {} are paid", order.amount)),
            Told::Paid(_) => {
                context.begin(&format!("shipment/{key}"), &Says::Ship(&order.item))?;
                Ok(Then::one_of(&["shipped"]))
            }
            Told::Shipped(tracking) => Then::end(&Done { item: &order.item, tracking: &tracking }),
        }
    }
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8098").await?;
    match serve(listener, Orders).await {}
}
