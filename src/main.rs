//! The binary: `cdc_export::command` is all of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    give_back_what_is_freed();
    cdc_export::command::main()
}

/// Has glibc return each large buffer to the system as soon as it is freed, as those of a row group are. Left alone,
/// glibc raises the size from which a buffer counts as large to that of the largest one freed so far, up to 32 MiB, and
/// keeps the smaller ones: after four exports to Parquet the service had twice as much. A size that is set isn't raised
/// (`mallopt(3)`, `M_MMAP_THRESHOLD`). This one is above a piece of text, of which an export of a million rows has
/// hundreds: to map each anew costs a tenth of the processor time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the call takes two numbers, and no other thread runs yet")]
fn give_back_what_is_freed() {
    use nix::libc::{M_MMAP_THRESHOLD, mallopt};

    const LARGE: i32 = 512 * 1024;
    // Where it isn't obeyed, only more memory is kept.
    unsafe { mallopt(M_MMAP_THRESHOLD, LARGE) };
}
