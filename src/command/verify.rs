//! `verify`: checks that the manifests of a place have no gap, and that its files are as they were exported.
//!
//! Reads all manifests twice, on several threads: first to follow the chains and to learn which files are needed, then
//! to check the files. If the first reading finds a gap, there is one more in between. Needs no database and no
//! service, and writes nothing.

mod parallel;
mod report;
mod rows;

use std::error::Error as _;
use std::io::Read;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::Environment;
use crate::manifest::chain::Chains;
use crate::manifest::chain_report::ChainReport;
use crate::manifest::seal::{Broken, PublicKey};
use crate::manifest::{File, Manifest};
use crate::sink::{self, Archive, Lookup};
use anyhow::Context;
use clap::Args;
use ring::digest::{self, SHA256};
use tokio::runtime::Handle;

use crate::command::BadUsage;
use crate::command::progress::bar_of_manifests;
use crate::command::start::block_on;
use crate::command::verify::parallel::{Queue, in_parallel};
use crate::command::verify::report::{Export, Report};
use crate::command::verify::rows::Counter;

/// How many bytes of a file are read at once.
const READ_BYTES: usize = 256 << 10;
/// How often a file is read if a bucket stops sending its bytes.
const TRIES: u32 = 3;

/// The place, and how to check it.
#[derive(Args)]
pub(crate) struct Verify {
    /// Where the files are: a folder, or a URL as OUTPUT_URL has it, such as s3://BUCKET/PREFIX
    place: String,
    /// Count the rows of each file, too
    #[arg(long)]
    deep: bool,
    /// Require that each manifest is signed with the key of which this is the public half: 64 hexadecimal digits, as the service's log says them at its start
    #[arg(long, value_name = "KEY")]
    public_key: Option<PublicKey>,
}

impl Verify {
    /// Prints a line for each fault, and one that sums up. Exit code 1: there are faults, or no manifests.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let settings = Environment::read()?.place(&self.place)?;
        block_on(async {
            let runtime = Handle::current();
            tokio::task::spawn_blocking(move || self.verify(&settings, &runtime)).await?
        })
    }

    fn verify(self, settings: &sink::Settings, runtime: &Handle) -> anyhow::Result<ExitCode> {
        let verify = || {
            let archive = settings.archive(runtime).map_err(unusable)?;
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let readers = archive.readers(cores);
            Verifier { archive, readers, deep: self.deep, key: self.public_key }.run()
        };
        verify().with_context(|| settings.to_string())
    }
}

/// Why a manifest isn't read.
enum Unread {
    /// We have no right to read it.
    Refused(String),
    /// It can't be read, or is not a manifest.
    Unreadable(String),
}

/// A file that a manifest names.
struct Checked {
    export: Export,
    name: String,
    file: File,
    format: String,
    compression: String,
    is_required: bool,
}

/// The result of the check of a file.
enum Outcome {
    Whole(u64),
    Missing,
    Fault(String),
}

struct Verifier {
    archive: Box<dyn Archive>,
    readers: usize,
    deep: bool,
    key: Option<PublicKey>,
}

