//! Markers of lanes, as objects beside the files.

use bytes::Bytes;
use object_store::{ObjectStore, PutMode};

use crate::failpoint;
use crate::job::JobId;
use crate::job::marker::Marker;
use crate::sink::Error;
use crate::sink::bucket::Bucket;
use crate::sink::bucket::objects::SMALL_BYTES;
use crate::sink::marker_file::{MarkerFile, to_keep};

/// The number of further tries to write a marker after other processes have replaced it in between.
const MARK_TRIES: u32 = 5;

impl Bucket {
    /// Reads the marker of a lane: see [`Destination::marker`](crate::sink::Destination::marker).
    pub(in crate::sink) async fn marker(&self, file: &MarkerFile) -> Result<Option<Marker>, Error> {
        failpoint!("sink.marker", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
        let text = self.objects.small(&self.objects.key(file.name())).await?;
        Ok(text.map(|text| file.parse(&text)))
    }

    /// Writes the marker of a lane: see [`Destination::mark`](crate::sink::Destination::mark).
    pub(in crate::sink) async fn mark(
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
            // A PUT may be under way as long as the network lets it, and others publish meanwhile.
            let mode = found.map_or(PutMode::Create, |(_, version)| PutMode::Update(version));
            match self.objects.store.put_opts(&key, text.clone().into(), mode.into()).await {
                Ok(_) => return Ok(None),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. })
                    if tries.next().is_some() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
