//! Tests of the whole that take more than 20 seconds each, or many seconds of the processors:
//! `cargo test --features expensive --test expensive`.
//!
//! A test is in the file that has the name of its file in `tests/suite`. What the tests of both need is there.

// So that clippy takes all of it for tests, where `unwrap` is allowed.
#![cfg(test)]
#![expect(dead_code, reason = "the other tests use more of the harness")]

#[path = "../suite/catalog.rs"]
mod catalog;
#[path = "../suite/continuity.rs"]
mod continuity;
#[path = "../suite/harness.rs"]
mod harness;
#[path = "../suite/programs.rs"]
mod programs;

#[cfg(feature = "amqp")]
mod amqp;
mod apply;
mod attacks;
mod connections;
mod ddl;
mod guard;
mod lanes;
mod many_jobs;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod mirrors;
mod odd_keys;
mod parts;
mod plans;
mod quiet;
mod restores;
mod schedules;
mod soft_deletes;
mod tables;
mod waiting;
