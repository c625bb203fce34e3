//! Markers of lanes in a bucket: objects beside the files.

use bytes::Bytes;
use object_store::{ObjectStore, PutMode};

use crate::failpoint;
use crate::job::JobId;
use crate::job::marker::Marker;
use crate::sink::bucket::Bucket;
use crate::sink::bucket::objects::SMALL_BYTES;
use crate::sink::marker_file::to_keep;
use crate::sink::{Error, MarkerFile};

/// The number of further tries to write a marker after other processes have replaced it in between.
const MARK_TRIES: u32 = 5;

impl Bucket {
    /// Reads the marker of a lane: see [`Destination::lane_marker`](crate::sink::Destination::lane_marker).
    pub(super) async fn read_marker(&self, file: &MarkerFile) -> Result<Option<Marker>, Error> {
        failpoint!("sink.marker", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
        let text = self.objects.small(&self.objects.key(file.name())).await?;
        Ok(text.map(|text| file.parse(&text)))
    }

    /// Writes the marker of a lane: see
    /// [`Destination::write_lane_marker`](crate::sink::Destination::write_lane_marker).
    pub(super) async fn write_marker(
        &self,
        file: &MarkerFile,
        marker: &Marker,
        replaced: Option<JobId>,
    ) -> Result<Option<Marker>, Error> {
        failpoint!("sink.mark", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
        let key = self.objects.key(file.name());
        let text = Bytes::from(file.text(marker)?);
        let mut tries = 0..MARK_TRIES;
        loop {
            let found = self.objects.versioned(&key, SMALL_BYTES).await?;
            let present = found.as_ref().map(|(text, _)| file.parse(text));
            let kept = to_keep(present.as_ref(), marker, replaced);
            if kept.is_some() || present.as_ref() == Some(marker) {
                return Ok(kept);
            }
            // Another process may publish while a PUT is under way, so the PUT is conditional.
            let mode = found.map_or(PutMode::Create, |(_, version)| PutMode::Update(version));
            match self.objects.store.put_opts(&key, text.clone().into(), mode.into()).await {
                Ok(_) => return Ok(None),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. })
                    if tries.next().is_some() => {}
                Err(error) => return Err(self.objects.cannot("write", &key)(error)),
            }
        }
    }
}
