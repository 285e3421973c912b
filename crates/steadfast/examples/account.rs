//! An account of a ring, a durable program in Rust: what is passed on goes round the accounts, one hop less at each, until it
//! has gone far enough. `account PORT` serves it to the agent of its node; the tests of rings kill agents around it.

use serde::{Deserialize, Serialize};
use steadfast::episodes::{Context, Durable, Then, serve};

#[derive(Default, Serialize, Deserialize)]
struct Account {
    balance: i64,
    deposits: u64,
    next: String,
}

#[derive(Serialize, Deserialize)]
struct Transfer {
    amount: i64,
    hops: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", content = "payload", rename_all = "lowercase")]
enum Told {
    Start { next: String },
    Pass(Transfer),
    Deposit(Transfer),
}

struct Ring;

impl Durable for Ring {
    type State = Account;
    type Told = Told;

    fn episode(&self, account: &mut Account, told: Told, context: &mut Context<'_>) -> Result<Then, String> {
        let Transfer { amount, hops } = match told {
            Told::Start { next } => {
                *account = Account { balance: 1_000, deposits: 0, next };
                return Ok(Then::anything());
            }
            Told::Pass(transfer) => transfer,
            Told::Deposit(transfer) => {
                account.balance += transfer.amount;
                account.deposits += 1;
                transfer
            }
        };
        if let Some(hops) = hops.checked_sub(1) {
            account.balance -= amount;
            context.send(&account.next, &Told::Deposit(Transfer { amount, hops }))?;
        }
        Ok(Then::anything())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::args().nth(1).ok_or("usage: account PORT")?.parse()?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    match serve(listener, Ring).await {}
}
