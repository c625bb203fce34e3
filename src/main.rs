//! The binary. All of its code is in `cdc_export::command`.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    return_freed_buffers_to_system();
    cdc_export::command::main()
}

/// Makes glibc return each large buffer, for example that of a row group, to the system as soon as it is freed.
///
/// By default, glibc raises the size threshold of large buffers to the largest buffer freed so far, up to 32 MiB. It
/// keeps smaller buffers. After four exports to Parquet, the memory of the service had doubled. glibc doesn't raise a
/// threshold that was set explicitly (`mallopt(3)`, `M_MMAP_THRESHOLD`).
///
/// Both thresholds are above the size of a piece of text, because an export of a million rows allocates hundreds of
/// those. To get the memory of each anew from the system costs a tenth of the processor time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the calls take two numbers, and no other thread runs yet")]
fn return_freed_buffers_to_system() {
    use nix::libc::{M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};

    const LARGE: i32 = 512 * 1024;
    // If glibc ignores the calls, the process only keeps more memory.
    unsafe {
        mallopt(M_MMAP_THRESHOLD, LARGE);
        mallopt(M_TRIM_THRESHOLD, 2 * LARGE);
    }
}
