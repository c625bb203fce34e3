//! `verify`: checks a folder or bucket of exports by its manifests. Prints a line for each fault, and a summary.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::Args;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::command::plain::plain;
use crate::command::start::block_on;
use crate::command::terminal::Terminal;
use crate::config::Environment;
use cdc_client::{ExportId, Finding, Verification, Verifier};
use cdc_manifest::PublicKey;

/// The place, and the options of the check.
#[derive(Args)]
pub(crate) struct Verify {
    /// The folder, or the URL of a bucket as in OUTPUT_URL, such as s3://BUCKET/PREFIX
    place: String,
    /// Require that each manifest is signed. KEY is the public key in 64 hexadecimal digits, which the service logs
    /// when it starts. With several keys, any of them
    #[arg(long, value_name = "KEY")]
    public_key: Vec<PublicKey>,
}

impl Verify {
    /// Prints the faults. The exit code is 1 if there are faults, or no manifests.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let place = Environment::read()?.place(&self.place)?;
        block_on(async {
            let (runtime, terminal) = (Handle::current(), Terminal::shared());
            let shown = Arc::clone(&terminal);
            let report = move |finding: &Finding<'_>| shown.suspend(|| print_fault(finding));
            let at_place = place.to_string();
            let verify = move || Verifier::open(&place, &runtime, self.public_key, terminal, Box::new(report))?.run();
            let verification = spawn_blocking(verify).await?.map_err(closed_stdout_error).context(at_place)?;
            summarize(&verification)
        })
    }
}

fn print_fault(Finding { export, name, fault }: &Finding<'_>) -> io::Result<()> {
    // Any user with write access to the place may have chosen these names.
    let word = |text: &str| plain(text).replace(char::is_whitespace, "\\u{20}");
    let export = match export {
        Some(ExportId { dataset, consumer, number }) => format!("{}/{} {number}", word(dataset), word(consumer)),
        None => "- -".to_owned(),
    };
    writeln!(io::stdout(), "{export} {}: {}", plain(name), plain(fault))
}

/// Prints the summary. Returns a failure if there are faults, or no manifests.
fn summarize(verification: &Verification) -> anyhow::Result<ExitCode> {
    let Verification { lanes, exports, files, bytes, older, faults } = *verification;
    if exports == 0 && faults == 0 {
        writeln!(io::stdout(), "no manifests").map_err(cdc_client::Error::Output).map_err(closed_stdout_error)?;
        return Ok(ExitCode::FAILURE);
    }
    let counted = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let (lanes, exports) = (counted(lanes as u64, "lane"), counted(exports as u64, "export"));
    let (files, bytes, older) = (counted(files, "file"), counted(bytes, "byte"), counted(older, "older file"));
    let verdict = if faults == 0 { "whole".to_owned() } else { counted(faults, "fault") };
    let printed = writeln!(io::stdout(), "{verdict}: {lanes}, {exports}, {files}, {bytes}; {older} gone");
    printed.map_err(cdc_client::Error::Output).map_err(closed_stdout_error)?;
    Ok(if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Converts a closed standard output into a failure: its reader has not seen the whole result.
fn closed_stdout_error(error: cdc_client::Error) -> anyhow::Error {
    match &error {
        cdc_client::Error::Output(why) if why.kind() == io::ErrorKind::BrokenPipe => {
            anyhow!("the reader of standard output has closed it before the end")
        }
        _ => error.into(),
    }
}
