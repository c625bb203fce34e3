//! The contract of `cdc_destination::Destination`, which every implementation keeps. `buckets` runs it on emulators.

use std::time::Duration;

use cdc_destination::{
    Destination, Error, ExportFiles, FileIdentity, FileName, HiddenFile, Limited, Marker, MarkerFile, Part, Prepared,
    Published, PublishedFile, Settings, StagedFile, WrittenManifest,
};
use cdc_manifest::{ConsumerId, JobId, Lane};
use pg_rows::encoding::{Compression, Encoding, Format};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

#[tokio::test]
async fn a_folder_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::Folder(dir.path().to_owned());
    keeps_its_contract(|| settings.destination().unwrap()).await;
}

const ENCODING: Encoding = Encoding { format: Format::Csv, compression: Compression::None };

/// Checks every part of the contract on a new destination. `open` opens it as another process would.
pub(crate) async fn keeps_its_contract(open: impl Fn() -> Limited) {
    let destination = open();
    let unprepared = destination.id().await;
    assert!(matches!(unprepared, Err(Error::Unused)), "{destination:?}: {unprepared:?}");
    assert_eq!(destination.prepare().await.unwrap(), Prepared::New);
    let other = open();
    assert_eq!(other.prepare().await.unwrap(), Prepared::Known);
    assert_eq!(other.id().await.unwrap(), destination.id().await.unwrap());
    destination.require_room().await.unwrap();
    files_appear_when_they_are_published(&destination, &other).await;
    hidden_files_are_swept(&destination, &other).await;
    lane_markers_are_replaced_only_knowingly(&destination, &other).await;
    manifests_are_never_replaced(&destination, &other).await;
}

