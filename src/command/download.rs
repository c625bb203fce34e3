//! `download`: fetches a file of an export, and checks it.
//!
//! The bytes that have arrived are in a hidden file beside the final one. A download that broke off continues with that file,
//! also in another process. The file gets its name once its SHA-256 is the recorded one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::config::CatalogFile;
use crate::job::{After, JobId, Status};
use crate::manifest::Manifest;
use crate::telemetry::chain;
use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::ProgressBar;
use ring::digest::{self, SHA256};
use rustix::fs::{CWD, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::command::BadUsage;
use crate::command::answer::Error;
use crate::command::api::Api;
use crate::command::output::{Output, folder_of};
use crate::command::progress::bar_of_bytes;
use crate::command::server::Server;
use crate::command::view::{FileView, JobView};
use crate::command::words::job_id;

/// A download without a byte for this long has failed.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// What to fetch.
#[derive(Args)]
pub(crate) struct Download {
    /// The id of the export
    #[arg(value_parser = job_id)]
    job: JobId,
    /// Where to put the file. A name with an extension is a file; any other is a folder, made if need be; - is standard output
    /// [default: the current folder]
    #[arg(long, short, value_name = "PATH")]
    output: Option<Output>,
    #[command(flatten)]
    at: Server,
}

impl Download {
    /// Fetches the file of a job that has completed, and prints where it is.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        self.at.run(CatalogFile::Unread, async |api| download(api, self.job, self.output.as_ref()).await)
    }
}

async fn download(api: &Api, id: JobId, output: Option<&Output>) -> anyhow::Result<()> {
    if let Some(output) = output {
        output.check().map_err(|why| BadUsage(format!("--output: {why}")))?;
    }
    let job = api.job(id).await?;
    if !job.has_ended() {
        bail!("the export is {}, at {} %: its file is there once it has completed", job.status, job.progress);
    }
    ensure!(job.has_status(Status::Completed), "the export is {}, so it has no file", job.status);
    save(api, id, &job, output).await
}

/// Fetches a job's files to `output`, and prints where they are. Without `output`, each goes to its own name in the current folder.
pub(crate) async fn save(api: &Api, id: JobId, job: &JobView, output: Option<&Output>) -> anyhow::Result<()> {
    let files = files_of(job)?;
    let several = files.len() > 1;
    match output {
        Some(Output::Stdout | Output::File(_)) if several => {
            bail!("the export has {} files: --output names a folder for them", files.len());
        }
        Some(Output::Stdout) => {
            for file in &files {
                PartialFile::new(Sink::Stdout, file)?.fetch_rest(api, id).await?;
            }
            return Ok(());
        }
        Some(Output::Folder(folder)) => fs::create_dir_all(folder).with_context(|| folder.display().to_string())?,
        Some(Output::File(_)) | None => {}
    }
    for file in &files {
        let path = match output {
            Some(Output::File(path)) => path.clone(),
            Some(Output::Folder(folder)) => folder.join(file.plain_name()?),
            Some(Output::Stdout) | None => PathBuf::from(file.plain_name()?),
        };
        // Of several, an earlier download that broke off may have fetched some.
        if !(several && file.is_at(&path)) {
            save_file(api, id, file, &path).await?;
        }
        outln!("{}  {} rows", path.display(), file.rows)?;
    }
    Ok(())
}

/// Fetches one file.
async fn save_file(api: &Api, id: JobId, file: &Wanted, path: &Path) -> anyhow::Result<()> {
    let exists = || format!("{} is there already: --output names another place", path.display());
    ensure!(!path.exists(), exists());
    let part = part_of(path, id);
    let ours = fetch_part(api, id, file, &part).await?;
    // Another user who may write to the folder may have put another file there.
    let is_ours = |path: &Path| {
        fs::symlink_metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino()))
    };
    ensure!(is_ours(&part), "{}: somebody put another file in its place", part.display());
    let named = give_name(&part, path);
    if named.is_err() && fs::symlink_metadata(path).is_ok() {
        bail!(exists());
    }
    named.with_context(|| path.display().to_string())?;
    ensure!(is_ours(path), "{}: somebody put another file in its place", path.display());
    if is_ours(&part) {
        let _ = fs::remove_file(&part);
    }
    sync_folder_of(path)
}

