//! Checks that the manifests of a folder or bucket have no gap, and that their files are unchanged.
//!
//! Reads all manifests twice, on several threads. The first reading follows the chains and finds the required files.
//! The last reading checks the files. If the first reading finds a gap, there is another reading in between. The check
//! needs no database and no service, and writes nothing.

mod parallel;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::error::Error as _;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::digest::{self, SHA256};
use tokio::runtime::Handle;

use crate::Error;
use crate::observer::Observer;
use crate::verifier::parallel::{WorkQueue, in_parallel};
use cdc_destination::{self, Archive, Lookup};
use cdc_manifest::{Broken, ChainReport, Chains, Manifest, ManifestFile, PublicKey};

const READ_BYTES: usize = 256 << 10;
/// The maximum number of readings of a file if a bucket stops sending its bytes.
const TRIES: u32 = 3;

pub struct Verifier {
    archive: Box<dyn Archive>,
    readers: usize,
    /// The public halves of the keys. If there are any, one of them must have signed each manifest.
    keys: Vec<PublicKey>,
    observer: Arc<dyn Observer>,
    report: Report,
    counts: Counts,
    /// The files that were queued. Each is read once, also if several manifests name it.
    queued: Mutex<HashMap<NameHash, QueuedFile>>,
}

/// The first bytes of the SHA-256 of a file's name. A name itself would take more memory.
type NameHash = [u8; 16];

/// The properties with which a manifest has named a file.
struct QueuedFile {
    properties: [u8; 8],
    is_required: bool,
}

enum Queuing {
    First,
    /// It is queued already, with the same properties.
    Repeated,
    /// It is queued already, with other properties.
    Contradicted,
}

/// Reports a fault to the user. Several threads call it.
type Report = Box<dyn Fn(&Finding<'_>) -> io::Result<()> + Send + Sync>;

pub struct Finding<'f> {
    /// The export, if it is known.
    pub export: Option<&'f ExportId>,
    /// The name of the file or manifest. `-` if it has none.
    pub name: &'f str,
    pub fault: &'f str,
}

/// The lane and number of an export.
#[derive(Clone)]
pub struct ExportId {
    pub dataset: String,
    pub consumer: String,
    /// Its number in the lane. 0 if the number is unknown.
    pub number: u64,
}

pub struct Verification {
    pub lanes: usize,
    pub exports: usize,
    /// The number of unchanged files, and of their bytes.
    pub files: u64,
    pub bytes: u64,
    /// The number of missing files that aren't required any more.
    pub older: u64,
    pub faults: u64,
}

#[derive(Default)]
struct Counts {
    manifests: AtomicU64,
    /// The number of bytes that were checked or aren't required, and the number of all bytes.
    read: AtomicU64,
    all: AtomicU64,
    files: AtomicU64,
    bytes: AtomicU64,
    older: AtomicU64,
    faults: AtomicU64,
}

enum UnreadManifest {
    /// This process has no right to read it.
    Refused(String),
    /// It can't be read, or is not a manifest.
    Unreadable(String),
}

struct NamedFile {
    export: ExportId,
    name: String,
    file: ManifestFile,
    is_required: bool,
}

enum FileState {
    Whole(u64),
    Missing,
    Fault(String),
}

impl ExportId {
    fn from_manifest(manifest: &Manifest) -> ExportId {
        let export = &manifest.export;
        ExportId { dataset: export.dataset.clone(), consumer: export.consumer.clone(), number: manifest.number }
    }

    /// Parses the export from the object key of an unreadable manifest. The name of a manifest in a folder doesn't
    /// contain it.
    fn from_key(name: &str) -> Option<ExportId> {
        let parts: Vec<&str> = name.split('/').collect();
        let [dataset, consumer, _, file] = *parts else { return None };
        let number = file.split('.').next().and_then(|number| number.parse().ok()).unwrap_or_default();
        Some(ExportId { dataset: dataset.to_owned(), consumer: consumer.to_owned(), number })
    }
}

