//! The binary: `cdc_export::command` is all of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    give_back_what_is_freed();
    cdc_export::command::main()
}

/// Keeps glibc's own first threshold, above which a buffer is a mapping of its own that goes back to the system when it is freed. Left
/// alone, glibc raises it to the size of what was freed, up to 32 MiB, and keeps all of that for later: after four exports to Parquet
/// three times as much (`mallopt(3)`, `M_MMAP_THRESHOLD`).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the call takes two numbers, and no other thread runs yet")]
fn give_back_what_is_freed() {
    use nix::libc::{M_MMAP_THRESHOLD, mallopt};

    const FIRST_THRESHOLD: i32 = 128 * 1024;
    // Where it isn't obeyed, only more memory is kept.
    unsafe { mallopt(M_MMAP_THRESHOLD, FIRST_THRESHOLD) };
}
