//! `cdc-export`: hands a table's rows to downstream consumers as files.
//!
//! The modules in reading order, from the nouns that all of them use to the edges; `docs/ARCHITECTURE.md` walks through
//! them.

// Nouns: plain values, no I/O.
pub mod broker;
pub mod database;
pub mod dataset;
pub mod duration;
pub mod event;
pub mod file;
pub mod job;
pub mod key;
pub mod manifest;
pub mod row;
pub mod schedule;
pub mod trace;
pub mod watermark;

// The way of a request: from HTTP to a row in `exports`.
pub mod config;
pub mod http;
pub mod service;
pub mod store;

// The way of an export: from a row in `exports` to a file.
pub mod maintenance;
pub mod pipeline;
pub mod publisher;
pub mod sink;
pub mod source;
pub mod worker;

// The way of an event: from a row in `cdc_export.deliveries` to its receiver.
pub mod delivery;
pub mod receiver;

// The way on: from a file to another database.
pub mod apply;

// The demo's table.
pub mod demo;

// The other side: callers of the API, and readers of its files.
mod client;

// The command line, which wires the modules.
pub mod command;

// Below both: the private server, the schema, connections, logs, TLS, and the faults that tests inject.
mod connection;
pub mod failpoint;
pub mod postgres;
pub mod telemetry;
pub mod tls;
