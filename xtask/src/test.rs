//! The whole examination of the repository, and the task that mends what a machine can mend.
//!
//! Decides the order: what fails soonest comes first, and nextest comes last so that its own summary closes the run.
//! Each step is named as it begins and timed; a failure stops the run with the command that repeats it. The checks only
//! read; `fix` is the only one that writes.

use crate::{
    dispatch,
    run::{Run, repository},
    setup::{self, Machine, Scope},
    tidy,
};
use anyhow::{Context, Result, bail};
use std::{fs, time::Instant};

pub(crate) fn task(arguments: &[String]) -> Result<()> {
    let all = arguments.iter().any(|argument| argument == "--all");
    let filters: Vec<&String> = arguments.iter().filter(|argument| *argument != "--all").collect();
    if let Some(flag) = filters.iter().find(|filter| filter.starts_with('-')) {
        bail!("`test` knows `--all`, not `{flag}`; for more, run `cargo nextest run` itself");
    }
    if all && !filters.is_empty() {
        bail!("`test --all` runs everything and takes no filter; give one or the other");
    }
    let started = Instant::now();
    let machine = setup::prepare(Scope::Tests)?;
    if !filters.is_empty() {
        return nextest(&machine, true).args(filters).perform();
    }
    examine(all)?;
    step("tests", nextest(&machine, all))?;
    if all {
        step("tests of traces", traces(&machine))?;
        step("cluster tests on etcd", on_etcd(&machine))?;
    }
    eprintln!("== everything passed in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn examine(all: bool) -> Result<()> {
    step("format", Run::cargo("fmt --all --check"))?;
    timed("tidy", tidy::check)?;
    step("clippy", Run::cargo("clippy --workspace --all-targets -- -D warnings"))?;
    step("documentation", Run::cargo("doc --no-deps --workspace").env("RUSTDOCFLAGS", "-Dwarnings"))?;
    let seeds = if all { "10000" } else { "300" };
    step("simulation", dispatch::simulator(&["--seeds".to_owned(), seeds.to_owned()]))?;
    step("documentation examples", Run::cargo("test --doc --workspace"))?;
    if all {
        let traced = "clippy --package steadfast-cli --features otel --all-targets -- -D warnings";
        step("clippy with traces", Run::cargo(traced))?;
        step("benchmarks compile", Run::cargo("check --manifest-path bench/Cargo.toml"))?;
        timed("fuzz", || dispatch::fuzz_each(&dispatch::fuzz_targets()?, 60))?;
    }
    Ok(())
}

/// The tests; the ones that last longest only with `all`.
fn nextest(machine: &Machine, all: bool) -> Run {
    let run = Run::cargo("nextest run --workspace");
    machine.offer_criu(if all { run.args(["--ignore-default-filter"]) } else { run })
}

/// What only a build with the feature `otel` has: a build of its own, so it is part of `--all` alone.
fn traces(machine: &Machine) -> Run {
    let run = Run::cargo(
        "nextest run --package steadfast-cli --features otel --lib --test cluster -E test(traces)",
    );
    machine.offer_criu(run)
}

/// The cluster suite once more, with the catalog in etcd.
fn on_etcd(machine: &Machine) -> Run {
    let run = Run::cargo("nextest run --package steadfast-cli --test cluster")
        .env("STEADFAST_TEST_CATALOG", "etcd");
    machine.offer_criu(run)
}

fn step(name: &str, run: Run) -> Result<()> {
    timed(name, || run.perform())
}

fn timed(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("== {name}");
    let started = Instant::now();
    work().with_context(|| format!("the step `{name}` failed"))?;
    eprintln!("== {name}: {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

pub(crate) fn fix(arguments: &[String]) -> Result<()> {
    if let Some(argument) = arguments.first() {
        bail!("`fix` takes no arguments, not `{argument}`");
    }
    step(
        "clippy's suggestions",
        Run::cargo("clippy --workspace --all-targets --fix --allow-dirty --allow-staged"),
    )?;
    step("format", Run::cargo("fmt --all"))?;
    timed("generated files", || GENERATED.into_iter().try_for_each(generate))
}

/// The reference pages that the product prints, each with its file; a test of the product fails when one is stale.
const GENERATED: [(&str, &str); 6] = [
    ("cli", "docs/reference/cli.md"),
    ("config", "docs/reference/config.md"),
    ("errors", "docs/reference/errors.md"),
    ("events", "docs/reference/events.md"),
    ("openapi", "docs/reference/openapi.json"),
    ("verdicts", "docs/reference/verdicts.md"),
];

fn generate((page, file): (&str, &str)) -> Result<()> {
    fs::create_dir_all(repository().join("docs/reference")).context("could not make docs/reference")?;
    Run::cargo("run --quiet --package steadfast-cli --bin steadfast -- reference")
        .args([page, "--into", file])
        .perform()
}
