//! What an instance waits for, and what its outboxes hold, in sentences for people.
//!
//! Made of the API's JSON alone, so that the command line and the page say the same.

use std::time::Duration;

use super::episode_types::{EffectShown, Instance, OutboxShown, StoppedWhy, WaitedFor};
use crate::units::human_duration;

/// Everything that keeps an instance from going on, the weightiest first.
pub fn sentences(instance: &Instance) -> Vec<String> {
    let mut said = Vec::new();
    match instance.row.doing.as_str() {
        "ended" => said.push("has ended".to_owned()),
        "cancelled" => said.push("was cancelled".to_owned()),
        "running" => said.push(format!("runs episode {}", instance.row.episode.saturating_add(1))),
        _ => {}
    }
    let now = instance.now_unix_ms;
    if let Some(why) = &instance.stopped {
        said.push(stopped(why, now));
    }
    said.extend(instance.outboxes.iter().flat_map(|outbox| sending(outbox, now)));
    let is_over = matches!(instance.row.doing.as_str(), "ended" | "cancelled");
    if !instance.is_deployed && !is_over {
        said.push(format!(
            "begins no episode: version {} of its program is not deployed on {}",
            instance.row.version, instance.row.node
        ));
    }
    if !is_over && instance.row.doing != "running" {
        said.extend(held_back(instance));
        said.push(waiting(instance));
    }
    if instance.row.inbox > 0 {
        said.push(format!(
            "has {} that it does not wait for now, or has not come to",
            many(instance.row.inbox, "event")
        ));
    }
    if instance.is_quiet {
        said.push(
            "is quiet: every exchange is finished, and nothing is remembered of any message".to_owned(),
        );
    }
    said
}

/// Why no episode begins though nothing failed.
fn held_back(instance: &Instance) -> Vec<String> {
    let row = &instance.row;
    let is_strict = instance.mode == "strict";
    if row.unacked == 0 && (row.unconfirmed == 0 || !is_strict) {
        return Vec::new();
    }
    let of = |outbox: &OutboxShown| {
        let mut parts = Vec::new();
        if outbox.unacked > 0 {
            parts.push(format!(
                "{} to {} {} not acknowledged",
                many(outbox.unacked, "message"),
                outbox.to,
                be(outbox.unacked)
            ));
        }
        if outbox.unconfirmed > 0 && is_strict {
            parts.push(format!(
                "{} to {} {} acknowledged and not confirm-acked",
                many(outbox.unconfirmed, "message"),
                outbox.to,
                be(outbox.unconfirmed)
            ));
        }
        parts
    };
    let parts: Vec<String> = instance.outboxes.iter().flat_map(of).collect();
    vec![format!("begins no episode: {} (mode {})", parts.join(", "), instance.mode)]
}

fn sending(outbox: &OutboxShown, now: u64) -> Vec<String> {
    let mut said = Vec::new();
    let since = ago(outbox.since_unix_ms, now);
    let again = match outbox.attempts {
        0 => String::new(),
        1 => ", sent again once".to_owned(),
        times => format!(", sent again {times} times"),
    };
    if outbox.unacked > 0 {
        let kinds = kinds(&outbox.kinds);
        said.push(format!(
            "is sending {} to {}{kinds}: not acknowledged for {since}{again}",
            many(outbox.unacked, "message"),
            outbox.to
        ));
    } else if outbox.unconfirmed > 0 {
        said.push(format!(
            "is confirming {} to {}: not confirm-acked for {since}{again}",
            many(outbox.unconfirmed, "message"),
            outbox.to
        ));
    }
    said.extend(outbox.effects.iter().map(|effect| effect_words(&outbox.to, effect, now)));
    if outbox.given_up > 0 {
        said.push(format!(
            "has given up {} to {}, which does not know it yet",
            many(outbox.given_up, "message"),
            outbox.to
        ));
    }
    said
}

/// What an effect waits for, and why it failed.
fn effect_words(to: &str, effect: &EffectShown, now: u64) -> String {
    let EffectShown { id, target, attempts, why, .. } = effect;
    let tried = match (attempts, why) {
        (0, _) | (_, None) => String::new(),
        (1, Some(why)) => format!(", which failed once: {why}"),
        (times, Some(why)) => format!(", which failed {times} times: {why}"),
    };
    let doing = match (effect.doing.as_str(), effect.again_unix_ms) {
        ("running", _) => "is being carried out".to_owned(),
        ("queued", _) => "waits behind others to the same system".to_owned(),
        (_, Some(again)) if again > now => format!("is tried again in {}", ago(now, again)),
        _ => "is tried again soon".to_owned(),
    };
    format!("has the effect {id} by {to} at {target}{tried}; it {doing}")
}

fn kinds(kinds: &[String]) -> String {
    let mut kinds = kinds.to_vec();
    kinds.dedup();
    if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) }
}

fn stopped(why: &StoppedWhy, now: u64) -> String {
    match (why.attempts, why.until_unix_ms) {
        (0, _) => "begins no episode: it is paused; `steadfast episode retry` goes on".to_owned(),
        (attempts, None) => format!(
            "is parked after {}: {}; `steadfast episode retry` tries again",
            many(attempts.into(), "attempt"),
            why.why
        ),
        (attempts, Some(until)) => format!(
            "has failed {}: {}; it is tried again in {}",
            if attempts == 1 { "once".to_owned() } else { format!("{attempts} times") },
            why.why,
            ago(now, until)
        ),
    }
}

