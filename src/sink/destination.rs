//! The contract that every destination of export files keeps.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::file::hidden::HiddenFile;
use crate::file::name::FileName;
use crate::file::{FileLocation, FileRecord, StagedFile};
use crate::job::JobId;
use crate::job::marker::Marker;
use crate::sink::{Draft, Error, MarkerFile, PublishedFile};

/// The state of a destination before [`Destination::prepare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// The destination had an id.
    Known,
    /// The destination had no id, so it has no file that this service's database knows.
    New,
}

/// The result of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// The file has its final name, by this call or an earlier one. Its location is now the one given here.
    Done(FileLocation),
    /// Another file has that name.
    Taken,
    /// The file has another final name, under which a client may already have seen it.
    Misnamed,
    /// The file is in the destination under no name.
    Gone,
}

/// The result of writing a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrittenManifest {
    /// The manifest has its name, by this call or an earlier one.
    Done,
    /// Another manifest has that name.
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
/// Work that may block runs in [`limited::blocking`](crate::sink::limited::blocking), so that it keeps the permit of
/// [`Limited`](crate::sink::Limited).
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

    /// Checks that a file can be written now.
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

    /// Removes those of the published files, with their names, that are still the recorded ones.
    ///
    /// # Errors
    /// If a file could not be removed. All, some or none of the files may be gone then.
    async fn remove(&self, files: &[(String, StagedFile)]) -> Result<(), Error>;

    /// Removes a file that nobody may publish any more, under its hidden name and under its final one.
    async fn discard_file(&self, file: &StagedFile, name: &str) -> Result<(), Error>;

    /// Lists the hidden files, including those of running attempts and of other databases.
    async fn hidden_files(&self) -> Result<Vec<HiddenFile>, Error>;

    /// Removes a hidden file and returns true if it did. If `unwritten_for` is given, spares a file that was written
    /// more recently.
    async fn sweep(&self, hidden: &HiddenFile, unwritten_for: Option<Duration>) -> Result<bool, Error>;

    /// Reads the marker of a lane. Returns `None` if there is none, and [`Marker::unreadable`] if something else has
    /// its name, or the service has no right to read it.
    async fn lane_marker(&self, file: &MarkerFile) -> Result<Option<Marker>, Error>;

    /// Reads the markers of several lanes. A marker that can't be read now is `None`.
    async fn lane_markers(&self, files: &[MarkerFile]) -> Result<Vec<Option<Marker>>, Error>;

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
    ) -> Result<Option<Marker>, Error>;

    /// Makes a manifest durable under its name, unless something else has that name.
    async fn write_manifest(&self, record: &FileRecord, number: u64, text: &str) -> Result<WrittenManifest, Error>;

    /// Returns true if something other than this text has the manifest's name. Returns false if the name depends on the
    /// manifest's number, as it does in a bucket.
    async fn is_manifest_name_taken(&self, record: &FileRecord, text: &str) -> Result<bool, Error>;

    /// Removes a manifest if it has this text.
    async fn remove_manifest(&self, record: &FileRecord, text: &str) -> Result<(), Error>;

    /// Returns the largest number of a manifest in the file's lane, and 0 if there is none or the names of manifests
    /// have no numbers.
    async fn last_manifest(&self, record: &FileRecord) -> Result<u64, Error>;

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

    /// Removes the files of an export that nobody may publish any more, and its manifest. A file that can't be removed
    /// does not prevent the removal of the others.
    async fn discard(&self, record: &FileRecord) -> Result<(), Error> {
        if let Some(text) = &record.manifest {
            self.remove_manifest(record, text).await?;
        }
        let mut outcome = Ok(());
        for (name, file) in record.files() {
            outcome = self.discard_file(file, &name).await.and(outcome);
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
