//! Tests of the whole that take more than 20 seconds each: `cargo test --features expensive --test expensive`.

// So that clippy takes all of it for tests, where `unwrap` is allowed.
#![cfg(test)]
#![expect(dead_code, reason = "the other tests use more of the harness")]

#[path = "../suite/catalog.rs"]
mod catalog;
#[path = "../suite/harness.rs"]
mod harness;

mod lanes;
mod many_jobs;
#[cfg(target_os = "linux")]
mod memory;
