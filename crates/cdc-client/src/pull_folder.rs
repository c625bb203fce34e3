//! The folder into which `pull` downloads the files of a lane's exports, each file once.
//!
//! An export is written in four steps. Its files are downloaded under hidden names. The state of the folder lists their
//! final names. The files get these names. The state records the export as the last one.
//!
//! The user may move files away at any time. If `pull` is killed, the next call continues with the recorded step, so
//! that each file gets its name once.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pg_rows::encoding::Format;
use serde::{Deserialize, Serialize};

use crate::api::Api;
use crate::download::{export_files, fetch_part, part_path, rename_without_replacing, sync_folder_of};
use crate::job_view::ExportView;
use crate::lane_group::LaneGroup;
use crate::lane_reader::{ExportSink, LanePosition, LaneReader, SinkOutcome};
use crate::observer::Observer;
use crate::{About, Error, own_file};
use cdc_manifest::{Chained, ConsumerId, Lane, MOST_FILES, Manifest, ManifestSource, PlainName, file_names};
use failpoint::failpoint;

const VERSION: u32 = 1;
const STATE: &str = ".cdc-export-pull.json";
const LOCK: &str = ".cdc-export-pull.lock";

/// The state of a folder, as it is stored in the folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FolderState {
    version: u32,
    consumer: String,
    dataset: String,
    /// The database that the rows are from. `None` before the first export.
    source: Option<ManifestSource>,
    /// The last export whose files have their final names.
    last: Option<LanePosition>,
    /// The export whose files are complete on disk and are being renamed.
    naming: Option<PendingNames>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PendingNames {
    position: LanePosition,
    /// The name of the export, from which the names of its files and of its manifest are derived.
    name: PlainName,
    files: usize,
}

/// A folder that is locked for this process.
pub struct PullFolder {
    folder: PathBuf,
    state: FolderState,
    group: Arc<LaneGroup>,
    /// The format that the user expects, if they named one.
    expected: Option<Format>,
    /// The lock is held until this file is closed.
    _lock: File,
}

/// The reaction to a folder that another process has locked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum WhenLocked {
    Wait,
    /// Return an error, so that other folders don't wait for this one.
    Refuse,
}

fn read_state(folder: &Path) -> Result<Option<FolderState>, Error> {
    let path = folder.join(STATE);
    let text = match own_file::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.about(|| path.display())?,
    };
    let state: FolderState = serde_json::from_slice(&text).about(|| path.display())?;
    if state.version != VERSION {
        let why = format!("{}: a later version of cdc-export has written this folder", path.display());
        return Err(Error::Refused(why));
    }
    Ok(Some(state))
}

impl PullFolder {
    /// Reads the dataset of a folder's exports. Returns `None` if the folder has no state.
    pub fn dataset_of(folder: &Path) -> Result<Option<String>, Error> {
        Ok(read_state(folder)?.map(|state| state.dataset))
    }

    /// Lists the datasets of a consumer that have a folder of their own within this one.
    pub fn datasets_in(folder: &Path, consumer: &ConsumerId) -> Result<BTreeSet<String>, Error> {
        let mut datasets = BTreeSet::new();
        for entry in fs::read_dir(folder)? {
            // A state that can't be read is an error of its dataset.
            let state = read_state(&entry?.path()).ok().flatten();
            datasets.extend(state.filter(|state| state.consumer == consumer.as_str()).map(|state| state.dataset));
        }
        Ok(datasets)
    }

    /// Copies all exports of the lane that the folder lacks, oldest first, as [`LaneReader`] says.
    pub async fn follow(&mut self, lane: &LaneReader<'_>) -> Result<(), Error> {
        if lane.adopts {
            self.require_no_exports("--adopt")?;
        } else if self.state.last.is_none() {
            self.require_no_exports("a pull that finds no `.cdc-export-pull.json`")?;
        }
        lane.round(self).await
    }

    /// Returns an error if the folder has manifests. Those of the next exports may have a lower `order`.
    fn require_no_exports(&self, caller: &str) -> Result<(), Error> {
        let at_folder = || self.folder.display();
        for entry in fs::read_dir(&self.folder).about(at_folder)? {
            if entry.about(at_folder)?.file_name().to_str().is_some_and(Manifest::is_name_in_folder) {
                let why =
                    "load and remove its files and manifests, or pull into another one: the next `order` may be lower";
                return Err(Error::Refused(format!("{caller} needs an empty folder, not {}: {why}", at_folder())));
            }
        }
        Ok(())
    }

