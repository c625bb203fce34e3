//! Markers of lanes, as objects beside the files.

use bytes::Bytes;
use object_store::ObjectStoreExt;

use crate::database::DatabaseId;
use crate::failpoint;
use crate::job::marker::Marker;
use crate::job::{ConsumerId, JobId};
use crate::sink::Error;
use crate::sink::bucket::Bucket;
use crate::sink::marker_file;

impl Bucket {
    /// The marker of a database's lane; `None` if there is none, [`Marker::unreadable`] if something else has its name.
    ///
    /// # Errors
    /// If the bucket doesn't answer.
    pub async fn marker(
        &self,
        database: &DatabaseId,
        consumer: &ConsumerId,
        dataset: &str,
    ) -> Result<Option<Marker>, Error> {
        failpoint!("sink.marker", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
        let text = self.objects.small(&self.objects.key(&marker_file::name(database, consumer, dataset))).await?;
        Ok(text.map(|text| marker_file::read(&text, consumer, dataset)))
    }

    /// Makes it durable that this export of a lane is the last one that is handed out, in place of none or of `replaced`. Called before
    /// its file has its name. Returns another marker that stands there, and that it left.
    ///
    /// # Errors
    /// If the bucket doesn't answer or refuses. The marker is the one before then, or this one.
    pub async fn mark(
        &self,
        database: &DatabaseId,
        consumer: &ConsumerId,
        dataset: &str,
        marker: &Marker,
        replaced: Option<JobId>,
    ) -> Result<Option<Marker>, Error> {
        failpoint!("sink.mark", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
        let present = self.marker(database, consumer, dataset).await?;
        let other = marker_file::in_the_way(present.as_ref(), marker, replaced);
        if other.is_some() {
            return Ok(other);
        }
        if present.as_ref() != Some(marker) {
            let text = marker_file::text(consumer, dataset, marker)?;
            let key = self.objects.key(&marker_file::name(database, consumer, dataset));
            self.objects.store.put(&key, Bytes::from(text).into()).await?;
        }
        Ok(None)
    }
}
