//! `migrate`: updates the schema of the service.

use std::process::ExitCode;

use crate::config::CatalogFile;

use crate::command::database_handle::{CreateMissing, with_database};
use crate::command::start::{Logs, block_on, settings};

/// Updates the schema in the database. Creates a private server if `DATABASE_URL` is unset and there is none.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let config = settings(CatalogFile::Read, Logs::Errors)?;
    block_on(with_database(&config, CreateMissing::Server, async |database| {
        outln!("{database}: the tables of cdc-export are up to date.")
    }))
}
