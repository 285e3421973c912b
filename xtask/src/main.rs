//! `cargo xtask`: the one door to everything a developer or a build machine does with this repository.
//!
//! Decides only which task runs and with which arguments; the work is in the modules below, and whatever the product
//! itself can do is left to its own binaries. Must stay a light crate that builds in seconds on a bare machine: it may
//! depend on nothing of the workspace. Read `setup` next, then `test`, then `tidy`.

mod dispatch;
mod run;
mod setup;
mod test;
mod tidy;

use anyhow::{Result, bail};
use std::{env, process::ExitCode};

const HELP: &str = "\
cargo xtask TASK [ARGUMENTS]

  setup              install what is missing (runc, nftables, redis, Serf, a CRIU that passes a real self-test)
  demo [ARGUMENTS]   set up, then run the demo: a Redis that survives the loss of its machine
  bed [ARGUMENTS]    set up, then drive the test bed: `bed up --nodes 3 --networks 2`
  test [FILTER]      set up, then every check; with FILTER only the tests whose name holds it
  test --all         the same with 10,000 simulation seeds, fuzzing, and a check of the benchmarks
  sim [ARGUMENTS]    the simulator: `sim --seeds 300`, or `sim --seed S` to repeat one
  fuzz [TARGET] [--seconds N]
                     fuzz one decoder, or all of them, N seconds each (60)
  bench [NAME]       build for release, then run one benchmark, or all
  soak               set up, then ten minutes each: loss, pauses and a cut on the test bed; rings of durable programs with an
                     agent killed every second; histories of the catalog
  tidy               check the house rules that no compiler checks; only reads
  fix                rewrite what can be rewritten: format, clippy's suggestions, generated files
";

/// Every task, for the suggestion after a mistyped one.
const TASKS: [&str; 10] = ["setup", "demo", "bed", "test", "sim", "fuzz", "bench", "soak", "tidy", "fix"];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match perform(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(arguments: &[String]) -> Result<()> {
    let Some((task, rest)) = arguments.split_first() else {
        bail!("no task was given; choose one of:\n\n{HELP}");
    };
    match task.as_str() {
        "setup" => setup::task(rest),
        "demo" => dispatch::demo(rest),
        "bed" => dispatch::bed(rest),
        "test" => test::task(rest),
        "sim" => dispatch::sim(rest),
        "fuzz" => dispatch::fuzz(rest),
        "bench" => dispatch::bench(rest),
        "soak" => dispatch::soak(rest),
        "tidy" => tidy::task(rest),
        "fix" => test::fix(rest),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        unknown => bail!("there is no task `{unknown}`{}; `cargo xtask help` lists them", nearest(unknown)),
    }
}

fn nearest(unknown: &str) -> String {
    let best = TASKS.iter().map(|task| (strsim::damerau_levenshtein(unknown, task), task)).min();
    match best {
        Some((distance, task)) if distance <= 2 => format!(", did you mean `{task}`?"),
        Some(_) | None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_task_is_met_with_the_nearest_one() {
        let refusal = perform(&["tset".to_owned()]).unwrap_err().to_string();
        assert!(refusal.contains("did you mean `test`?"), "{refusal}");
    }

    #[test]
    fn a_word_like_no_task_gets_no_suggestion() {
        let refusal = perform(&["elephant".to_owned()]).unwrap_err().to_string();
        assert!(!refusal.contains("did you mean"), "{refusal}");
    }

    #[test]
    fn the_help_lists_every_task() {
        assert!(TASKS.iter().all(|task| HELP.contains(&format!("\n  {task} "))));
    }
}