/// Fetches one file into a hidden one, or what is missing there, and checks it. It is on disk then.
pub(super) async fn fetch_part(api: &Api, id: JobId, file: &Wanted, part: &Path) -> anyhow::Result<fs::Metadata> {
    let at_part = || part.display().to_string();
    let opened = open_part(part).with_context(at_part)?;
    let ours = opened.metadata().with_context(at_part)?;
    let mut partial = PartialFile::new(Sink::File(opened), file)?;
    if let Err(error) = partial.fetch_rest(api, id).await {
        // The bytes are wrong, or there are none: another try has to begin anew, or there will be none.
        if partial.is_whole() || partial.have == 0 || is_gone(&error) {
            fs::remove_file(part).with_context(at_part)?;
        }
        return Err(error.context(at_part()));
    }
    Ok(ours)
}

/// Puts the names in a path's folder on disk.
pub(super) fn sync_folder_of(path: &Path) -> anyhow::Result<()> {
    File::open(folder_of(path)).and_then(|folder| folder.sync_all()).with_context(|| path.display().to_string())
}

/// A file that is to be fetched.
pub(super) struct Wanted {
    /// Which of several; `None`: the only one.
    part: Option<u32>,
    name: String,
    bytes: u64,
    pub(super) rows: u64,
    pub(super) sha256: String,
}

/// The files of a completed job.
pub(super) fn files_of(job: &JobView) -> anyhow::Result<Vec<Wanted>> {
    let several = job.files.len() > 1;
    let wanted = |file: &FileView| Wanted {
        part: several.then_some(file.part),
        name: file.name.to_string(),
        bytes: file.bytes,
        rows: file.rows,
        sha256: file.sha256.to_string(),
    };
    let files: Vec<_> = job.files.iter().map(wanted).collect();
    let are_known = !files.is_empty() && files.iter().all(|file| After::is_sha256(&file.sha256));
    ensure!(are_known, "the export has no SHA-256");
    Ok(files)
}

/// Refuses a manifest that is of other files than the export has.
pub(super) fn require_same(id: JobId, files: &[Wanted], manifest: &Manifest) -> anyhow::Result<()> {
    let same = files.iter().map(|file| &file.sha256).eq(manifest.export.files.iter().map(|file| &file.sha256));
    ensure!(
        same && manifest.digest == manifest.export.digest(),
        "the manifest of {id} is of other files than the export has"
    );
    Ok(())
}

impl Wanted {
    /// The file's name, if it is a plain one: the service must not make us write outside of the folder.
    pub(super) fn plain_name(&self) -> anyhow::Result<&str> {
        let name = &self.name;
        let is_plain = Path::new(&**name).file_name().is_some_and(|only| only == &**name);
        ensure!(
            is_plain && !name.starts_with('.'),
            "`{}` is no name of a file: --output names one",
            name.escape_debug()
        );
        Ok(name)
    }

    /// Whether the file is there already, as it was exported.
    fn is_at(&self, path: &Path) -> bool {
        let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == self.bytes);
        is_file
            && File::open(path).and_then(sha256_of).is_ok_and(|(_, found)| hex::encode(found.finish()) == self.sha256)
    }
}

/// How many bytes a file has, and their SHA-256.
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

/// Whether the service has the file no more.
pub(super) fn is_gone(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::Refused { status: 410, .. }))
}

/// The hidden file of a job's download. Its name has the job's id, so that two jobs never share one.
pub(super) fn part_of(path: &Path, id: JobId) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    folder_of(path).join(format!(".{name}.{id}.part"))
}

/// Renames the file, and never replaces another one.
pub(super) fn give_name(part: &Path, path: &Path) -> io::Result<()> {
    // A link, unlike a rename, replaces nothing.
    let Err(error) = fs::hard_link(part, path) else { return Ok(()) };
    if error.kind() == io::ErrorKind::AlreadyExists {
        return Err(error);
    }
    // Some file systems have no hard links,
    match rustix::fs::renameat_with(CWD, part, CWD, path, RenameFlags::NOREPLACE) {
        // and some have neither links nor NOREPLACE.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) if fs::symlink_metadata(path).is_err() => {
            fs::rename(part, path)
        }
        renamed => Ok(renamed?),
    }
}

