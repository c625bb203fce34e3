//! `mask`: accepts a new secret of masks, or the end of a mask.

use std::process::ExitCode;

use clap::Subcommand;

use crate::command::BadUsage;
use crate::command::database_handle::{CreateMissing, with_database};
use crate::command::start::{Logs, block_on, settings};
use crate::config::CatalogFile;
use crate::store::Store;

/// The actions on masks.
#[derive(Subcommand)]
pub(crate) enum MaskCommand {
    /// Accept the secret in MASK_SECRET in place of the one before. Each dataset that masks a column by `hmac` then
    /// needs a full export
    Rotate,
    /// Let the files of a dataset have the values of columns that its exports masked, if the file masks them no more
    Drop {
        /// The dataset
        dataset: String,
    },
}

impl MaskCommand {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let config = settings(CatalogFile::Unread, Logs::Errors)?;
        if let MaskCommand::Drop { dataset } = self {
            return block_on(with_database(&config, CreateMissing::Tables, async |database| {
                let columns = Store::new(database.pool()).forget_masks(&dataset).await?;
                outln!("{columns} columns of {dataset} need no mask any more, unless the file has one.")
            }));
        }
        let secret = config.worker.mask_secret.clone();
        let secret =
            secret.ok_or_else(|| BadUsage("MASK_SECRET: it is unset, so there is no secret to accept".to_owned()))?;
        block_on(with_database(&config, CreateMissing::Tables, async |database| {
            let rotated = Store::new(database.pool()).rotate_mask_secret(&secret.fingerprint).await?;
            match rotated {
                true => outln!(
                    "The secret in MASK_SECRET is accepted. Start all processes again with it; then each dataset that masks a column by \
                     hmac needs a full export for each consumer."
                ),
                false => outln!("The secret in MASK_SECRET was accepted before: nothing has changed."),
            }
        }))
    }
}
