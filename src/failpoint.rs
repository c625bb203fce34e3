//! Faults that a test asks for at a named place: `failpoint!("sink.fsync", Err(…))`.
//!
//! Release builds don't have the places, nor their names. In other builds a place does nothing until `FAILPOINTS` names
//! it: `FAILPOINTS=worker.publish=kill,sink.fsync=error@2` kills the process at the first hit of `worker.publish`, and
//! has the second hit of `sink.fsync` return the given error. `sleep:MS` holds up the task that hits the place for so
//! long, while the rest of the process goes on. `hold` holds it up until the test lets it go: it makes the file
//! `NAME.held` in the process's folder, and waits until that is removed. With a SIGSTOP meanwhile a test stops the rest
//! too, as a paused virtual machine would. `time:MS` is of no place: it sets a time of [`time`].

/// A place where a test may inject a fault. With a second argument, `error` makes the function return that value.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        let _ = $crate::failpoint::hit($name);
    };
    ($name:literal, $error:expr) => {
        #[cfg(debug_assertions)]
        if $crate::failpoint::hit($name) {
            return $error;
        }
        // So that the compiler doesn't call unused, in release builds, what the error is made of.
        #[cfg(not(debug_assertions))]
        if false {
            return $error;
        }
    };
}

/// The error of a list of failpoints that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a failpoint: NAME=kill|error|hold|sleep:MS|time:MS, then @N for the Nth hit")]
pub struct BadSpec(String);

/// A time that is `usual`, or that of a place which a test sets: `FAILPOINTS=http.stall=time:2000`.
#[cfg(not(debug_assertions))]
pub fn time(_: &str, usual: std::time::Duration) -> std::time::Duration {
    usual
}

#[cfg(debug_assertions)]
pub use armed::{arm, hit, time};

#[cfg(debug_assertions)]
mod armed {
    use std::path::Path;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::BadSpec;

    /// How often a held task looks whether it may go on.
    const HELD_POLL: Duration = Duration::from_millis(5);

    enum Action {
        Kill,
        Error,
        Hold,
        Sleep(Duration),
        Time(Duration),
    }

    struct Failpoint {
        name: String,
        action: Action,
        at: u64,
        hits: AtomicU64,
    }

    static ARMED: OnceLock<Vec<Failpoint>> = OnceLock::new();

    /// Arms the failpoints of a comma-separated list, once a process.
    ///
    /// # Errors
    /// If the list doesn't have the form that this module's page shows.
    pub fn arm(list: &str) -> Result<(), BadSpec> {
        let points = list.split(',').map(|spec| parse(spec).ok_or_else(|| BadSpec(spec.to_owned())));
        let points = points.collect::<Result<Vec<_>, _>>()?;
        // A process has one list: a second one, which nothing sets, would be ignored.
        let _ = ARMED.set(points);
        Ok(())
    }

    fn parse(spec: &str) -> Option<Failpoint> {
        let (name, rest) = spec.split_once('=')?;
        let (action, at) = rest.split_once('@').unwrap_or((rest, "1"));
        let action = match action.split_once(':') {
            None if action == "kill" => Action::Kill,
            None if action == "error" => Action::Error,
            None if action == "hold" => Action::Hold,
            Some(("sleep", millis)) => Action::Sleep(Duration::from_millis(millis.parse().ok()?)),
            Some(("time", millis)) => Action::Time(Duration::from_millis(millis.parse().ok()?)),
            _ => return None,
        };
        Some(Failpoint { name: name.to_owned(), action, at: at.parse().ok()?, hits: AtomicU64::new(0) })
    }

    /// A time that is `usual`, or that of a place which a test sets: `FAILPOINTS=http.stall=time:2000`.
    pub fn time(name: &str, usual: Duration) -> Duration {
        match find(name).map(|point| &point.action) {
            Some(Action::Time(time)) => *time,
            _ => usual,
        }
    }

    fn find(name: &str) -> Option<&'static Failpoint> {
        ARMED.get().and_then(|points| points.iter().find(|point| point.name == name))
    }

    /// Counts a hit of a place, and does what is armed for this hit. `true`: the place shall return its error.
    pub fn hit(name: &str) -> bool {
        let Some(point) = find(name) else { return false };
        if point.hits.fetch_add(1, Ordering::SeqCst) + 1 != point.at {
            return false;
        }
        tracing::warn!(event = "failpoint", name);
        // `block_in_place` has the runtime move its other tasks to another thread: this thread may be the one that
        // watches the sockets.
        match point.action {
            Action::Kill => {
                let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
                std::process::abort()
            }
            Action::Error => true,
            // No place is hit that has the name of a time.
            Action::Time(_) => false,
            Action::Hold => {
                tokio::task::block_in_place(|| hold(name));
                false
            }
            Action::Sleep(time) => {
                tokio::task::block_in_place(|| std::thread::sleep(time));
                false
            }
        }
    }

    /// Returns once a test has removed the file that this makes, or if it can't be made.
    fn hold(name: &str) {
        let held = Path::new(name).with_added_extension("held");
        if let Err(error) = std::fs::File::create(&held) {
            tracing::error!(event = "failpoint_not_held", name, %error);
        }
        while held.exists() {
            std::thread::sleep(HELD_POLL);
        }
    }
}