/// Opens the hidden file: a new one, or the one that an earlier download by this user left. Another user who may write to the
/// folder may have put a link, a pipe or somebody's file there, which must not be written to. NONBLOCK: opening a pipe would hang
/// us.
pub(super) fn open_part(part: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).append(true).custom_flags(flags);
    let file = match options.clone().create_new(true).open(part) {
        Err(exists) if exists.kind() == io::ErrorKind::AlreadyExists => options.open(part).map_err(|error| {
            let is_link = error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
            if is_link { io::Error::other("it is a link: remove it") } else { error }
        })?,
        made => made?,
    };
    let found = file.metadata()?;
    let own = rustix::process::geteuid().as_raw();
    if !found.is_file() || found.uid() != own || found.nlink() != 1 {
        return Err(io::Error::other("it is no file of yours with this name alone: remove it"));
    }
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::other("another process is downloading it"),
        TryLockError::Error(error) => error,
    })?;
    Ok(file)
}

enum Sink {
    Stdout,
    File(File),
}

/// A file of which some bytes have arrived.
struct PartialFile<'w> {
    wanted: &'w Wanted,
    sink: Sink,
    have: u64,
    hash: digest::Context,
    bar: ProgressBar,
}

impl PartialFile<'_> {
    /// Takes the bytes that the hidden file has for the file's beginning.
    fn new(mut sink: Sink, wanted: &Wanted) -> anyhow::Result<PartialFile<'_>> {
        let (mut have, mut hash) = (0, digest::Context::new(&SHA256));
        if let Sink::File(file) = &mut sink {
            if file.metadata()?.len() > wanted.bytes {
                file.set_len(0)?;
            }
            file.seek(SeekFrom::Start(0))?;
            (have, hash) = sha256_of(file)?;
        }
        let bar = bar_of_bytes(wanted.bytes);
        bar.set_position(have);
        Ok(PartialFile { wanted, sink, have, hash, bar })
    }

    fn is_whole(&self) -> bool {
        self.have == self.wanted.bytes
    }

    /// Fetches the missing bytes, then checks the whole file's SHA-256.
    async fn fetch_rest(&mut self, api: &Api, id: JobId) -> anyhow::Result<()> {
        let wanted = self.wanted;
        let mut last_progress = Instant::now();
        while !self.is_whole() {
            let had = self.have;
            let fetched = api.fetch(id, wanted.part, &wanted.sha256, had, self).await;
            if self.have > had {
                last_progress = Instant::now();
            }
            match fetched {
                Ok(()) if self.is_whole() => {}
                // The answer ended too early.
                Ok(()) if last_progress.elapsed() < RETRY_TIMEOUT => tokio::time::sleep(PAUSE).await,
                Ok(()) => bail!("the file ends after {} of {} bytes", self.have, wanted.bytes),
                Err(error) => match error.downcast_ref::<Error>() {
                    Some(cause @ Error::Broken { .. }) if last_progress.elapsed() < RETRY_TIMEOUT => {
                        if self.have > had {
                            self.bar.suspend(|| eprintln!("cdc-export: {}; going on from there.", chain(cause)));
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                    _ => return Err(error),
                },
            }
        }
        self.bar.finish_and_clear();
        let found = self.hash.clone().finish();
        let found = hex::encode(found);
        ensure!(found == wanted.sha256, "what has arrived is not the file that was exported: download it once more");
        match &mut self.sink {
            Sink::Stdout => io::stdout().flush().map_err(unread)?,
            Sink::File(file) => file.sync_all()?,
        }
        Ok(())
    }
}

/// Who doesn't read a list to its end has seen enough of it. Who doesn't read a file to its end hasn't got it.
fn unread(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => {
            io::Error::other("whoever reads standard output has closed it before the file's end")
        }
        _ => error,
    }
}

impl Write for PartialFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.wanted.bytes - self.have {
            return Err(io::Error::other("more of the file arrives than was exported"));
        }
        let written = match &mut self.sink {
            Sink::Stdout => io::stdout().write(bytes).map_err(unread)?,
            Sink::File(file) => file.write(bytes)?,
        };
        self.hash.update(&bytes[..written]);
        self.have += written as u64;
        self.bar.set_position(self.have);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