impl Verifier {
    /// Opens the place.
    ///
    /// # Errors
    /// [`Error::Usage`] if the place can't be read. Another error if the failure may pass.
    pub fn open(
        place: &cdc_destination::Settings,
        runtime: &Handle,
        keys: Vec<PublicKey>,
        observer: Arc<dyn Observer>,
        report: Report,
    ) -> Result<Verifier, Error> {
        let archive = place.archive(runtime).map_err(place_error)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let readers = archive.readers(cores);
        let (counts, queued) = (Counts::default(), Mutex::default());
        Ok(Verifier { archive, readers, keys, observer, report, counts, queued })
    }

    /// Checks all manifests and files, and reports each fault.
    pub fn run(&self) -> Result<Verification, Error> {
        let mut chains = ChainReport::new(self.reading(Chains::default(), Chains::add)?);
        if !chains.is_whole() {
            // The service may have published during the first reading.
            chains = ChainReport::new(self.reading(chains.into_chains(), Chains::add_missed)?);
        }
        in_parallel(
            self.readers,
            |files| self.each_manifest(|name, read| self.check_manifest(&chains, files, name, read)),
            |file: NamedFile| self.check_file(&file),
        )?;
        self.archive.require().map_err(place_error)?;
        for (dataset, consumer, number) in chains.not_seen() {
            let export = ExportId { dataset: dataset.to_owned(), consumer: consumer.to_owned(), number };
            self.fault(Some(&export), "-", "missing (its manifest was there a moment ago)")?;
        }
        self.observer.end();
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Ok(Verification {
            lanes: chains.lanes(),
            exports: chains.exports(),
            files: count(&self.counts.files),
            bytes: count(&self.counts.bytes),
            older: count(&self.counts.older),
            faults: count(&self.counts.faults),
        })
    }

    fn fault(&self, export: Option<&ExportId>, name: &str, fault: &str) -> Result<(), Error> {
        self.counts.faults.fetch_add(1, Ordering::Relaxed);
        (self.report)(&Finding { export, name, fault }).map_err(Error::Output)
    }

    /// Counts bytes that were read, or that aren't required.
    fn count_read(&self, bytes: u64) {
        let read = self.counts.read.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.observer.bytes(read, self.counts.all.load(Ordering::Relaxed));
    }

    /// Reads all manifests, and adds them to the chains.
    fn reading(&self, chains: Chains, add: fn(&mut Chains, &Manifest, &str)) -> Result<Chains, Error> {
        let chains = Mutex::new(chains);
        let (is_readable, refused) = (AtomicBool::new(false), Mutex::new((0, String::new())));
        self.counts.manifests.store(0, Ordering::Relaxed);
        self.counts.all.store(0, Ordering::Relaxed);
        self.each_manifest(|name, read| {
            self.observer.manifests(self.counts.manifests.fetch_add(1, Ordering::Relaxed) + 1);
            is_readable.fetch_or(!matches!(read, Err(UnreadManifest::Refused(_))), Ordering::Relaxed);
            match read {
                Ok(manifest) => {
                    self.counts.all.fetch_add(manifest.meta.content_length, Ordering::Relaxed);
                    let digest = manifest.export.digest();
                    add(&mut locked(&chains), &manifest, &digest);
                }
                Err(UnreadManifest::Refused(why)) => {
                    let mut refused = locked(&refused);
                    *refused = (refused.0 + 1, format!("{name}: {why}"));
                }
                Err(UnreadManifest::Unreadable(_)) => {}
            }
            Ok(())
        })?;
        self.observer.end();
        let (count, one) = refused.into_inner().unwrap_or_else(PoisonError::into_inner);
        let chains = chains.into_inner().unwrap_or_else(PoisonError::into_inner);
        if count > 0 && !is_readable.into_inner() && chains.is_empty() {
            return Err(Error::Usage(format!("no manifest can be read ({count} tried): {one}")));
        }
        Ok(chains)
    }

