//! Downloads the files of an export, and verifies their SHA-256.
//!
//! The received bytes are in a hidden file in the same folder as the final one. If a download breaks off, the next one
//! continues with that file, also in another process. The file gets its final name after its SHA-256 has been verified.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ring::digest::{self, SHA256};
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use crate::answer::CallError;
use crate::api::{Api, export_path};
use crate::job_view::{ExportView, FileView};
use crate::observer::Observer;
use crate::{About, Error, own_file};
use cdc_manifest::{After, JobId, PlainName};
use pg_session::failure::chain;

/// The time without a received byte after which a download fails.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout,
    /// A file that doesn't exist yet.
    File(PathBuf),
    /// A folder, in which each file gets its own name. It is created if it is missing.
    Folder(PathBuf),
}

impl Api {
    /// Downloads the files of an export to `output`. Without `output`, each file gets its own name in the current
    /// folder.
    pub async fn save(&self, export: &ExportView, output: Option<&Output>) -> Result<(), Error> {
        let files = export_files(export)?;
        let several = files.len() > 1;
        match output {
            Some(Output::Stdout | Output::File(_)) if several => {
                return Err(Error::Refused(format!(
                    "the export has {} files: --output names a folder for them",
                    files.len()
                )));
            }
            Some(Output::Stdout) => {
                for file in &files {
                    PartialFile::new(Storage::Stdout, file, self.observer())?.fetch_rest(self).await?;
                }
                return Ok(());
            }
            Some(Output::Folder(folder)) => fs::create_dir_all(folder).about(|| folder.display())?,
            Some(Output::File(_)) | None => {}
        }
        for file in &files {
            let path = match output {
                Some(Output::File(path)) => path.clone(),
                Some(Output::Folder(folder)) => file.plain_name()?.within(folder),
                Some(Output::Stdout) | None => file.plain_name()?.within(Path::new("")),
            };
            // An earlier download may have completed some of several files.
            if !(several && file.is_downloaded_to(&path)) {
                save_file(self, export.job.id, file, &path).await?;
            }
            self.observer().file(&path, file.view.rows).map_err(Error::Output)?;
        }
        Ok(())
    }
}

async fn save_file(api: &Api, id: JobId, file: &ServedFile<'_>, path: &Path) -> Result<(), Error> {
    let already_exists =
        || Error::Refused(format!("{} is there already: --output names another place", path.display()));
    let replaced = |path: &Path| Error::Refused(format!("{}: another process replaced this file", path.display()));
    if path.exists() {
        return Err(already_exists());
    }
    let part = part_path(path, id);
    let ours = fetch_part(api, file, &part).await?;
    // Another user with write access to the folder may have replaced the file.
    let is_ours = |path: &Path| {
        fs::symlink_metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino()))
    };
    if !is_ours(&part) {
        return Err(replaced(&part));
    }
    let named = rename_without_replacing(&part, path);
    if named.is_err() && fs::symlink_metadata(path).is_ok() {
        return Err(already_exists());
    }
    named.about(|| path.display())?;
    if !is_ours(path) {
        return Err(replaced(path));
    }
    if is_ours(&part) {
        let _ = fs::remove_file(&part);
    }
    sync_folder_of(path)
}

/// Downloads the missing bytes of a file into the hidden file `part`, verifies the whole file, and syncs it to disk.
pub(super) async fn fetch_part(api: &Api, file: &ServedFile<'_>, part: &Path) -> Result<fs::Metadata, Error> {
    let at_part = || part.display();
    let opened = open_part(part).about(at_part)?;
    let ours = opened.metadata().about(at_part)?;
    if let Err(error) = require_room(&opened, file) {
        if ours.len() == 0 {
            fs::remove_file(part).about(at_part)?;
        }
        return Err(error).about(at_part);
    }
    let mut partial = PartialFile::new(Storage::File(opened), file, api.observer())?;
    if let Err(error) = partial.fetch_rest(api).await {
        // If all bytes are here and wrong, the next attempt must begin at the first byte. An empty file is useless.
        if partial.is_whole() || partial.have == 0 || error.is_gone() {
            fs::remove_file(part).about(at_part)?;
        }
        // A refusal of the service has nothing to do with the place on this machine.
        let at = if matches!(error, Error::Call(_)) { file.view.name.to_string() } else { part.display().to_string() };
        return Err(error).about(|| at);
    }
    Ok(ours)
}

