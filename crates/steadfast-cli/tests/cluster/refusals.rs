//! Bad input: each refused request says what was wrong, where, and what would be right, and changes nothing.

use super::support::{COUNTER, Trial};

/// Arguments, expected exit status, and what the message must contain.
type Case<'a> = (&'a [&'a str], i32, &'a [&'a str]);

const CASES: &[Case<'static>] = &[
    (&["run", "--name", COUNTER, "--", "true"], 5, &[COUNTER]),
    (&["run", "--name", "Bad Name!", "--", "true"], 2, &["--name", "Bad Name!"]),
    (&["run", "--name", "other"], 2, &["command"]),
    (&["run", "--name", "other", "--every", "10 parsecs", "--", "true"], 2, &["--every", "10s"]),
    (&["run", "--name", "other", "--memory", "2GB7", "--", "true"], 2, &["--memory", "GiB"]),
    (&["run", "--name", "other", "--address", "10.77.200.300/24", "--", "true"], 2, &["--address", "/24"]),
    (&["run", "--name", "other", "--copies", "none", "--", "true"], 2, &["--copies"]),
    (&["run", "--name", "other", "--restart", "always", "--", "true"], 2, &["--restart", "latest"]),
    (&["run", "--name", "other", "--root", "moon:x", "--", "true"], 2, &["--root", "host"]),
    (&["run", "--name", "other", "--volume", "/srv", "--", "true"], 2, &["--volume"]),
    (&["run", "--name", "other", "--node", "bta", "--", "true"], 3, &["bta", "beta"]),
    (&["checkpoint", "conter"], 3, &["conter", COUNTER]),
    (&["stop", "conter"], 3, &["conter", COUNTER]),
    (&["rm", COUNTER], 5, &[COUNTER]),
    (&["rm", "conter"], 3, &["conter", COUNTER]),
    (&["logs", "conter"], 3, &["conter", COUNTER]),
    (&["exec", "conter", "--", "true"], 3, &["conter", COUNTER]),
    (&["restore", COUNTER, "--checkpoint", "77"], 3, &["77"]),
    (&["restore", "conter"], 3, &["conter", COUNTER]),
    (&["explain", "SF-9999"], 3, &["SF-9999"]),
    (&["invite", "beta"], 5, &["beta"]),
    (&["invite", "delta", "--valid", "soon"], 2, &["soon", "1h"]),
    (&["psx"], 2, &["psx", "ps"]),
];

#[test]
fn every_refused_request_says_what_where_and_what_would_be_right_and_changes_nothing() {
    let trial = Trial::new();
    trial.start_counter(1);
    trial.checkpoint();
    let host = trial.bed.host(0);
    let before = trial.lasting_state();
    let mut wrong = Vec::new();
    for (arguments, status, expected) in CASES {
        let finished = host.steadfast_raw(arguments).unwrap();
        let said = finished.stderr.to_lowercase();
        let missing: Vec<_> = expected.iter().filter(|word| !said.contains(&word.to_lowercase())).collect();
        if finished.status != Some(*status) || !missing.is_empty() || !finished.stdout.is_empty() {
            wrong.push(format!(
                "`steadfast {}` ended with {:?} in place of {status}, missing {missing:?}; it said: {}",
                arguments.join(" "),
                finished.status,
                finished.stderr.trim()
            ));
        }
        assert_eq!(trial.lasting_state(), before, "`steadfast {}` changed something", arguments.join(" "));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    trial.witness.assert_clean();
}

#[test]
fn a_container_whose_address_is_in_use_is_refused_and_the_first_goes_on() {
    let trial = Trial::new();
    trial.start_counter(1);
    let address = format!("{}/24", steadfast_cli::bed::service_address(10));
    let words =
        ["run", "--name", "second", "--node", "gamma", "--address", &address, "--", "/usr/bin/sleep", "1000"];
    let finished = trial.bed.host(0).steadfast_raw(&words).unwrap();
    assert!(!finished.success());
    assert!(finished.stderr.contains(&address.replace("/24", "")), "{}", finished.stderr);
    trial.wait_heard_since(std::time::Instant::now(), "the first program goes on");
    trial.witness.assert_clean();
}
