//! The binary: `cdc_export::command` is all of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    cdc_export::command::main()
}