/// Returns an error if the rest of a file is larger than the free space of its disk.
fn require_room(part: &File, file: &ServedFile<'_>) -> Result<(), Error> {
    let disk = rustix::fs::fstatvfs(part).map_err(io::Error::from)?;
    let (needed, free) =
        (file.view.bytes.saturating_sub(part.metadata()?.len()), disk.f_bavail.saturating_mul(disk.f_frsize));
    if needed <= free {
        return Ok(());
    }
    Err(Error::Refused(format!("the file needs {needed} more bytes, and {free} are free on this disk")))
}

/// Syncs the folder of a path to disk, including the names in it.
pub(super) fn sync_folder_of(path: &Path) -> Result<(), Error> {
    File::open(folder_of(path)).and_then(|folder| folder.sync_all()).about(|| path.display())
}

/// Returns the folder that contains a path's last name.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file of an export, as the service describes it.
pub(super) struct ServedFile<'e> {
    /// The path of the call that downloads it.
    pub(super) path: String,
    pub(super) view: &'e FileView,
}

pub(super) fn export_files(export: &ExportView) -> Result<Vec<ServedFile<'_>>, Error> {
    let several = export.files.len() > 1;
    let call = |part: u32| if several { format!("files/{part}/download") } else { "download".to_owned() };
    let path = |file: &FileView| export_path(export.job.id, &call(file.part), &export.dataset);
    let files: Vec<_> = export.files.iter().map(|view| ServedFile { path: path(view), view }).collect();
    let are_known = !files.is_empty() && export.files.iter().all(|file| After::is_sha256(&file.sha256));
    if are_known { Ok(files) } else { Err(Error::refused("the export has no SHA-256")) }
}

impl ServedFile<'_> {
    /// Returns the file's name. Refuses a name that could choose the folder.
    fn plain_name(&self) -> Result<PlainName, Error> {
        self.view.name.plain().map_err(|why| Error::Refused(format!("{why}: --output names one")))
    }

    /// Returns true if the path contains the exported file already.
    fn is_downloaded_to(&self, path: &Path) -> bool {
        let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == self.view.bytes);
        is_file
            && File::open(path)
                .and_then(sha256_of)
                .is_ok_and(|(_, found)| hex::encode(found.finish()) == *self.view.sha256)
    }
}

/// Hashes the rest of a file. Returns the number of its bytes and their SHA-256.
fn sha256_of(mut file: impl Read) -> io::Result<(u64, digest::Context)> {
    let (mut have, mut hash) = (0, digest::Context::new(&SHA256));
    let mut chunk = vec![0; 256 << 10];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok((have, hash)),
            read => {
                hash.update(&chunk[..read]);
                have += read as u64;
            }
        }
    }
}

/// Returns the path of the hidden file of a download. The name contains the job's id, so two jobs never share a file.
/// A long name is cut at its beginning, because the files of an export differ at the end.
pub(super) fn part_path(path: &Path, id: JobId) -> PathBuf {
    /// With the id, the hidden name has fewer than the 255 bytes that file systems accept.
    const MAX_BYTES: usize = 200;

    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = &name[name.ceil_char_boundary(name.len().saturating_sub(MAX_BYTES))..];
    folder_of(path).join(format!(".{name}.{id}.part"))
}

pub(super) fn rename_without_replacing(part: &Path, path: &Path) -> io::Result<()> {
    // A hard link, unlike a rename, never replaces a file.
    let Err(error) = fs::hard_link(part, path) else { return Ok(()) };
    if error.kind() == io::ErrorKind::AlreadyExists {
        return Err(error);
    }
    // Some file systems have no hard links.
    match rustix::fs::renameat_with(CWD, part, CWD, path, RenameFlags::NOREPLACE) {
        // Some file systems have neither hard links nor NOREPLACE.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) if fs::symlink_metadata(path).is_err() => {
            fs::rename(part, path)
        }
        renamed => Ok(renamed?),
    }
}

