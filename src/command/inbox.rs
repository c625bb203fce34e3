//! The folder that `pull` fills: the files of a consumer's exports, each once, and where it is.
//!
//! An export's files arrive under hidden names. Once all are whole and on disk, the state says that they are to get their names; then they
//! get them; then the state says that the export was taken. So whoever moves a file away, at whatever moment a pull was killed, never gets
//! it a second time, and never misses one.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::failpoint;
use crate::job::ConsumerId;
use crate::manifest::{self, Manifest, Source};
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::command::api::Api;
use crate::command::download::{fetch_part, files_of, give_name, part_of, require_same, sync_folder_of};
use crate::command::feed::{Position, Taken, Taker, id_of};
use crate::command::plain::plain;
use crate::command::view::JobView;

/// The version of the state's form.
const VERSION: u32 = 1;
const STATE: &str = ".cdc-export-pull.json";
const LOCK: &str = ".cdc-export-pull.lock";

/// The state of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct State {
    version: u32,
    consumer: String,
    dataset: String,
    /// The database that the rows are from; `None`: no export has said it yet.
    source: Option<Source>,
    /// The last export whose files have their names.
    last: Option<Position>,
    /// The export whose files are all there, and which are getting their names.
    naming: Option<Naming>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Naming {
    position: Position,
    /// The names, the manifest's last.
    names: Vec<String>,
}

/// A folder that this process alone fills.
pub(super) struct Inbox {
    folder: PathBuf,
    state: State,
    /// Held while the process lives.
    _lock: File,
}

/// Returns the dataset whose exports a folder is filled with.
pub(super) fn dataset_of(folder: &Path) -> anyhow::Result<Option<String>> {
    Ok(read(folder)?.map(|state| state.dataset))
}

fn read(folder: &Path) -> anyhow::Result<Option<State>> {
    let path = folder.join(STATE);
    let at_path = || path.display().to_string();
    let text = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.with_context(at_path)?,
    };
    let state: State = serde_json::from_slice(&text).with_context(at_path)?;
    ensure!(state.version == VERSION, "{}: a later version of cdc-export has filled this folder", path.display());
    Ok(Some(state))
}

impl Inbox {
    /// The folder, made if need be, once no other process fills it. What one that was killed has left undone is done here.
    pub(super) fn open(folder: &Path, consumer: &ConsumerId, dataset: String) -> anyhow::Result<Inbox> {
        let at_folder = || folder.display().to_string();
        fs::create_dir_all(folder).with_context(at_folder)?;
        let lock = File::options().create(true).truncate(false).write(true).open(folder.join(LOCK));
        let lock = lock.with_context(at_folder)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("cdc-export: another process fills {}: waiting until it ends", folder.display());
                lock.lock().with_context(at_folder)?;
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(at_folder),
        }
        let new =
            State { version: VERSION, consumer: consumer.to_string(), dataset, source: None, last: None, naming: None };
        let state = read(folder)?.unwrap_or_else(|| new.clone());
        ensure!(
            (&state.consumer, &state.dataset) == (&new.consumer, &new.dataset),
            "{} has the exports of {} of the consumer {}: another lane needs another folder",
            folder.display(),
            state.dataset,
            state.consumer
        );
        let mut inbox = Inbox { folder: folder.to_owned(), state, _lock: lock };
        inbox.name_files()?;
        Ok(inbox)
    }

    /// Writes the state down, in place of the one before.
    fn save(&self) -> anyhow::Result<()> {
        let path = self.folder.join(STATE);
        let text = serde_json::to_string_pretty(&self.state)? + "\n";
        let draft = self.folder.join(format!("{STATE}.part"));
        let written = write_new(&draft, &text).and_then(|()| fs::rename(&draft, &path));
        written.with_context(|| path.display().to_string())?;
        sync_folder_of(&path)
    }

    /// Gives the files of the export that is to get its names what of them it hasn't yet.
    fn name_files(&mut self) -> anyhow::Result<()> {
        let Some(Naming { position, names }) = &self.state.naming else { return Ok(()) };
        for name in names {
            let path = self.folder.join(name);
            name_file(&part_of(&path, position.job_id.into()), &path)?;
        }
        sync_folder_of(&self.folder.join(STATE))?;
        failpoint!("pull.named", Err(anyhow::anyhow!("pull.named")));
        self.state.last = self.state.naming.take().map(|naming| naming.position);
        self.save()
    }

    /// Puts the manifest of an export under its hidden name, as it is here: beside its files.
    fn write_manifest(&self, manifest: &mut Manifest, names: &[String], part: &Path) -> anyhow::Result<()> {
        for ((file, entry), name) in manifest.export.files.iter_mut().zip(&mut manifest.entries).zip(names) {
            file.path = Some(name.clone());
            let path = std::path::absolute(self.folder.join(name))?;
            entry.url = url::Url::from_file_path(path).map_or_else(|()| name.clone(), Into::into);
        }
        write_new(part, &manifest.text()).with_context(|| part.display().to_string())
    }

    /// Returns why an export is not the next one for this folder; `None` if it is.
    fn unfit(&self, export: &JobView, manifest: &Manifest) -> anyhow::Result<Option<String>> {
        let chained = &manifest.export;
        if let Some(source) = &self.state.source {
            ensure!(
                *source == chained.source,
                "another_source: the exports in {} are from the database {} of cluster {}, and the export {} is from the database {} of cluster \
                 {}: another source needs another folder",
                self.folder.display(),
                source.database,
                source.cluster,
                export.job_id,
                chained.source.database,
                chained.source.cluster
            );
        }
        let had = self.state.last.as_ref().map(|last| &last.digest);
        let is_next = chained.is_base() || had.is_none() || had == chained.previous.as_ref();
        Ok((!is_next).then(|| format!("gap: the export {} doesn't go on from the last one here", export.job_id)))
    }
}