    /// Opens the folder, and creates it if it is missing. Locks it until the returned value is dropped. Then renames
    /// the files that a killed process has not renamed.
    pub fn open(
        folder: &Path,
        Lane { consumer, dataset }: Lane<'_>,
        group: Arc<LaneGroup>,
        expected: Option<Format>,
        when_locked: WhenLocked,
        observer: &dyn Observer,
    ) -> Result<PullFolder, Error> {
        let at_folder = || folder.display();
        fs::create_dir_all(folder).about(at_folder)?;
        let lock_path = folder.join(LOCK);
        let lock = own_file::open(&lock_path, File::options().create(true).truncate(false).write(true));
        let lock = lock.about(|| lock_path.display())?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if when_locked == WhenLocked::Refuse => {
                return Err(Error::Refused(format!("another process fills {}", folder.display())));
            }
            Err(TryLockError::WouldBlock) => {
                observer.notice(&format!("another process fills {}: waiting until it ends", folder.display()));
                lock.lock().about(at_folder)?;
            }
            Err(TryLockError::Error(error)) => return Err(error).about(at_folder),
        }
        let (consumer, dataset) = (consumer.to_string(), dataset.to_owned());
        let new = FolderState { version: VERSION, consumer, dataset, source: None, last: None, naming: None };
        let state = read_state(folder)?.unwrap_or_else(|| new.clone());
        if (&state.consumer, &state.dataset) != (&new.consumer, &new.dataset) {
            return Err(Error::Refused(format!(
                "{} has the exports of {} of the consumer {}: another consumer or dataset needs another folder",
                folder.display(),
                state.dataset,
                state.consumer
            )));
        }
        let mut opened = PullFolder { folder: folder.to_owned(), state, group, expected, _lock: lock };
        opened.name_files()?;
        Ok(opened)
    }

    /// Writes the state to disk, and replaces the previous state.
    fn save(&self) -> Result<(), Error> {
        let path = self.folder.join(STATE);
        let text = serde_json::to_string_pretty(&self.state)? + "\n";
        let draft = self.folder.join(format!("{STATE}.part"));
        let written = write_new(&draft, &text).and_then(|()| fs::rename(&draft, &path));
        written.about(|| path.display())?;
        sync_folder_of(&path)
    }

    fn name_files(&mut self) -> Result<(), Error> {
        let Some(PendingNames { position, name, files }) = &self.state.naming else { return Ok(()) };
        for name in final_names(name, *files)? {
            let path = name.within(&self.folder);
            name_file(&part_path(&path, position.job_id.into()), &path)?;
        }
        sync_folder_of(&self.folder.join(STATE))?;
        failpoint!("pull.named", Err(Error::refused("pull.named")));
        self.state.last = self.state.naming.take().map(|naming| naming.position);
        self.save()
    }

    /// Writes the manifest of an export under its hidden name. Its paths lead to the files in this folder. The signed
    /// locations stay, because the signature covers them.
    fn write_manifest(&self, manifest: &mut Manifest, names: &[PlainName], part: &Path) -> Result<(), Error> {
        if manifest.signature_version.is_some() && manifest.signed_locations.is_none() {
            manifest.signed_locations = Some(manifest.locations());
        }
        for ((file, entry), name) in manifest.export.files.iter_mut().zip(&mut manifest.entries).zip(names) {
            file.path = Some(name.to_string());
            let path = std::path::absolute(name.within(&self.folder))?;
            entry.url = url::Url::from_file_path(path).map_or_else(|()| name.to_string(), Into::into);
        }
        write_new(part, &manifest.text()).about(|| part.display())
    }

    /// Returns the reason if an export doesn't follow the last one in this folder, so that only a full export can.
    fn gap_before(&self, export: &ExportView, manifest: &Manifest) -> Option<String> {
        let chained = &manifest.export;
        let had = self.state.last.as_ref().map(|last| &last.digest);
        // A delta that begins a chain has every live row, but not what was deleted since the last file.
        let is_next = chained.export_type == "full" || had.is_none() || had == chained.previous.as_ref();
        (!is_next).then(|| format!("gap: the export {} doesn't follow the last one in the folder", export.job.id))
    }

    /// Returns the first column of an export of changes that the last export doesn't have with this type. If the
    /// service has no manifest of the last export any more, that is the first column.
    async fn new_column(&self, api: &Api, export: &ExportView, chained: &Chained) -> Option<String> {
        let has_changed = export.schema_changed == Some(true) && !chained.is_base();
        let last = self.state.last.as_ref().filter(|_| has_changed)?;
        let before = api.manifest(last.job_id.into(), &self.state.dataset).await;
        let before = before.map(|before| before.export.columns).unwrap_or_default();
        let operations = usize::from(chained.export_type == "delta");
        let new = chained.columns.iter().skip(operations).find(|column| !before.contains(column));
        new.map(|column| column.name.clone())
    }
}

