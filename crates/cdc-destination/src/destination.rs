//! The contract that every destination of export files keeps.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::marker_file::MARKER_MAX_BYTES;
use crate::{
    Draft, Error, ExportFiles, FileLocation, FileName, HiddenFile, Marker, MarkerFile, PublishedFile, SmallFile,
    StagedFile,
};
use cdc_manifest::{JobId, Manifest};
use failpoint::failpoint;

/// The number of tries to write a marker, if other processes replace it in between.
const MARK_TRIES: u32 = 6;

/// The state of a destination before [`Destination::prepare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// The destination had an id.
    Known,
    /// The destination had no id, so it has no file that this service's database knows.
    New,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// The file has its final name, by this call or an earlier one. Its location is now the one given here.
    Done(FileLocation),
    Taken,
    /// The file has another final name, under which a client may already have seen it.
    Misnamed,
    /// The file is in the destination under no name.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrittenManifest {
    /// The manifest has its name, by this call or an earlier one.
    Done,
    Taken,
}

/// A place for export files, shared by all processes that are configured with it.
///
/// # Visibility
/// Nobody sees a file under its final name before [`publish`](Destination::publish). Until then it is a *hidden file*,
/// which [`hidden_files`](Destination::hidden_files) lists and no reader of exports opens. The hidden name has the
/// database, the job and the lease token, so two attempts never share a file.
///
/// # Durability
/// - After [`Draft::stage`], the bytes and the hidden name survive a crash of this host.
/// - After [`publish`](Destination::publish) returns [`Published::Done`], the final name does too.
/// - After [`write_lane_marker`](Destination::write_lane_marker) and [`write_manifest`](Destination::write_manifest)
///   return, so do the marker and the manifest. The publisher writes the marker before it gives a file its name.
/// - If a call fails, its effect may have happened, and may be lost in a crash. The caller repeats the call.
///
/// # Idempotence
/// Every call may be repeated after a crash at any point, by any process that has this destination. The exception is
/// [`create`](Destination::create), which makes a hidden file once.
///
/// # No replacement
/// No call replaces or removes a file that is not the recorded one. A file is recognized by its
/// [`identity`](StagedFile::identity), never by its name alone. A manifest is never replaced. A lane marker is replaced
/// only if the caller names the marker's job.
///
/// # Blocking
/// Work that may block runs in `limited::blocking`, so that it keeps the permit of
/// [`Limited`](crate::Limited).
///
/// # Errors
/// Every call but `prepare` fails if the destination has no id, or another one than before ([`Error::Unused`],
/// [`Error::Replaced`]). A call for a file fails with [`Error::Elsewhere`] if the file is in another destination.
#[async_trait]
pub trait Destination: fmt::Debug + Send + Sync {
    /// Makes the destination usable: creates it, gives it an id if it has none, and checks that it can be written.
    ///
    /// For a process that exports or serves. A process that only reads calls nothing that creates something.
    async fn prepare(&self) -> Result<Prepared, Error>;

    /// Returns the destination's id, which is the same in every process that has this destination.
    async fn id(&self) -> Result<Uuid, Error>;

    /// Returns the time after which a call that doesn't return counts as stalled. `None`: each call ends by itself.
    fn stall_limit(&self) -> Option<Duration> {
        None
    }

    async fn require_room(&self) -> Result<(), Error>;

    /// Creates the hidden file of an attempt. `name` is the name that the file gets later, as far as it is known now.
    ///
    /// If `stopped` is cancelled, a draft that waits for the destination fails with [`Error::Stopped`].
    async fn create(
        &self,
        hidden: &HiddenFile,
        name: &FileName,
        stopped: &CancellationToken,
    ) -> Result<Box<dyn Draft>, Error>;

    /// Gives a staged file its final name, durably. Never replaces a file.
    async fn publish(&self, file: &StagedFile, name: &str) -> Result<Published, Error>;

    /// Publishes a file that may have another final name, and takes it from there.
    ///
    /// The caller has just checked that `name` is the file's name in the database.
    async fn rename(&self, file: &StagedFile, name: &str) -> Result<Published, Error>;

    /// Returns the URL of a file once it is published, or `None` if its path can't be written as a URL.
    fn location(&self, file: &FileLocation, name: &str) -> Option<String>;

    /// Opens a published file. Returns `None` if the file is gone, or another file has its name.
    async fn open(&self, file: &StagedFile, name: &str) -> Result<Option<Box<dyn PublishedFile>>, Error>;

    /// Removes files, each with its final name. A file that is published is removed only if it is still the recorded
    /// one. A file that can't be removed does not prevent the removal of the others.
    async fn remove(&self, files: &[(String, StagedFile)]) -> Result<(), Error>;

    /// Lists the hidden files, including those of running attempts and of other databases.
    async fn hidden_files(&self) -> Result<Vec<HiddenFile>, Error>;

    /// Removes a hidden file and returns true if it did. If `unwritten_for` is given, spares a file that was written
    /// more recently.
    async fn sweep(&self, hidden: &HiddenFile, unwritten_for: Option<Duration>) -> Result<bool, Error>;

    /// Reads the small file with this name, without its text if that has more than `most` bytes. Returns `None` if
    /// nothing has the name.
    async fn read_small(&self, name: &str, most: u64) -> Result<Option<SmallFile>, Error>;

    /// Makes it durable that the small file with this name has this text. Returns false, and changes nothing, if the
    /// name has something other than `before`. A folder first writes the text under the hidden name `draft`.
    async fn put_small(&self, draft: &str, name: &str, text: &str, before: Option<&SmallFile>) -> Result<bool, Error>;

    async fn remove_small(&self, name: &str) -> Result<(), Error>;