/// Writes a file to disk, in place of what an earlier process left of it.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Gives a file its name, unless it has it already: then it may be gone.
fn name_file(part: &Path, path: &Path) -> anyhow::Result<()> {
    let found = match fs::symlink_metadata(part) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found.with_context(|| part.display().to_string())?,
    };
    let own = rustix::process::geteuid().as_raw();
    ensure!(found.is_file() && found.uid() == own, "{}: somebody put another file in its place", part.display());
    match give_name(part, path) {
        Ok(()) => {}
        // A process was killed between the two steps of a rename.
        Err(_)
            if fs::symlink_metadata(path)
                .is_ok_and(|named| (named.dev(), named.ino()) == (found.dev(), found.ino())) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{} is there already, and is another file: move it away", path.display())
        }
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    }
    match fs::remove_file(part) {
        // It was renamed.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| part.display().to_string()),
    }
}

impl Taker for Inbox {
    fn last(&self) -> Option<&Position> {
        self.state.last.as_ref()
    }

    fn source(&self) -> Option<&Source> {
        self.state.source.as_ref()
    }

    async fn take(&mut self, api: &Api, export: &JobView) -> anyhow::Result<Taken> {
        let id = id_of(export)?;
        let mut manifest = api.manifest(id).await?;
        let files = files_of(export)?;
        let mut names =
            files.iter().map(|file| Ok(file.plain_name()?.to_owned())).collect::<anyhow::Result<Vec<_>>>()?;
        let part = |name: &str| part_of(&self.folder.join(name), id);
        require_same(id, &files, &manifest)?;
        if let Some(why) = self.unfit(export, &manifest)? {
            return Ok(Taken::Unfit(why));
        }
        let mut rows = Vec::new();
        for (file, name) in files.iter().zip(&names) {
            fetch_part(api, id, file, &part(name)).await?;
            rows.push(file.rows);
        }
        let name = manifest::name_in_folder(&export.output_filename);
        self.write_manifest(&mut manifest, &names, &part(&name))?;
        names.push(name);
        self.state.source = Some(manifest.export.source.clone());
        let shown: Vec<_> = names.iter().map(|name| self.folder.join(name)).zip(rows).collect();
        self.state.naming = Some(Naming { position: Position::of(export)?, names });
        self.save()?;
        failpoint!("pull.fetched", Err(anyhow::anyhow!("pull.fetched")));
        self.name_files()?;
        failpoint!("pull.remembered", Err(anyhow::anyhow!("pull.remembered")));
        for (path, rows) in shown {
            outln!("{}  {rows} rows", plain(&path.display().to_string()))?;
        }
        Ok(Taken::Done)
    }
}
