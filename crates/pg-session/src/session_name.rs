//! The names of our sessions: the `application_name` of each, which every role may see.
//!
//! Each name begins with `cdc-export` and the process. A name has at most 63 bytes, as in Postgres.

use std::sync::LazyLock;

use uuid::Uuid;

/// The name of this process, which is random.
static PROCESS: LazyLock<String> = LazyLock::new(|| {
    let random = Uuid::new_v4().simple().to_string();
    random[..8].to_owned()
});

pub fn of_process() -> String {
    format!("cdc-export {}", *PROCESS)
}

/// Returns the name of the session that listens for a process whose claims fail.
pub fn of_failing() -> String {
    format!("{} failing", of_process())
}

/// Returns the name of a session that will hold the snapshots of attempts, one after the other.
///
/// The name is random. It is not the token of a lease, which only an attempt may know.
pub fn of_leader() -> String {
    let random = Uuid::new_v4().simple().to_string();
    format!("{} {}", of_process(), &random[..16])
}

/// Returns the name of the sessions that read the snapshots of this leader.
pub fn of_reader(leader: &str) -> String {
    format!("{leader} reader")
}

/// Returns the name of the session that last looked for work on behalf of a destination.
pub fn of_destination(destination: Uuid) -> String {
    format!("{} at {}", of_process(), destination.simple())
}