    /// Calls `work` for each manifest, on several threads. Skips a manifest that is removed at the same time.
    fn each_manifest(
        &self,
        work: impl Fn(&str, Result<Manifest, UnreadManifest>) -> Result<(), Error> + Sync,
    ) -> Result<(), Error> {
        let list = |names: &WorkQueue<String>| {
            for name in self.archive.manifests().map_err(place_error)? {
                if !names.send(name.map_err(place_error)?) {
                    break;
                }
            }
            Ok(())
        };
        in_parallel(self.readers, list, |name: String| match self.read(&name)? {
            Some(read) => work(&name, read),
            None => Ok(()),
        })
    }

    /// Reads and parses a manifest. Returns `None` if it is gone.
    fn read(&self, name: &str) -> Result<Option<Result<Manifest, UnreadManifest>>, Error> {
        let text = match self.archive.text(name) {
            Ok(Some(text)) => {
                return Ok(Some(Manifest::read(&text).map_err(|why| UnreadManifest::Unreadable(why.to_string()))));
            }
            text => text,
        };
        self.archive.require().map_err(place_error)?;
        match text {
            Err(error) if error.is_of_the_place() => Err(place_error(error)),
            Err(cdc_destination::Error::ReadOnly(why)) => Ok(Some(Err(UnreadManifest::Refused(why.to_string())))),
            Err(error) => Ok(Some(Err(UnreadManifest::Unreadable(cause(&error))))),
            Ok(_) => Ok(None),
        }
    }

    /// Reports the faults of a manifest, and queues its files.
    fn check_manifest(
        &self,
        chains: &ChainReport,
        files: &WorkQueue<NamedFile>,
        name: &str,
        read: Result<Manifest, UnreadManifest>,
    ) -> Result<(), Error> {
        let manifest = match read {
            Ok(manifest) => manifest,
            Err(UnreadManifest::Refused(why) | UnreadManifest::Unreadable(why)) => {
                return self.fault(ExportId::from_key(name).as_ref(), name, &format!("unreadable ({why})"));
            }
        };
        let checked = manifest.check(name, &self.keys);
        let is_right = checked != Err(Broken::Digest);
        let digest = if is_right { manifest.digest.clone() } else { manifest.export.digest() };
        // Skips a manifest that was published after the chains were followed.
        let Some(seen) = chains.see(&digest) else { return Ok(()) };
        let export = ExportId::from_manifest(&manifest);
        match checked {
            Ok(()) => {}
            Err(Broken::Unsigned) => self.fault(Some(&export), name, "unsigned")?,
            Err(broken) => self.fault(Some(&export), name, &format!("changed ({broken})"))?,
        }
        for fault in seen.faults {
            self.fault(Some(&export), name, &fault.to_string())?;
        }
        // If a manifest was changed, its entries for files may be wrong. With a key, only a signed manifest may choose
        // the files that are read.
        let is_trusted = if self.keys.is_empty() { is_right } else { checked.is_ok() };
        let mut names = HashSet::new();
        for (file, entry) in manifest.export.files.into_iter().zip(&manifest.entries).filter(|_| is_trusted) {
            let path = file.path.as_deref();
            let Some(found) = path.and_then(|path| self.archive.name_of(name, path)) else {
                let fault = if path.is_none() { "missing (its manifest has no path for it)" } else { "outside" };
                self.fault(Some(&export), path.unwrap_or(name), fault)?;
                continue;
            };
            if !self.archive.leads_to(&entry.url, &found) {
                self.fault(Some(&export), &found, "outside (its url leads to another file)")?;
            }
            if !names.insert(found.clone()) {
                self.fault(Some(&export), name, &format!("changed (it names {found} more than once)"))?;
                continue;
            }
            let named = NamedFile { export: export.clone(), name: found, file, is_required: seen.is_required };
            match self.queue(&named) {
                Queuing::First => drop(files.send(named)),
                Queuing::Repeated => {}
                Queuing::Contradicted => {
                    self.fault(Some(&export), &named.name, "changed (two manifests name it with different content)")?;
                }
            }
        }
        Ok(())
    }

