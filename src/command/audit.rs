//! `audit`: lists the audit log.

use std::process::ExitCode;

use crate::audit::{Action, AuditFilter};
use crate::config::CatalogFile;
use crate::job::ConsumerId;
use chrono::{DateTime, Utc};
use clap::Args;

use crate::client::api::Api;
use crate::client::job_view::cell;
use crate::command::server::ServerOption;
use crate::command::terminal::print_if_more;
use crate::command::words::words;

/// The filters of the audit log.
#[derive(Args)]
pub(crate) struct ListAudit {
    /// List the requests with this key only: its prefix, or schedule:NAME, amqp:NAME or cli:USER
    #[arg(long, value_name = "PREFIX")]
    key: Option<String>,
    /// List the requests for this consumer only
    #[arg(long, value_name = "ID")]
    consumer: Option<ConsumerId>,
    /// List the requests for this dataset only
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// List the requests with this action only
    #[arg(long, value_parser = words::<Action>(Action::ALL.iter().map(|it| it.as_str())))]
    action: Option<Action>,
    /// List the requests at this time or later only, such as 2026-11-20T00:00:00Z
    #[arg(long, value_name = "TIME")]
    from: Option<DateTime<Utc>>,
    /// List the requests before this time only
    #[arg(long, value_name = "TIME")]
    to: Option<DateTime<Utc>>,
    /// List at most this many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: u32,
    /// Print each request as JSON, one on a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: ServerOption,
}

impl ListAudit {
    /// Prints the rows of the audit log, newest first.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        self.at.run(CatalogFile::Read, async |api| self.list(api).await)
    }

    async fn list(&self, api: &Api) -> anyhow::Result<()> {
        let filter = AuditFilter {
            key: self.key.clone(),
            consumer: self.consumer.clone(),
            dataset: self.dataset.clone(),
            action: self.action,
            from: self.from,
            to: self.to,
            before: None,
        };
        let (entries, has_more) = api.audit(&filter, self.limit).await?;
        if self.json {
            entries.iter().try_for_each(|entry| outln!("{entry}"))?;
        } else {
            outln!(
                "{:<27} {:<20} {:<16} {:<16} {:<24} {:<16} {:<36} {:<24} COUNT",
                "AT",
                "KEY",
                "REMOTE",
                "ACTION",
                "CONSUMER",
                "DATASET",
                "EXPORT",
                "OUTCOME"
            )?;
            for entry in &entries {
                let [at, key, remote, action, consumer, dataset, job, outcome, count] =
                    ["at", "key", "remote", "action", "consumerId", "dataset", "jobId", "outcome", "count"]
                        .map(|name| cell(entry, &format!("/{name}")));
                outln!(
                    "{at:<27} {key:<20} {remote:<16} {action:<16} {consumer:<24} {dataset:<16} {job:<36} {outcome:<24} {count}"
                )?;
            }
        }
        print_if_more(has_more);
        Ok(())
    }
}