/// Returns the final names of an export's files, and behind them that of its manifest.
fn final_names(name: &PlainName, files: usize) -> Result<Vec<PlainName>, Error> {
    if !(1..=MOST_FILES).contains(&files) {
        return Err(Error::Refused(format!("{name} has {files} files, and an export has 1 to {MOST_FILES}")));
    }
    let manifest = Manifest::name_in_folder(name.as_str());
    file_names(name.as_str(), files).chain([manifest]).map(|name| Ok(name.parse()?)).collect()
}

/// Writes a file to disk, and replaces a file that an earlier process left behind.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Gives a file its final name. Does nothing if `part` is missing: an earlier process has renamed the file, and the
/// user may have moved it.
fn name_file(part: &Path, path: &Path) -> Result<(), Error> {
    let found = match fs::symlink_metadata(part) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found.about(|| part.display())?,
    };
    let own = rustix::process::geteuid().as_raw();
    if !found.is_file() || found.uid() != own {
        return Err(Error::Refused(format!("{}: another process replaced this file", part.display())));
    }
    match rename_without_replacing(part, path) {
        Ok(()) => {}
        // An earlier process was killed after it had linked the final name and before it removed the hidden name.
        Err(_)
            if fs::symlink_metadata(path)
                .is_ok_and(|named| (named.dev(), named.ino()) == (found.dev(), found.ino())) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let why = format!("{} is there already, and is another file: move it away", path.display());
            return Err(Error::Refused(why));
        }
        Err(error) => return Err(error).about(|| path.display()),
    }
    match fs::remove_file(part) {
        // The file system renamed the file instead of linking it.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.about(|| part.display()),
    }
}

impl ExportSink for PullFolder {
    fn last(&self) -> Option<&LanePosition> {
        self.state.last.as_ref()
    }

    fn source(&self) -> Option<&ManifestSource> {
        self.state.source.as_ref()
    }

    async fn write(&mut self, api: &Api, export: &ExportView, mut manifest: Manifest) -> Result<SinkOutcome, Error> {
        let id = export.job.id;
        let files = export_files(export)?;
        let named = export.output_filename.as_ref();
        let name = named.ok_or_else(|| Error::refused(format!("the export {id} has no file")))?.plain()?;
        let names = final_names(&name, files.len())?;
        if let Some((file, _)) = files.iter().zip(&names).find(|(file, name)| file.view.name.as_str() != name.as_str())
        {
            let why =
                format!("the export {id} is called {name}, and none of its files can be called `{}`", file.view.name);
            return Err(Error::Refused(why));
        }
        let part = |name: &PlainName| part_path(&name.within(&self.folder), id);
        if let Some(why) = self.gap_before(export, &manifest) {
            return Ok(SinkOutcome::NeedsFullExport(why));
        }
        let new_column = self.new_column(api, export, &manifest.export).await;
        let format = manifest.export.format.clone();
        let mut rows = Vec::new();
        for (file, name) in files.iter().zip(&names) {
            fetch_part(api, file, &part(name)).await?;
            rows.push(file.view.rows);
        }
        manifest.copied_exports = self.group.copied_exports(&manifest.export.job, api).await?;
        let manifest_name = names.last().expect("the manifest has the last name");
        self.write_manifest(&mut manifest, &names, &part(manifest_name))?;
        self.state.source = Some(manifest.export.source.clone());
        let shown: Vec<_> = names.iter().map(|name| name.within(&self.folder)).zip(rows).collect();
        self.state.naming =
            Some(PendingNames { position: LanePosition::from_export(export, &manifest)?, name, files: files.len() });
        self.save()?;
        failpoint!("pull.fetched", Err(Error::refused("pull.fetched")));
        self.name_files()?;
        failpoint!("pull.remembered", Err(Error::refused("pull.remembered")));
        for (path, rows) in shown {
            api.observer().file(&path, rows).map_err(Error::Output)?;
        }
        if let Some(name) = new_column {
            api.observer().notice(&format!(
                "full_export_needed: the column {name} is new, or has another type: rows that didn't change have its \
                 values in a full export alone"
            ));
        }
        if let Some(expected) = self.expected.filter(|expected| expected.as_str() != format) {
            let text =
                format!("the export {id} is {format}, not {}: somebody else has asked for it", expected.as_str());
            api.observer().notice(&text);
        }
        Ok(SinkOutcome::Written)
    }
}
