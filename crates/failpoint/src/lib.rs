#![doc = include_str!("../README.md")]

/// A failpoint. With a second argument, the action `error` makes the function return that value.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        let _ = $crate::hit($name);
    };
    ($name:literal, $error:expr) => {
        #[cfg(debug_assertions)]
        if $crate::hit($name) {
            return $error;
        }
        // Prevents warnings about unused code in release builds.
        #[cfg(not(debug_assertions))]
        if false {
            return $error;
        }
    };
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a failpoint: NAME=kill|error|hold|sleep:MS|time:MS, then @N for the Nth hit")]
pub struct BadSpec(String);

/// Returns the duration `usual`. Other builds can replace it, for example by `FAILPOINTS=http.stall=time:2000`.
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

    /// Arms the failpoints of a comma-separated list. The first call in a process takes effect.
    pub fn arm(list: &str) -> Result<(), BadSpec> {
        let points = list.split(',').map(|spec| parse(spec).ok_or_else(|| BadSpec(spec.to_owned())));
        let points = points.collect::<Result<Vec<_>, _>>()?;
        // A process calls this once. A second list would be ignored.
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

    /// Returns the duration that a test sets for this name, for example by `FAILPOINTS=http.stall=time:2000`. Otherwise
    /// returns `usual`.
    pub fn time(name: &str, usual: Duration) -> Duration {
        match find(name).map(|point| &point.action) {
            Some(Action::Time(time)) => *time,
            _ => usual,
        }
    }

    fn find(name: &str) -> Option<&'static Failpoint> {
        ARMED.get().and_then(|points| points.iter().find(|point| point.name == name))
    }

    /// Counts a hit of a failpoint, and executes the action for this hit. Returns true if the caller must return its
    /// error.
    pub fn hit(name: &str) -> bool {
        let Some(point) = find(name) else { return false };
        if point.hits.fetch_add(1, Ordering::SeqCst) + 1 != point.at {
            return false;
        }
        tracing::warn!(event = "failpoint", name);
        // `block_in_place` moves the runtime's other tasks to another thread. This thread may be the one that polls the
        // sockets.
        match point.action {
            Action::Kill => {
                let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
                std::process::abort()
            }
            Action::Error => true,
            // The name of a duration is never the name of a failpoint.
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

    /// Creates the file of a held failpoint, and waits until the test removes it. Returns at once if the file can't be
    /// created.
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