/// Opens the hidden file. Creates it, unless an earlier download by this user left it behind.
fn open_part(part: &Path) -> io::Result<File> {
    let file = own_file::open(part, OpenOptions::new().read(true).append(true).create(true))?;
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::other("another process is downloading it"),
        TryLockError::Error(error) => error,
    })?;
    Ok(file)
}

enum Storage {
    Stdout,
    File(File),
}

/// A file that is partly downloaded. Received bytes are written to it.
struct PartialFile<'w> {
    wanted: &'w ServedFile<'w>,
    storage: Storage,
    have: u64,
    hash: digest::Context,
    observer: &'w dyn Observer,
}

impl<'w> PartialFile<'w> {
    /// Resumes a download: the bytes in the hidden file count as the first bytes of the wanted file.
    fn new(
        mut storage: Storage,
        wanted: &'w ServedFile<'w>,
        observer: &'w dyn Observer,
    ) -> Result<PartialFile<'w>, Error> {
        let (mut have, mut hash) = (0, digest::Context::new(&SHA256));
        if let Storage::File(file) = &mut storage {
            if file.metadata()?.len() > wanted.view.bytes {
                file.set_len(0)?;
            }
            file.seek(SeekFrom::Start(0))?;
            (have, hash) = sha256_of(file)?;
        }
        Ok(PartialFile { wanted, storage, have, hash, observer })
    }

    fn is_whole(&self) -> bool {
        self.have == self.wanted.view.bytes
    }

    /// Downloads the missing bytes, then verifies the SHA-256 of the whole file.
    async fn fetch_rest(&mut self, api: &Api) -> Result<(), Error> {
        self.observer.bytes(self.have, self.wanted.view.bytes);
        let fetched = self.fetch_bytes(api).await;
        self.observer.end();
        fetched?;
        if hex::encode(self.hash.clone().finish()) != *self.wanted.view.sha256 {
            let why = "the download is not the file that was exported: download it again";
            return Err(Error::refused(why));
        }
        match &mut self.storage {
            Storage::Stdout => io::stdout().flush().map_err(closed_stdout_error)?,
            Storage::File(file) => file.sync_all()?,
        }
        Ok(())
    }

    async fn fetch_bytes(&mut self, api: &Api) -> Result<(), Error> {
        let wanted = self.wanted;
        let mut last_progress = Instant::now();
        while !self.is_whole() {
            let had = self.have;
            let fetched = api.fetch(&wanted.path, &wanted.view.sha256, had, self).await;
            if self.have > had {
                last_progress = Instant::now();
            }
            match fetched {
                Ok(()) if self.is_whole() => {}
                // The answer ended too early.
                Ok(()) if last_progress.elapsed() < RETRY_TIMEOUT => tokio::time::sleep(PAUSE).await,
                Ok(()) => {
                    let why = format!("the file ends after {} of {} bytes", self.have, wanted.view.bytes);
                    return Err(Error::Refused(why));
                }
                Err(Error::Call(cause @ CallError::Broken { .. })) if last_progress.elapsed() < RETRY_TIMEOUT => {
                    if self.have > had {
                        self.observer.notice(&format!("{}; going on from there.", chain(&cause)));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Replaces the error of a closed standard output, because a truncated file is a failure, unlike a truncated list.
fn closed_stdout_error(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => {
            io::Error::other("the reader of standard output has closed it before the file's end")
        }
        _ => error,
    }
}

impl Write for PartialFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.wanted.view.bytes - self.have {
            return Err(io::Error::other("the service sends more bytes than the exported file has"));
        }
        let written = match &mut self.storage {
            Storage::Stdout => io::stdout().write(bytes).map_err(closed_stdout_error)?,
            Storage::File(file) => file.write(bytes)?,
        };
        self.hash.update(&bytes[..written]);
        self.have += written as u64;
        self.observer.bytes(self.have, self.wanted.view.bytes);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
