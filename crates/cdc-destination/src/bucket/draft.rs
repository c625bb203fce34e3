//! A draft in a bucket: an upload that is hashed on the way and cut into parts. Several parts are uploaded at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::PutPayload;
use ring::digest;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bucket::failure::may_pass;
use crate::bucket::note::Note;
use crate::bucket::objects::{Objects, UPLOADS, path};
use crate::{Draft, Error, FileIdentity, FileLocation, StagedFile, stall_limit};
use failpoint::failpoint;
use http_client::pause::Backoff;

/// The number of parts that every store takes.
const MOST_PARTS: usize = 10_000;

const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));

/// A file that is being uploaded. If it is dropped before it is staged, the sweep aborts the upload.
pub(super) struct Upload {
    objects: Arc<Objects>,
    destination: Uuid,
    hidden_name: String,
    note: Note,
    /// Cancelled when nobody waits for the file any more.
    stopped: CancellationToken,
    sha256: digest::Context,
    size: u64,
    /// The content of the next part, and its size.
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    begun: usize,
    /// The parts that are being uploaded. Dropping the set gives them up.
    on_their_way: JoinSet<Result<(usize, String), Error>>,
    /// The numbers and ids of the parts that arrived, in no order.
    arrived: Vec<(usize, String)>,
}

impl Upload {
    pub(super) fn new(
        objects: Arc<Objects>,
        destination: Uuid,
        hidden_name: String,
        note: Note,
        stopped: CancellationToken,
    ) -> Upload {
        Upload {
            objects,
            destination,
            hidden_name,
            note,
            stopped,
            sha256: digest::Context::new(&digest::SHA256),
            size: 0,
            gathered: Vec::new(),
            gathered_bytes: 0,
            begun: 0,
            on_their_way: JoinSet::new(),
            arrived: Vec::new(),
        }
    }

    fn send(&mut self) -> Result<(), Error> {
        if self.begun == MOST_PARTS {
            return Err(Error::TooLarge(self.size));
        }
        self.wait_for(UPLOADS - 1)?;
        let (number, payload) = (self.begun, PutPayload::from_iter(self.gathered.drain(..)));
        self.gathered_bytes = 0;
        self.begun += 1;
        let (objects, note) = (Arc::clone(&self.objects), self.note.clone());
        self.on_their_way.spawn_on(part(objects, note, number, payload), &Handle::current());
        Ok(())
    }

    fn wait_for(&mut self, most: usize) -> Result<(), Error> {
        let Upload { on_their_way, arrived, stopped, .. } = self;
        Handle::current().block_on(async {
            while on_their_way.len() > most {
                let next = tokio::select! {
                    next = on_their_way.join_next() => next,
                    () = stopped.cancelled() => return Err(Error::Stopped),
                };
                match next {
                    Some(Ok(part)) => arrived.push(part?),
                    Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                    None => {}
                }
            }
            Ok(())
        })
    }
}

impl Draft for Upload {
    /// Blocks while [`UPLOADS`] parts are being uploaded. This bounds the memory of an upload.
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        self.sha256.update(bytes);
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = self.objects.settings.part_bytes - self.gathered_bytes;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.gathered.push(Bytes::copy_from_slice(now));
            self.gathered_bytes += now.len();
            bytes = later;
            if self.gathered_bytes == self.objects.settings.part_bytes {
                self.send()?;
            }
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.size
    }

    /// Uploads the rest, and waits until the store has all parts.
    fn stage(mut self: Box<Self>) -> Result<StagedFile, Error> {
        // An empty file has an empty part, where a store takes one.
        if self.gathered_bytes > 0 || (self.begun == 0 && !self.objects.settings.address.is_azure()) {
            self.send()?;
        }
        self.wait_for(0)?;
        self.arrived.sort_unstable_by_key(|(number, _)| *number);
        let Upload { destination, hidden_name: name, note, sha256, size, arrived, .. } = *self;
        let parts = arrived.into_iter().map(|(_, id)| id).collect();
        let Note { key, upload } = note;
        let location = FileLocation::Upload { key, upload, parts };
        let sha256 = hex::encode(sha256.finish());
        let identity = FileIdentity { bytes: size, location };
        Ok(StagedFile { destination, name, sha256, identity })
    }
}

/// Uploads a part. Tries again while the store fails in a way that may pass.
async fn part(objects: Arc<Objects>, note: Note, number: usize, payload: PutPayload) -> Result<(usize, String), Error> {
    failpoint!("bucket.part", Err(Error::Unavailable(std::io::ErrorKind::BrokenPipe.into())));
    let (key, begun) = (path(&note.key)?, Instant::now());
    let mut backoff = BACKOFF;
    loop {
        let error = match objects.parts.put_part(&key, &note.upload, number, payload.clone()).await {
            Ok(part) => return Ok((number, part.content_id)),
            Err(error) => error,
        };
        let pause = backoff.next_pause();
        if !may_pass(&error) || begun.elapsed() + pause > stall_limit() {
            return Err(objects.cannot("upload a part of", &key)(error));
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::Uri;

    use super::*;
    use crate::bucket::address::BucketAddress;
    use crate::bucket::objects::Settings;

    /// A draft with parts of so few bytes, at a store that takes every part and calls it by its address.
    async fn draft(part_bytes: usize) -> Box<Upload> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let store = Router::new().fallback(async |uri: Uri| [("etag", uri.query().unwrap().to_owned())]);
        tokio::spawn(async move { axum::serve(listener, store).await });
        let variables = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ];
        let address = BucketAddress::read("s3://files", variables).unwrap();
        let settings = Settings { address, part_bytes };
        let objects = Arc::new(Objects::new(settings).unwrap());
        let note = Note { key: "a".to_owned(), upload: "u".to_owned() };
        Box::new(Upload::new(objects, Uuid::nil(), "hidden".to_owned(), note, CancellationToken::new()))
    }

    #[tokio::test]
    async fn parts_have_one_size_and_their_order_and_are_as_many_as_a_store_takes() {
        let numbers = |first: usize| (first..).map(|number| format!("partNumber={number}"));
        for (begun, bytes, sent) in [(0, 10, Some(3)), (MOST_PARTS - 2, 8, Some(2)), (MOST_PARTS - 2, 9, None)] {
            let mut draft = draft(4).await;
            (draft.begun, draft.size) = (begun, 4 * begun as u64);
            let staged = tokio::task::spawn_blocking(move || {
                draft.write(&b"0123456"[..])?;
                draft.write(&b"789"[..bytes - 7])?;
                draft.stage()
            });
            match (staged.await.unwrap(), sent) {
                (Ok(staged), Some(sent)) => {
                    assert_eq!(staged.identity.bytes, (4 * begun + bytes) as u64);
                    let FileLocation::Upload { parts, .. } = staged.identity.location else { panic!("it is uploaded") };
                    let found = parts.iter().map(|part| part.split('&').next().unwrap());
                    assert!(found.eq(numbers(begun + 1).take(sent)), "{parts:?}");
                }
                (Err(error), None) => assert!(matches!(error, Error::TooLarge(_)), "{error}"),
                (other, _) => panic!("{begun} {bytes}: {:?}", other.map(drop)),
            }
        }
    }

    #[test]
    fn the_largest_file_is_as_the_guide_says() {
        let guide = include_str!("../../../../docs/guides/buckets.md");
        for (part_mib, gib) in [(8, 78), (64, 625)] {
            assert_eq!(part_mib * MOST_PARTS / 1024, gib);
            assert!(guide.contains(&format!("{gib} GiB")), "{gib}");
        }
    }
}