    /// Records that a manifest names a file.
    fn queue(&self, named: &NamedFile) -> Queuing {
        let NamedFile { name, file, is_required, .. } = named;
        let properties = [&file.sha256, &file.bytes, &file.rows].map(String::as_str).join("\n");
        let properties = first_bytes(&properties);
        match locked(&self.queued).entry(first_bytes(name)) {
            Entry::Vacant(vacant) => {
                vacant.insert(QueuedFile { properties, is_required: *is_required });
                Queuing::First
            }
            Entry::Occupied(queued) if queued.get().properties != properties => Queuing::Contradicted,
            // If the file is missing, the first look has not reported it.
            Entry::Occupied(mut queued) if *is_required && !queued.get().is_required => {
                queued.get_mut().is_required = true;
                Queuing::First
            }
            Entry::Occupied(_) => Queuing::Repeated,
        }
    }

    /// Checks a file, and reports its fault. Retries if the storage fails temporarily.
    fn check_file(&self, named: &NamedFile) -> Result<(), Error> {
        let mut tries = 1;
        let state = loop {
            match self.file_state(named) {
                Err(error) if error.may_pass() && tries < TRIES => tries += 1,
                Err(error) if error.is_of_the_place() => return Err(place_error(error)),
                Err(error) => break FileState::Fault(format!("unreadable ({})", cause(&error))),
                Ok(state) => break state,
            }
        };
        if !matches!(state, FileState::Whole(_)) {
            self.archive.require().map_err(place_error)?;
        }
        let fault = match state {
            FileState::Whole(bytes) => {
                self.counts.files.fetch_add(1, Ordering::Relaxed);
                self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
                return Ok(());
            }
            FileState::Missing if !named.is_required => {
                self.counts.older.fetch_add(1, Ordering::Relaxed);
                self.count_read(named.file.bytes.parse().unwrap_or(0));
                return Ok(());
            }
            FileState::Missing => "missing".to_owned(),
            FileState::Fault(fault) => fault,
        };
        self.fault(Some(&named.export), &named.name, &fault)
    }

    fn file_state(&self, named: &NamedFile) -> Result<FileState, cdc_destination::Error> {
        let NamedFile { name, file: expected, .. } = named;
        let (bytes, mut file) = match self.archive.open_file(name)? {
            Lookup::Nothing => return Ok(FileState::Missing),
            Lookup::NoFile => return Ok(FileState::Fault("missing (there is a link or a folder)".to_owned())),
            Lookup::File(bytes, file) => (bytes, file),
        };
        if bytes.to_string() != expected.bytes {
            return Ok(FileState::Fault(format!("changed ({bytes} bytes, not {})", expected.bytes)));
        }
        let (mut hash, mut chunk) = (digest::Context::new(&SHA256), vec![0; READ_BYTES]);
        loop {
            let read = file.read(&mut chunk).map_err(|error| self.archive.failure(error))?;
            if read == 0 {
                break;
            }
            hash.update(&chunk[..read]);
            self.count_read(read as u64);
        }
        if hex::encode(hash.finish()) != expected.sha256 {
            return Ok(FileState::Fault("changed (another SHA-256)".to_owned()));
        }
        Ok(FileState::Whole(bytes))
    }
}

fn first_bytes<const N: usize>(text: &str) -> [u8; N] {
    let hash = digest::digest(&SHA256, text.as_bytes());
    *hash.as_ref().first_chunk().expect("a SHA-256 has 32 bytes")
}

/// Returns the error of an unreadable place. It is bad usage, unless it may pass.
fn place_error(error: cdc_destination::Error) -> Error {
    if error.may_pass() { error.into() } else { Error::Usage(cause(&error)) }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cause(error: &cdc_destination::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}
