//! Hands tasks on to the product's own binaries, after what they need is there.
//!
//! Must hold no logic of the product: arguments pass through as they came. The demo and the test bed get the CRIU that
//! passed the self-test, so that what set-up found is what they use.

use crate::{
    run::{Run, repository},
    setup::{self, Scope},
};
use anyhow::{Context, Result, bail};
use std::fs;

const AGENT: &str = "run --quiet --package steadfast-cli --bin steadfast --";

/// More seeds than this are worth the time that an optimised build takes.
const SEEDS_UNOPTIMISED_MAX: u64 = 1000;

pub(crate) fn demo(arguments: &[String]) -> Result<()> {
    product("demo", arguments)
}

pub(crate) fn bed(arguments: &[String]) -> Result<()> {
    product("bed", arguments)
}

/// The tests of clusters and of the catalog that can last, for as long as they can.
pub(crate) fn soak(arguments: &[String]) -> Result<()> {
    let machine = setup::prepare(Scope::Tests)?;
    let run = Run::cargo(
        "nextest run --package steadfast-cli --package steadfast --no-capture --ignore-default-filter a_long_run",
    );
    machine.offer_criu(run.args(arguments).env("STEADFAST_SOAK", "1")).perform()
}

fn product(verb: &str, arguments: &[String]) -> Result<()> {
    let machine = setup::prepare(Scope::Product)?;
    machine.offer_criu(Run::cargo(AGENT).args([verb]).args(arguments)).perform()
}

pub(crate) fn sim(arguments: &[String]) -> Result<()> {
    simulator(arguments).perform()
}

/// The simulator with these arguments, optimised when they ask for many seeds.
pub(crate) fn simulator(arguments: &[String]) -> Run {
    let seeds = arguments
        .iter()
        .enumerate()
        .find_map(|(index, argument)| match argument.strip_prefix("--seeds=") {
            Some(value) => Some(value.to_owned()),
            None if argument == "--seeds" => arguments.get(index + 1).cloned(),
            None => None,
        })
        .and_then(|value| value.replace([',', '_'], "").parse().ok())
        .unwrap_or(0);
    let profile = if seeds > SEEDS_UNOPTIMISED_MAX { "release" } else { "dev" };
    Run::cargo("run --quiet --package steadfast-sim --bin steadfast-sim --profile")
        .args([profile, "--"])
        .args(arguments)
}

pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    let machine = setup::prepare(Scope::Benchmarks)?;
    Run::cargo("build --release --package steadfast-cli --bin steadfast").perform()?;
    let bench = Run::cargo("run --release --manifest-path bench/Cargo.toml --").args(arguments);
    machine.offer_criu(bench).perform()
}

pub(crate) fn fuzz(arguments: &[String]) -> Result<()> {
    let mut seconds = "60".to_owned();
    let mut targets = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--seconds" => {
                seconds = rest.next().context("`--seconds` needs a number, as in `--seconds 60`")?.clone()
            }
            flag if flag.starts_with('-') => bail!("`fuzz` knows `--seconds N`, not `{flag}`"),
            target => targets.push(target.to_owned()),
        }
    }
    let Ok(seconds) = seconds.parse() else { bail!("`--seconds` takes a whole number, not `{seconds}`") };
    let known = fuzz_targets()?;
    if let Some(unknown) = targets.iter().find(|target| !known.contains(target)) {
        bail!("there is no fuzz target `{unknown}`; there are {}", known.join(", "));
    }
    fuzz_each(if targets.is_empty() { &known } else { &targets }, seconds)
}

/// Fuzzes each target for so long; the first finding ends it.
pub(crate) fn fuzz_each(targets: &[String], seconds: u64) -> Result<()> {
    setup::provide_fuzzing()?;
    for target in targets {
        eprintln!("fuzz: {target}, {seconds} s");
        // What was found earlier is kept and added to; the seeds only start it off.
        let corpus = format!("fuzz/corpus/{target}");
        fs::create_dir_all(repository().join(&corpus)).with_context(|| format!("could not make {corpus}"))?;
        let seeds = format!("fuzz/seeds/{target}");
        let seeds = repository().join(&seeds).is_dir().then_some(seeds);
        Run::cargo("+nightly fuzz run")
            .args([target.as_str(), corpus.as_str()])
            .args(seeds)
            .args(["--", &format!("-max_total_time={seconds}"), "-rss_limit_mb=2048", "-timeout=10"])
            .perform()?;
    }
    Ok(())
}

/// The names of the fuzz targets, in order.
pub(crate) fn fuzz_targets() -> Result<Vec<String>> {
    let folder = repository().join("fuzz/fuzz_targets");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("no fuzz targets in {}", folder.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            targets.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    targets.sort();
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(arguments: &[&str]) -> String {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        simulator(&arguments).shown().to_owned()
    }

    #[test]
    fn many_seeds_are_worth_an_optimised_build() {
        assert!(shown(&["--seeds", "300"]).contains("--profile dev -- --seeds 300"));
        assert!(shown(&["--seeds", "10000"]).contains("--profile release -- --seeds 10000"));
        assert!(shown(&["--seeds=10000"]).contains("--profile release"));
        assert!(shown(&["--seed", "10000"]).contains("--profile dev"));
    }
}
