//! The binary: `cdc_export::command` is all of it. What asynchronous functions of the library do is compiled where they are called
//! from, and so a `main` that called them would compile most of the library a second time.

use std::process::ExitCode;

fn main() -> ExitCode {
    cdc_export::command::main()
}
