//! The shim as a program of its own. The `steadfast` binary carries the same code behind a hidden sub-command; this one
//! exists for programs (and tests) that embed the crate without that binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    steadfast_container::shim::main(std::env::args_os().skip(1))
}
