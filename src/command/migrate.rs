//! `migrate`: the schema, brought up to date.

use std::process::ExitCode;

use crate::config::CatalogFile;

use crate::command::database_handle::{Makes, with_database};
use crate::command::start::{Logs, block_on, settings};

/// Brings the database's schema up to date, as each command does that uses the database.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let config = settings(CatalogFile::Read, Logs::Errors)?;
    block_on(with_database(&config, Makes::Server, async |database| {
        outln!("{database}: the tables of cdc-export are up to date.")
    }))
}
