//! `cdc-export`: exports the rows of tables as files for downstream consumers.
//!
//! The modules are listed in reading order. `docs/ARCHITECTURE.md` describes them.

// The example of a job in the API's document has more members than the default allows.
#![recursion_limit = "256"]

// The domain: plain values without I/O, which all other modules use.
pub mod audit;
pub mod duration;
pub mod event;
pub mod file;
pub mod freshness;
pub mod job;
pub mod key;
pub mod schedule;
pub mod trace;

// Requests: from HTTP to a row in `exports`.
pub mod catalog;
pub mod config;
pub mod http;
pub mod service;
pub mod store;

// Exports: from a row in `exports` to a file.
pub mod maintenance;
pub mod pipeline;
pub mod publisher;
pub mod worker;

// Events: from a row in `cdc_export.deliveries` to a receiver.
pub mod delivery;
pub mod receiver;

// The table of the demo.
pub mod demo;

// The command line, which creates and connects the parts of the service.
pub mod command;

// Infrastructure: the private server, the schema, connections and logs.
pub mod postgres;
pub mod telemetry;
