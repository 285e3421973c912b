//! Join tokens: one node, once, in time.

use steadfast_cli::bed::{Bed, Host};

use super::support::builder;

/// A cluster of the first host alone; the others are bare.
fn single() -> Bed {
    let bed = builder().build().unwrap();
    let alpha = bed.host(0);
    let config = alpha.config().display().to_string();
    alpha.steadfast_text(&["init", "trial", "--config", &config]).unwrap();
    alpha.start_agent().unwrap();
    alpha.wait_ready().unwrap();
    bed
}

fn invite(bed: &Bed, words: &[&str]) -> String {
    bed.host(0).steadfast_text(words).unwrap().trim().to_owned()
}

/// What `join` says when it refuses, and that it does so with `status`.
fn refused(host: &Host, token: &str, status: i32) -> String {
    let config = host.config().display().to_string();
    let finished = host.steadfast_raw(&["join", token, "--config", &config]).unwrap();
    assert_eq!(finished.status, Some(status), "{}", finished.stderr);
    finished.stderr
}

fn names(bed: &Bed) -> Vec<String> {
    let mut names: Vec<_> = bed.host(0).nodes().unwrap().into_iter().map(|node| node.name).collect();
    names.sort();
    names
}

#[test]
fn a_token_is_good_once() {
    let bed = single();
    let token = invite(&bed, &["invite", "beta"]);
    let config = bed.host(1).config().display().to_string();
    bed.host(1).steadfast_text(&["join", &token, "--config", &config]).unwrap();
    bed.host(1).start_agent().unwrap();
    bed.wait_members(2).unwrap();
    let before = names(&bed);

    let said = refused(bed.host(2), &token, 5);
    assert!(said.contains("used"), "{said}");
    let again = bed.host(1).steadfast_raw(&["join", &token, "--config", &config]).unwrap();
    assert!(!again.success(), "a member does not join again");
    assert_eq!(names(&bed), before);
}

#[test]
fn a_token_that_is_damaged_foreign_or_late_is_refused_by_its_own_sentence() {
    let bed = single();
    let before = names(&bed);
    let token = invite(&bed, &["invite", "beta"]);
    let mut damaged = token.clone();
    let last = damaged.pop().unwrap();
    damaged.push(if last == 'a' { 'b' } else { 'a' });
    refused(bed.host(1), &damaged, 2);
    refused(bed.host(1), "hello", 2);
    refused(bed.host(1), &token[..token.len() / 2], 2);

    let late = invite(&bed, &["invite", "gamma", "--valid", "1s"]);
    let said = steadfast_cli::bed::wait_for("the token's end", super::support::PATIENCE, || {
        let config = bed.host(2).config().display().to_string();
        std::thread::sleep(std::time::Duration::from_millis(1200));
        let finished = bed.host(2).steadfast_raw(&["join", &late, "--config", &config]).unwrap();
        (finished.status == Some(1)).then_some(finished.stderr)
    });
    assert!(said.unwrap().contains("expired"));
    assert_eq!(names(&bed), before, "nobody joined");
}

#[test]
fn a_cloned_data_folder_is_refused() {
    let bed = single();
    bed.host(1).join_through(bed.host(0)).unwrap();
    bed.host(1).start_agent().unwrap();
    bed.wait_members(2).unwrap();

    // The commonest accident: a machine is copied with its disk. The clone wakes with the same identity.
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(bed.host(1).data().join("."))
        .arg(bed.host(2).data())
        .status();
    assert!(copied.unwrap().success());
    bed.host(2).start_agent().unwrap();
    let gamma = bed.host(2);
    steadfast_cli::bed::wait_for("the clone's refusal", super::support::PATIENCE, || {
        let log = gamma.log_tail(200).to_lowercase();
        (log.contains("clone") || log.contains("fingerprint")).then_some(())
    })
    .unwrap();
    let members = bed.host(0).members().unwrap();
    assert!(members.contains(&"beta".to_owned()), "the original stays a member: {members:?}");
}
