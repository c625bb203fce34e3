//! The binary: `cdc_export::command` is all of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    give_back_what_is_freed();
    cdc_export::command::main()
}

/// Gives what is freed back to the system, if it was large, as a buffer of a row group is. To glibc large is at first what has 128 KiB; but
/// it takes the size of whatever is freed for its next measure, up to 32 MiB, and keeps all of that for later: after four exports to Parquet
/// twice as much. A measure that is set stays (`mallopt(3)`, `M_MMAP_THRESHOLD`). It is above a piece of text, of which an export
/// of a million rows has hundreds: mapping each anew costs a tenth of the processor time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the call takes two numbers, and no other thread runs yet")]
fn give_back_what_is_freed() {
    use nix::libc::{M_MMAP_THRESHOLD, mallopt};

    const LARGE: i32 = 512 * 1024;
    // Where it isn't obeyed, only more memory is kept.
    unsafe { mallopt(M_MMAP_THRESHOLD, LARGE) };
}