impl Verifier {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let (chains, bytes) = self.first_reading()?;
        let mut chains = ChainReport::new(chains);
        if !chains.is_whole() {
            chains = ChainReport::new(self.second_reading(chains.into_chains())?);
        }
        let report = Report::new(bytes);
        in_parallel(
            self.readers,
            |files| self.each_manifest(|name, read| self.manifest(&report, &chains, files, name, read)),
            |file: Checked| self.file(&report, &file),
        )?;
        self.archive.require().map_err(unusable)?;
        for (dataset, consumer, number) in chains.not_seen() {
            let export = Export::new(dataset, consumer, number);
            report.fault(&export, "-", "missing (its manifest was there a moment ago)")?;
        }
        report.finish(&chains)
    }

    /// Reads all manifests. Returns their chains, and how many bytes their files have.
    fn first_reading(&self) -> anyhow::Result<(Chains, u64)> {
        let (chains, bytes, bar) = (Mutex::new(Chains::default()), AtomicU64::new(0), bar_of_manifests());
        let (is_readable, refused) = (AtomicBool::new(false), Mutex::new((0, String::new())));
        self.each_manifest(|name, read| {
            bar.inc(1);
            is_readable.fetch_or(!matches!(read, Err(Unread::Refused(_))), Ordering::Relaxed);
            match read {
                Ok(manifest) => {
                    bytes.fetch_add(manifest.meta.content_length, Ordering::Relaxed);
                    let digest = manifest.export.digest();
                    locked(&chains).add(&manifest, &digest);
                }
                Err(Unread::Refused(why)) => {
                    let mut refused = locked(&refused);
                    *refused = (refused.0 + 1, format!("{name}: {why}"));
                }
                Err(Unread::Unreadable(_)) => {}
            }
            Ok(())
        })?;
        bar.finish_and_clear();
        let (count, one) = refused.into_inner().unwrap_or_else(PoisonError::into_inner);
        if count > 0 && !is_readable.into_inner() {
            return Err(BadUsage(format!("no manifest can be read ({count} tried): {one}")).into());
        }
        Ok((chains.into_inner().unwrap_or_else(PoisonError::into_inner), bytes.into_inner()))
    }

    /// Reads all manifests again, for those that the first reading missed because the service published meanwhile.
    fn second_reading(&self, chains: Chains) -> anyhow::Result<Chains> {
        let (chains, bar) = (Mutex::new(chains), bar_of_manifests());
        self.each_manifest(|_, read| {
            bar.inc(1);
            let Ok(manifest) = read else { return Ok(()) };
            let digest = manifest.export.digest();
            locked(&chains).add_missed(&manifest, &digest);
            Ok(())
        })?;
        bar.finish_and_clear();
        Ok(chains.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls `work` for each manifest, on several threads. Skips a manifest that is removed meanwhile.
    fn each_manifest(
        &self,
        work: impl Fn(&str, Result<Manifest, Unread>) -> anyhow::Result<()> + Sync,
    ) -> anyhow::Result<()> {
        let list = |names: &Queue<String>| {
            for name in self.archive.manifests().map_err(unusable)? {
                if !names.send(name.map_err(unusable)?) {
                    break;
                }
            }
            Ok(())
        };
        in_parallel(self.readers, list, |name: String| {
            let text = match self.archive.text(&name) {
                Ok(Some(text)) => {
                    return work(&name, Manifest::read(&text).map_err(|why| Unread::Unreadable(why.to_string())));
                }
                text => text,
            };
            self.archive.require().map_err(unusable)?;
            match text {
                Err(error) if error.is_of_the_place() => Err(unusable(error)),
                Err(sink::Error::ReadOnly(why)) => work(&name, Err(Unread::Refused(why.to_string()))),
                Err(error) => work(&name, Err(Unread::Unreadable(cause(&error)))),
                Ok(_) => Ok(()),
            }
        })
    }

    /// Reports what is wrong with a manifest, and queues its files.
    fn manifest(
        &self,
        report: &Report,
        chains: &ChainReport,
        files: &Queue<Checked>,
        name: &str,
        read: Result<Manifest, Unread>,
    ) -> anyhow::Result<()> {
        let manifest = match read {
            Ok(manifest) => manifest,
            Err(Unread::Refused(why) | Unread::Unreadable(why)) => {
                return report.fault(&Export::of_key(name), name, &format!("unreadable ({why})"));
            }
        };
        let checked = manifest.check(name, self.key.as_ref());
        let is_right = checked != Err(Broken::Digest);
        let digest = if is_right { manifest.digest.clone() } else { manifest.export.digest() };
        // A manifest that was published after the chains were followed is left out.
        let Some(seen) = chains.see(&digest) else { return Ok(()) };
        let export = Export::new(&manifest.export.dataset, &manifest.export.consumer, manifest.number);
        match checked {
            Ok(()) => {}
            Err(Broken::Unsigned) => report.fault(&export, name, "unsigned")?,
            Err(broken) => report.fault(&export, name, &format!("changed ({broken})"))?,
        }
        for fault in seen.faults {
            report.fault(&export, name, &fault.to_string())?;
        }
        // If its content was changed, so may be what it says of its files.
        for file in manifest.export.files.into_iter().filter(|_| is_right) {
            let path = file.path.as_deref();
            let Some(found) = path.and_then(|path| self.archive.name_of(name, path)) else {
                let fault = if path.is_none() { "missing (its manifest has no path for it)" } else { "outside" };
                report.fault(&export, path.unwrap_or(name), fault)?;
                continue;
            };
            let (format, compression) = (manifest.export.format.clone(), manifest.export.compression.clone());
            let is_required = seen.is_required;
            files.send(Checked { export: export.clone(), name: found, file, format, compression, is_required });
        }
        Ok(())
    }

    /// Checks a file, again if the store fails, and reports the result.
    fn file(&self, report: &Report, checked: &Checked) -> anyhow::Result<()> {
        let mut tries = 1;
        let outcome = loop {
            match self.check(report, checked) {
                Err(error) if error.may_pass() && tries < TRIES => tries += 1,
                Err(error) if error.is_of_the_place() => return Err(unusable(error)),
                Err(error) => break Outcome::Fault(format!("unreadable ({})", cause(&error))),
                Ok(outcome) => break outcome,
            }
        };
        if !matches!(outcome, Outcome::Whole(_)) {
            self.archive.require().map_err(unusable)?;
        }
        match outcome {
            Outcome::Whole(bytes) => report.whole(bytes),
            Outcome::Missing if !checked.is_required => report.older(&checked.file),
            Outcome::Missing => report.fault(&checked.export, &checked.name, "missing")?,
            Outcome::Fault(fault) => report.fault(&checked.export, &checked.name, &fault)?,
        }
        Ok(())
    }

    /// Compares a file with its manifest.
    fn check(&self, report: &Report, checked: &Checked) -> Result<Outcome, sink::Error> {
        let Checked { name, file: expected, format, compression, .. } = checked;
        let (bytes, mut file) = match self.archive.open_file(name)? {
            Lookup::Nothing => return Ok(Outcome::Missing),
            Lookup::NoFile => return Ok(Outcome::Fault("missing (there is a link or a folder)".to_owned())),
            Lookup::File(bytes, file) => (bytes, file),
        };
        if bytes.to_string() != expected.bytes {
            return Ok(Outcome::Fault(format!("changed ({bytes} bytes, not {})", expected.bytes)));
        }
        let (mut hash, mut chunk) = (digest::Context::new(&SHA256), vec![0; READ_BYTES]);
        let mut counter = Counter::new(format, compression).filter(|_| self.deep);
        loop {
            let read = file.read(&mut chunk).map_err(|error| self.archive.failure(error))?;
            if read == 0 {
                break;
            }
            hash.update(&chunk[..read]);
            report.read(read as u64);
            // If the file can't be unpacked, its rest is hashed all the same.
            if let Some(Ok(rows)) = &mut counter
                && let Err(error) = rows.take(&chunk[..read])
            {
                counter = Some(Err(error));
            }
        }
        if hex::encode(hash.finish()) != expected.sha256 {
            return Ok(Outcome::Fault("changed (another SHA-256)".to_owned()));
        }
        if !self.deep {
            return Ok(Outcome::Whole(bytes));
        }
        let rows = match counter {
            Some(counter) => counter.and_then(Counter::finish),
            None => rows::of_parquet(bytes, &*file),
        };
        Ok(match rows {
            Ok(rows) if rows.to_string() == expected.rows => Outcome::Whole(bytes),
            Ok(rows) => Outcome::Fault(format!("changed ({rows} rows, not {})", expected.rows)),
            Err(error) => Outcome::Fault(format!("unreadable ({error})")),
        })
    }
}

/// The error of a place that can't be read: bad usage unless it may pass.
fn unusable(error: sink::Error) -> anyhow::Error {
    if error.may_pass() { error.into() } else { BadUsage(cause(&error)).into() }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The message of the system or the store.
fn cause(error: &sink::Error) -> String {
    match error {
        sink::Error::Unavailable(_) => error.to_string(),
        _ => error.source().map_or_else(|| error.to_string(), ToString::to_string),
    }
}