fn waiting(instance: &Instance) -> String {
    let any: Vec<String> = instance.wait.iter().map(waited_for).collect();
    let until = instance.deadline_unix_ms.map(|at| {
        if at > instance.now_unix_ms {
            format!("{} to pass", ago(instance.now_unix_ms, at))
        } else {
            "its deadline, which has come".to_owned()
        }
    });
    let all: Vec<String> = any.into_iter().chain(until).collect();
    if all.is_empty() { "waits for nothing".to_owned() } else { format!("waits for {}", all.join(", or ")) }
}

fn waited_for(one: &WaitedFor) -> String {
    let mut words =
        one.kind.as_ref().map_or_else(|| "any event".to_owned(), |kind| format!("an event {kind:?}"));
    if let Some(source) = &one.source {
        words.push_str(&format!(" from {source}"));
    }
    if let Some(correlation) = &one.correlation {
        words.push_str(&format!(" about {correlation:?}"));
    }
    if let Some(filter) = &one.filter {
        words.push_str(&format!(" with {filter}"));
    }
    words
}

fn many(count: u64, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

fn be(count: u64) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// How long it is from one time to another.
fn ago(from: u64, to: u64) -> String {
    human_duration(Duration::from_millis(to.saturating_sub(from)))
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::super::episode_types::InstanceRow;
    use super::*;

    fn instance(doing: &str) -> Instance {
        let row = InstanceRow {
            name: "order/7".to_owned(),
            node: "alpha".to_owned(),
            version: 1,
            doing: doing.to_owned(),
            waits_for: "paid".to_owned(),
            episode: 1,
            inbox: 0,
            unacked: 0,
            unconfirmed: 0,
            begun_unix_ms: 0,
        };
        Instance {
            row,
            mode: "strict".to_owned(),
            store: "local".to_owned(),
            is_deployed: true,
            epoch: 1,
            now_unix_ms: 10_000,
            state: RawValue::from_string("null".to_owned()).unwrap(),
            wait: vec![WaitedFor {
                kind: Some("paid".to_owned()),
                source: None,
                correlation: None,
                filter: None,
            }],
            deadline_unix_ms: None,
            stopped: None,
            answer: None,
            ended_unix_ms: None,
            events: Vec::new(),
            outboxes: Vec::new(),
            peers: Vec::new(),
            parent: None,
            children: Vec::new(),
            is_quiet: false,
        }
    }

    fn outbox(unacked: u64, unconfirmed: u64) -> OutboxShown {
        OutboxShown {
            to: "payment/7".to_owned(),
            unacked,
            unconfirmed,
            given_up: 0,
            kinds: vec!["charge".to_owned()],
            messages: Vec::new(),
            since_unix_ms: 6_900,
            attempts: 2,
            again_unix_ms: None,
            effects: Vec::new(),
        }
    }

    #[test]
    fn what_is_sent_and_why_nothing_begins_is_said() {
        let mut sending = instance("sending");
        (sending.row.unacked, sending.outboxes) = (1, vec![outbox(1, 0)]);
        let said = sentences(&sending);
        let expected =
            "is sending 1 message to payment/7 (charge): not acknowledged for 3.1s, sent again 2 times";
        assert_eq!(said[0], expected);
        assert_eq!(said[1], "begins no episode: 1 message to payment/7 is not acknowledged (mode strict)");
        assert_eq!(said[2], "waits for an event \"paid\"");

        let mut confirming = instance("sending");
        (confirming.row.unconfirmed, confirming.outboxes) = (1, vec![outbox(0, 1)]);
        let expected =
            "begins no episode: 1 message to payment/7 is acknowledged and not confirm-acked (mode strict)";
        assert!(sentences(&confirming).contains(&expected.to_owned()), "{:?}", sentences(&confirming));
    }

    #[test]
    fn what_an_effect_waits_for_and_why_it_failed_is_said() {
        let effect = EffectShown {
            id: "4b1c".to_owned(),
            target: "pay.example:443".to_owned(),
            doing: "waiting".to_owned(),
            attempts: 3,
            why: Some("pay.example:443 answered 503".to_owned()),
            again_unix_ms: Some(14_000),
        };
        let mut sending = instance("sending");
        let to = "effect/http".to_owned();
        sending.outboxes = vec![OutboxShown { to, effects: vec![effect], ..outbox(1, 0) }];
        let expected = "has the effect 4b1c by effect/http at pay.example:443, which failed 3 times: pay.example:443 answered 503; it is tried again in 4.0s";
        assert!(sentences(&sending).contains(&expected.to_owned()), "{:?}", sentences(&sending));
    }

    #[test]
    fn why_it_is_stopped_and_until_when_it_waits_is_said() {
        let mut parked = instance("parked");
        parked.stopped = Some(StoppedWhy { attempts: 12, why: "no money".to_owned(), until_unix_ms: None });
        assert!(sentences(&parked)[0].starts_with("is parked after 12 attempts: no money"));
        parked.stopped =
            Some(StoppedWhy { attempts: 1, why: "no money".to_owned(), until_unix_ms: Some(12_000) });
        assert_eq!(sentences(&parked)[0], "has failed once: no money; it is tried again in 2.0s");

        let mut waiting = instance("waiting");
        (waiting.deadline_unix_ms, waiting.is_quiet) = (Some(70_000), true);
        let said = sentences(&waiting);
        assert_eq!(said[0], "waits for an event \"paid\", or 60s to pass");
        assert!(said[1].starts_with("is quiet"), "{said:?}");
    }
}
