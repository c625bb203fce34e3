//! Markers of lanes, as objects beside the files.

use bytes::Bytes;
use object_store::ObjectStoreExt;

use crate::failpoint;
use crate::job::JobId;
use crate::job::marker::Marker;
use crate::sink::Error;
use crate::sink::bucket::Bucket;
use crate::sink::marker_file::{MarkerFile, to_keep};

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
        let present = self.marker(file).await?;
        let kept = to_keep(present.as_ref(), marker, replaced);
        if kept.is_none() && present.as_ref() != Some(marker) {
            let text = Bytes::from(file.text(marker)?);
            self.objects.store.put(&self.objects.key(file.name()), text.into()).await?;
        }
        Ok(kept)
    }
}