async fn files_appear_when_they_are_published(destination: &Limited, other: &Limited) {
    let name = name_of_a_file();
    let staged = staged(destination, &hidden_file(), &name, b"abc").await;
    let name = name.name.as_str();
    assert_eq!(staged.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!((staged.identity.bytes, staged.destination), (3, destination.id().await.unwrap()));
    assert!(is_hidden(other, &staged.name).await);
    assert!(destination.open(&staged, name).await.unwrap().is_none(), "nobody sees it yet");
    let elsewhere = StagedFile { destination: Uuid::nil(), ..staged.clone() };
    assert!(matches!(destination.publish(&elsewhere, name).await, Err(Error::Elsewhere)));

    // A process died before it recorded the publication, and another one repeats it.
    let Published::Done(location) = destination.publish(&staged, name).await.unwrap() else { panic!("published") };
    assert_eq!(other.publish(&staged, name).await.unwrap(), Published::Done(location.clone()));
    let published = StagedFile { identity: FileIdentity { bytes: 3, location }, ..staged.clone() };
    assert!(!is_hidden(other, &staged.name).await);
    let file = other.open(&published, name).await.unwrap().expect("it is published");
    assert_eq!(content(file, 1, 2).await, b"bc");

    let changed = FileIdentity { bytes: 4, ..published.identity.clone() };
    destination.remove(&[(name.to_owned(), StagedFile { identity: changed, ..published.clone() })]).await.unwrap();
    assert!(destination.open(&published, name).await.unwrap().is_some(), "the recorded file alone is removed");
    for destination in [destination, other] {
        destination.remove(&[(name.to_owned(), published.clone())]).await.unwrap();
        assert!(destination.open(&published, name).await.unwrap().is_none());
    }
    assert_eq!(destination.publish(&staged, name).await.unwrap(), Published::Gone);
}

async fn hidden_files_are_swept(destination: &Limited, other: &Limited) {
    let (first, name) = (hidden_file(), name_of_a_file());
    let second = first.with_part(2);
    staged(destination, &first, &name, b"abc").await;
    staged(destination, &second, &name, b"def").await;
    assert!(!other.sweep(&first, Some(Duration::from_secs(3600))).await.unwrap(), "it was just written");
    other.abort(&first).await.unwrap();
    for hidden in [&first, &second] {
        assert!(!is_hidden(destination, &hidden.name).await);
        assert!(!destination.sweep(hidden, None).await.unwrap());
    }

    let hidden = hidden_file();
    drop(destination.create(&hidden, &name, &CancellationToken::new()).await.unwrap());
    other.abort(&hidden).await.unwrap();
    assert!(!is_hidden(destination, &hidden.name).await, "an unfinished draft");

    let unpublished = staged(destination, &hidden_file(), &name, b"abc").await;
    let hidden = unpublished.name.clone();
    let record = record(vec![Part { rows: 1, staged: unpublished }]);
    for destination in [destination, other] {
        destination.discard(&record).await.unwrap();
        assert!(!is_hidden(destination, &hidden).await);
    }
}

async fn lane_markers_are_replaced_only_knowingly(destination: &Limited, other: &Limited) {
    let record = record(Vec::new());
    let consumer = record.consumer.as_ref().unwrap();
    let [file, unmarked] =
        ["users", "orders"].map(|dataset| MarkerFile::new(&record.database, Lane { consumer, dataset }));
    let [first, last] = ["1", "2"].map(|sha256| Marker { job: JobId::random(), sha256: sha256.to_owned(), order: 1 });
    assert_eq!(destination.lane_marker(&file).await.unwrap(), None);
    for destination in [destination, other] {
        assert_eq!(destination.write_lane_marker(&file, &first, None).await.unwrap(), None, "again too");
    }
    for replaced in [None, Some(JobId::random())] {
        assert_eq!(other.write_lane_marker(&file, &last, replaced).await.unwrap().as_ref(), Some(&first));
    }
    assert_eq!(other.write_lane_marker(&file, &last, Some(first.job)).await.unwrap(), None);
    assert_eq!(destination.lane_marker(&file).await.unwrap().as_ref(), Some(&last));
    assert_eq!(destination.lane_markers(&[file, unmarked]).await.unwrap(), [Some(last), None]);
}

async fn manifests_are_never_replaced(destination: &Limited, other: &Limited) {
    let record = record(Vec::new());
    for destination in [destination, other] {
        assert_eq!(destination.write_manifest(&record, 0, "one").await.unwrap(), WrittenManifest::Done);
    }
    assert!(!destination.is_manifest_name_taken(&record, "one").await.unwrap());
    assert_eq!(other.write_manifest(&record, 0, "two").await.unwrap(), WrittenManifest::Taken);
    destination.remove_manifest(&record, "two").await.unwrap();
    assert_eq!(other.write_manifest(&record, 0, "two").await.unwrap(), WrittenManifest::Taken, "it is still one");
    destination.remove_manifest(&record, "one").await.unwrap();
    assert_eq!(other.write_manifest(&record, 0, "two").await.unwrap(), WrittenManifest::Done);
    let discarded = ExportFiles { manifest: Some("two".to_owned()), ..record.clone() };
    other.discard(&discarded).await.unwrap();
    assert_eq!(destination.write_manifest(&record, 0, "one").await.unwrap(), WrittenManifest::Done);
    assert!(destination.hidden_files().await.unwrap().iter().all(|hidden| hidden.job != record.job));
}

fn consumer() -> ConsumerId {
    "search".parse().unwrap()
}

pub(crate) fn hidden_file() -> HiddenFile {
    HiddenFile::of_attempt(&"00000000000000ff-1".parse().unwrap(), JobId::random(), Uuid::new_v4(), 1)
}

pub(crate) fn name_of_a_file() -> FileName {
    let name = format!("{}.csv", Uuid::new_v4().simple());
    FileName { dataset: "users".to_owned(), consumer: Some(consumer()), name, encoding: ENCODING }
}

fn record(parts: Vec<Part>) -> ExportFiles {
    ExportFiles {
        job: JobId::random(),
        consumer: Some(consumer()),
        database: "00000000000000ff-1".parse().unwrap(),
        dataset: "users".to_owned(),
        name: name_of_a_file().name,
        parts,
        manifest: None,
    }
}

pub(crate) async fn staged(
    destination: &Limited,
    hidden: &HiddenFile,
    name: &FileName,
    content: &'static [u8],
) -> StagedFile {
    let mut draft = destination.create(hidden, name, &CancellationToken::new()).await.unwrap();
    let write = move || {
        draft.write(content).unwrap();
        assert_eq!(draft.size(), content.len() as u64);
        draft.stage().unwrap()
    };
    tokio::task::spawn_blocking(write).await.unwrap()
}

async fn is_hidden(destination: &Limited, name: &str) -> bool {
    destination.hidden_files().await.unwrap().iter().any(|hidden| hidden.name == name)
}

async fn content(file: Box<dyn PublishedFile>, from: u64, length: u64) -> Vec<u8> {
    let mut content = Vec::new();
    file.part(from, length).await.unwrap().read_to_end(&mut content).await.unwrap();
    content
}
