//! The permissions of files: those that the umask leaves.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::{Database, Start};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// The modes in a folder, by what a name ends in.
fn modes(folder: &Path) -> BTreeMap<String, u32> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.to_str().unwrap().rsplit(['.', '-']).next().unwrap().to_owned(), mode(&path))).collect()
}

fn all(mode: u32) -> BTreeMap<String, u32> {
    // The one in JSON is the marker of a lane.
    ["csv", "json", "part", "store"].map(|end| (end.to_owned(), mode)).into()
}

/// Modes after one export that is whole and one that died before it was, in a folder that the service made, and the
/// folder's.
async fn after_exports(start: impl Fn() -> Start) -> (u32, BTreeMap<String, u32>) {
    let database = Database::with_users(10).await;
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("above/files");
    let on = || start().with("DATABASE_URL", database.url()).with("OUTPUT_DIR", folder.display());
    let service = on().service().await;
    service.completes(&service.submit("full", "a").await).await;
    service.stop().await;
    let mut doomed = on().with("FAILPOINTS", "worker.staged=kill").service().await;
    doomed.submit("full", "b").await;
    doomed.dies().await;
    assert_eq!(mode(&folder), mode(&work.path().join("above")));
    (mode(&folder), modes(&folder))
}

#[tokio::test]
async fn files_and_folders_have_what_the_umask_leaves() {
    for (umask, folder, file) in [("027", 0o750, 0o640), ("077", 0o700, 0o600), ("002", 0o775, 0o664)] {
        assert_eq!(after_exports(|| Start::plain().under_umask(umask)).await, (folder, all(file)), "{umask}");
    }
}
