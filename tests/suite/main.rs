//! The tests of the whole: HTTP or command line in, files and rows out, on a real Postgres.

#[cfg(test)]
mod account;
#[cfg(test)]
mod acks;
#[cfg(test)]
mod after;
#[cfg(feature = "amqp")]
#[cfg(test)]
mod amqp;
#[cfg(test)]
mod apply;
#[cfg(test)]
mod attacks;
#[cfg(test)]
mod buckets;
#[cfg(test)]
mod capture;
#[cfg(test)]
mod catalog;
#[cfg(test)]
mod command;
#[cfg(test)]
mod connections;
#[cfg(test)]
mod containers;
#[cfg(test)]
mod copies;
#[cfg(test)]
mod cors;
#[cfg(test)]
mod crashes;
#[cfg(test)]
mod datasets;
#[cfg(test)]
mod ddl;
#[cfg(test)]
mod demo;
#[cfg(test)]
mod docs;
#[cfg(test)]
mod download;
#[cfg(test)]
mod drain;
#[cfg(test)]
mod embedded;
#[cfg(test)]
mod events;
#[cfg(test)]
mod exports;
#[cfg(test)]
mod external_database;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod files;
#[cfg(test)]
mod followers;
#[cfg(test)]
mod formats;
#[cfg(test)]
mod guard;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod hosts;
#[cfg(test)]
mod http;
#[cfg(test)]
mod input;
#[cfg(test)]
mod jobs;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod lanes;
#[cfg(test)]
mod large;
#[cfg(test)]
mod layering;
#[cfg(test)]
mod lists;
#[cfg(test)]
mod local;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod looking;
#[cfg(test)]
mod lost_files;
#[cfg(test)]
mod maintenance;
#[cfg(test)]
mod manifests;
#[cfg(test)]
mod many_jobs;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod modes;
#[cfg(test)]
mod network;
#[cfg(test)]
mod odd_keys;
#[cfg(test)]
mod odd_values;
#[cfg(test)]
mod openapi;
#[cfg(test)]
mod operation;
#[cfg(test)]
mod order;
#[cfg(test)]
mod package;
#[cfg(test)]
mod page;
#[cfg(test)]
mod partitions;
#[cfg(test)]
mod parts;
#[cfg(test)]
mod pooler;
#[cfg(test)]
mod pull;
#[cfg(test)]
mod quiet;
#[cfg(test)]
mod readers;
#[cfg(test)]
mod remote;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod restores;
#[cfg(test)]
mod retention;
#[cfg(test)]
mod rights;
#[cfg(test)]
mod schedules;
#[cfg(test)]
mod settings;
#[cfg(test)]
mod soft_deletes;
#[cfg(test)]
mod source_files;
#[cfg(test)]
mod startup;
#[cfg(test)]
mod stress;
#[cfg(test)]
mod strict;
#[cfg(test)]
mod subscriptions;
#[cfg(test)]
mod tables;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod traces;
#[cfg(test)]
mod tracked;
#[cfg(test)]
mod types;
#[cfg(test)]
mod verify;
#[cfg(test)]
mod waiting;
#[cfg(test)]
mod webhooks;
