//! The report of `verify`: a line for each fault, and one that sums up.

use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::manifest::File;
use crate::manifest::chain_report::ChainReport;
use anyhow::anyhow;
use indicatif::ProgressBar;

use crate::command::plain::plain;
use crate::command::progress::bar_of_bytes;

/// The export that a line is about: its dataset, consumer and number.
#[derive(Clone)]
pub(super) struct Export(String);

impl Export {
    pub(super) fn new(dataset: &str, consumer: &str, number: u64) -> Export {
        // Anybody who may write to the place chose these names.
        let word = |text: &str| plain(text).replace(char::is_whitespace, "\\u{20}");
        Export(format!("{}/{} {number}", word(dataset), word(consumer)))
    }

    /// Reads the export from the key of an unreadable manifest in a bucket. The name of one in a folder doesn't say it.
    pub(super) fn of_key(name: &str) -> Export {
        let parts: Vec<&str> = name.split('/').collect();
        match *parts {
            [dataset, consumer, _, file] => {
                let number = file.split('.').next().and_then(|number| number.parse().ok());
                Export::new(dataset, consumer, number.unwrap_or_default())
            }
            _ => Export("- -".to_owned()),
        }
    }
}

/// The faults and the counts so far.
pub(super) struct Report {
    bar: ProgressBar,
    faults: AtomicU64,
    files: AtomicU64,
    bytes: AtomicU64,
    older: AtomicU64,
}

impl Report {
    /// Starts a report on files that have so many bytes together.
    pub(super) fn new(bytes: u64) -> Report {
        let zero = AtomicU64::default;
        Report { bar: bar_of_bytes(bytes), faults: zero(), files: zero(), bytes: zero(), older: zero() }
    }

    /// Counts bytes that were read.
    pub(super) fn read(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Counts a file that is as it was exported.
    pub(super) fn whole(&self, bytes: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a missing file that isn't needed.
    pub(super) fn older(&self, file: &File) {
        self.older.fetch_add(1, Ordering::Relaxed);
        self.bar.inc(file.bytes.parse().unwrap_or(0));
    }

    /// Prints what is wrong with the file or manifest of this name.
    pub(super) fn fault(&self, Export(export): &Export, name: &str, fault: &str) -> anyhow::Result<()> {
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.bar.suspend(|| outln!("{export} {}: {}", plain(name), plain(fault))).map_err(unread)
    }

    /// Prints the last line. Fails if there are faults, or no manifests.
    pub(super) fn finish(self, chains: &ChainReport) -> anyhow::Result<ExitCode> {
        self.bar.finish_and_clear();
        let faults = self.faults.into_inner();
        if chains.exports() == 0 && faults == 0 {
            outln!("no manifests").map_err(unread)?;
            return Ok(ExitCode::FAILURE);
        }
        let counted = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let (lanes, exports) = (counted(chains.lanes() as u64, "lane"), counted(chains.exports() as u64, "export"));
        let (files, bytes) = (counted(self.files.into_inner(), "file"), counted(self.bytes.into_inner(), "byte"));
        let older = counted(self.older.into_inner(), "older file");
        let verdict = if faults == 0 { "whole".to_owned() } else { counted(faults, "fault") };
        outln!("{verdict}: {lanes}, {exports}, {files}, {bytes}; {older} gone").map_err(unread)?;
        Ok(if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The error of a closed standard output: its reader doesn't know yet if the place is whole.
fn unread(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<io::Error>() {
        Some(why) if why.kind() == io::ErrorKind::BrokenPipe => {
            anyhow!("whoever reads standard output has closed it before the end")
        }
        _ => error,
    }
}