    /// Returns true if the name of a manifest has the number of its export, and not the name of its file.
    fn numbers_manifests(&self) -> bool;

    /// Returns the largest number of a manifest in the file's lane, and 0 if there is none or the names of manifests
    /// have no numbers.
    async fn last_manifest(&self, record: &ExportFiles) -> Result<u64, Error>;

    /// Reads the markers of several lanes. A marker that can't be read now is `None`.
    async fn lane_markers(&self, files: &[MarkerFile]) -> Result<Vec<Option<Marker>>, Error>;

    /// Reads the marker of a lane. Returns `None` if there is none, and [`Marker::unreadable`] if something else has
    /// its name, or the service has no right to read it.
    async fn lane_marker(&self, file: &MarkerFile) -> Result<Option<Marker>, Error> {
        file.marker(self.read_small(file.name(), MARKER_MAX_BYTES).await)
    }

    /// Makes it durable that `marker` names the last export of its lane. Called before the export's files get their
    /// names.
    ///
    /// Replaces no marker except that of the job `replaced`. Returns the present marker if it keeps it: perhaps no
    /// database knows the export which that marker names. If this fails, the marker is the one before or the new one.
    async fn write_lane_marker(
        &self,
        file: &MarkerFile,
        marker: &Marker,
        replaced: Option<JobId>,
    ) -> Result<Option<Marker>, Error> {
        failpoint!("sink.mark", Err(Error::Io(Errno::IO.into())));
        let (name, draft, text) = (file.name(), file.draft(marker), file.text(marker)?);
        for _ in 0..MARK_TRIES {
            let found = self.read_small(name, MARKER_MAX_BYTES).await?;
            let present = found.as_ref().map(|found| file.parse(found));
            if let Some(other) = present.filter(|present| present != marker && Some(present.job) != replaced) {
                return Ok(Some(other));
            }
            if self.put_small(&draft.name, name, &text, found.as_ref()).await? {
                return Ok(None);
            }
        }
        Err(Error::Unavailable(std::io::Error::other("other processes replace the marker of its lane each time")))
    }

    /// Returns the name of an export's manifest. Returns `None` if it can have none here: an ad-hoc export in a bucket.
    fn manifest_name(&self, record: &ExportFiles, number: u64) -> Option<String> {
        if !self.numbers_manifests() {
            return Some(Manifest::name_in_folder(&record.name));
        }
        Some(Manifest::key(&record.dataset, record.consumer.as_ref()?, number))
    }

    /// Makes a manifest durable under its name, unless something else has that name.
    async fn write_manifest(&self, record: &ExportFiles, number: u64, text: &str) -> Result<WrittenManifest, Error> {
        let Some(name) = self.manifest_name(record, number) else { return Ok(WrittenManifest::Done) };
        failpoint!("sink.manifest", Err(Error::Io(Errno::IO.into())));
        let draft = HiddenFile::of_marker(&record.database, record.job);
        let is_new = self.put_small(&draft.name, &name, text, None).await?;
        failpoint!("sink.manifest.renamed", Err(Error::Io(Errno::IO.into())));
        if is_new {
            return Ok(WrittenManifest::Done);
        }
        // Written by an earlier call whose answer was lost, by another process, or before the database was restored.
        let found = self.read_small(&name, text.len() as u64).await?;
        let is_it = found.is_some_and(|found| found.has(text));
        Ok(if is_it { WrittenManifest::Done } else { WrittenManifest::Taken })
    }

    /// Returns true if something other than this text has the manifest's name. Returns false if the name has the
    /// manifest's number: another number can be tried.
    async fn is_manifest_name_taken(&self, record: &ExportFiles, text: &str) -> Result<bool, Error> {
        if self.numbers_manifests() {
            return Ok(false);
        }
        let found = self.read_small(&Manifest::name_in_folder(&record.name), text.len() as u64).await?;
        Ok(found.is_some_and(|found| !found.has(text)))
    }

    async fn remove_manifest(&self, record: &ExportFiles, text: &str) -> Result<(), Error> {
        let number = Manifest::read(text.as_bytes()).map_or(0, |manifest| manifest.number);
        let Some(name) = self.manifest_name(record, number) else { return Ok(()) };
        let found = self.read_small(&name, text.len() as u64).await?;
        if found.is_some_and(|found| found.has(text)) { self.remove_small(&name).await } else { Ok(()) }
    }

    /// Removes the drafts of an attempt that has ended. `first` is the hidden file of its first part, which may be
    /// missing.
    async fn abort(&self, first: &HiddenFile) -> Result<(), Error> {
        self.sweep(first, None).await?;
        // An attempt creates its parts in order, so the first missing part ends the list.
        let mut part = 2;
        while self.sweep(&first.with_part(part), None).await? {
            part += 1;
        }
        Ok(())
    }

    /// Removes the files of an export that nobody may publish any more, and its manifest.
    async fn discard(&self, record: &ExportFiles) -> Result<(), Error> {
        if let Some(text) = &record.manifest {
            self.remove_manifest(record, text).await?;
        }
        // Each file has a call of its own, and so the whole time limit of one.
        let mut outcome = Ok(());
        for file in record.owned() {
            outcome = self.remove(&[file]).await.and(outcome);
        }
        outcome
    }
}

/// Returns the path of a file relative to its manifest.
pub fn path_from_manifest(location: &FileLocation, name: &str) -> String {
    match location {
        FileLocation::Folder { .. } => name.to_owned(),
        // A bucket has the manifests in a folder beside the lane's files.
        FileLocation::Upload { key, .. } | FileLocation::Object { key, .. } => {
            format!("../{}", key.rsplit('/').next().unwrap_or(key))
        }
    }
}
