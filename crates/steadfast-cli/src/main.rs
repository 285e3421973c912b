//! The `steadfast` binary: a thin shell over the library of this crate. Start at `commands`.

use std::process::ExitCode;

fn main() -> ExitCode {
    steadfast_cli::commands::main()
}
