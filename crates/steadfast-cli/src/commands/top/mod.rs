//! `steadfast top`: the cluster at a glance in a terminal, live.
//!
//! It follows the picture that the page follows, and the events, through the public API, and asks for nothing again and again.
//! Read `picture` for what is known, `judge` for what is wrong, `app` for keys, `panes`, `matrix` and `screen` for what is
//! drawn, `terminal` for how the terminal is put back.

mod app;
mod judge;
mod matrix;
mod panes;
mod picture;
mod screen;
mod terminal;
#[cfg(test)]
mod tests;
mod words;

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::app::{App, Step};
use self::terminal::Screen;
use self::words::Look;
use super::Context;
use crate::api::client::Client;
use crate::api::event_client::EventsOf;
use crate::api::page_types::PictureChange;
use crate::codes::Code;
use crate::events::cloud::CloudEvent;
use crate::failure::Failure;

/// How long to wait before a stream that broke off is opened again.
const PAUSE: Duration = Duration::from_millis(500);
/// How often what grows older by itself is drawn again; nothing is asked for.
const AGE_PERIOD: Duration = Duration::from_secs(1);
/// How much that was told waits to be taken over; the agent waits when it is full.
const NEWS_MAX: usize = 64;
/// How many are taken over before the next drawing.
const NEWS_AT_ONCE_MAX: usize = 64;

/// Show the cluster in this terminal, live
///
/// What is wrong comes first; then nodes, the links of every pair, views with their reasons, containers with their owner,
/// checkpoint and copies, and events as they happen. Keys: 1 to 5 or Tab choose what is shown, arrows scroll, / writes a
/// filter for events, q ends. Without a terminal, use `steadfast status`. NO_COLOR is respected.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast top\n  steadfast top --filter 'type~container.* or type~node.*'\n  NO_COLOR=1 steadfast top"
)]
pub struct Args {
    /// Only events like this
    #[arg(long, value_name = "EXPR", default_value = "", hide_default_value = true)]
    filter: String,
}

/// What a stream told.
#[derive(Debug)]
enum News {
    Picture(PictureChange),
    PictureBroken(Failure),
    Event(Box<CloudEvent>),
    EventsBroken(Failure),
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let filter = args.filter.trim().to_owned();
    let read = filter.parse::<crate::events::filter::Filter>();
    read.map_err(|error| Failure::new(Code::BadRequest, error.to_string()))?;
    let mut ends =
        [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()].map(signal).into_iter();
    let mut end = || {
        let failed = |error| Failure::new(Code::Internal, format!("signals can't be heard: {error}"));
        ends.next().transpose().map_err(failed)
    };
    let (mut terminate, mut hangup, mut interrupt) = (end()?, end()?, end()?);
    terminal::check()?;
    let changes = pictures(&context.client).await?;
    let mut screen = Screen::enter()?;
    let ended = async {
        tokio::select! {
            () = heard(&mut terminate) => {}
            () = heard(&mut hangup) => {}
            () = heard(&mut interrupt) => {}
        }
    };
    let mut app = App::new(Look::of_environment());
    app.filter = filter;
    tokio::select! {
        () = ended => Ok(()),
        outcome = show(&mut screen, app, &context.client, changes) => outcome,
    }
}

async fn heard(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Draws until somebody ends it.
async fn show(screen: &mut Screen, mut app: App, client: &Client, changes: Changes) -> Result<(), Failure> {
    let (sender, mut news) = mpsc::channel(NEWS_MAX);
    tokio::spawn(follow_picture(client.clone(), changes, sender.clone()));
    let mut events = Events::follow(client, &app.filter, &sender);
    let mut keys = terminal::keys();
    let mut age = tokio::time::interval(AGE_PERIOD);
    loop {
        screen
            .terminal
            .draw(|frame| screen::draw(frame, &mut app))
            .map_err(|error| terminal::lost(&error))?;
        tokio::select! {
            key = keys.recv() => {
                // The terminal is gone.
                let Some(key) = key else { return Ok(()) };
                let height = screen.terminal.size().map_err(|error| terminal::lost(&error))?.height;
                match app.press(&key, screen::page(height)) {
                    Step::Draw => {}
                    Step::Filter => events = Events::follow(client, &app.filter, &sender),
                    Step::Quit => return Ok(()),
                }
            }
            Some(told) = news.recv() => {
                take(&mut app, told, &events);
                for _ in 1..NEWS_AT_ONCE_MAX {
                    let Ok(told) = news.try_recv() else { break };
                    take(&mut app, told, &events);
                }
            }
            _ = age.tick() => {}
        }
    }
}

fn take(app: &mut App, told: (u64, News), events: &Events) {
    match told {
        (_, News::Picture(change)) => app.told(change),
        (_, News::PictureBroken(failure)) => app.broken = Some(failure.message),
        // What the filter before this one let through is nothing that was asked for now.
        (number, News::Event(_) | News::EventsBroken(_)) if number != events.number => {}
        (_, News::Event(event)) => {
            app.refused = None;
            app.happened(&event);
        }
        (_, News::EventsBroken(failure)) => app.refused = Some(failure.message),
    }
}

/// The events of one filter, followed until it is dropped.
#[derive(Debug)]
struct Events {
    task: JoinHandle<()>,
    number: u64,
}

impl Events {
    fn follow(client: &Client, filter: &str, news: &mpsc::Sender<(u64, News)>) -> Events {
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let filter = (!filter.is_empty()).then(|| filter.to_owned());
        let task = tokio::spawn(follow_events(client.clone(), filter, number, news.clone()));
        Events { task, number }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow_events(client: Client, filter: Option<String>, number: u64, news: mpsc::Sender<(u64, News)>) {
    loop {
        let wanted = EventsOf { filter: filter.clone(), since: None };
        let mut events = std::pin::pin!(client.follow_events(wanted));
        while let Some(event) = events.next().await {
            let told = event.map_or_else(News::EventsBroken, |event| News::Event(Box::new(event)));
            if news.send((number, told)).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

type Changes = Pin<Box<dyn Stream<Item = Result<PictureChange, Failure>> + Send>>;

/// Opens the stream of pictures.
async fn pictures(client: &Client) -> Result<Changes, Failure> {
    Ok(Box::pin(client.follow("/v1/page/events").await?))
}

/// Follows the picture over broken connections; each begins with the whole.
async fn follow_picture(client: Client, mut changes: Changes, news: mpsc::Sender<(u64, News)>) {
    loop {
        let mut why =
            Failure::new(Code::AgentUnreachable, "the agent has ended the stream; it is asked again");
        while let Some(change) = changes.next().await {
            match change {
                Ok(change) => {
                    if news.send((0, News::Picture(change))).await.is_err() {
                        return;
                    }
                }
                Err(failure) => why = failure,
            }
        }
        changes = loop {
            if news.send((0, News::PictureBroken(why))).await.is_err() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
            match pictures(&client).await {
                Ok(changes) => break changes,
                Err(failure) => why = failure,
            }
        };
    }
}
