//! What others are told of exports: that one has ended, and how. Who wants to hear of it, and how far the telling has come.

pub mod address;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::job::{ConsumerId, JobId, Status};

pg_rows::words! {
    /// How the telling of an event to a receiver stands.
    DeliveryStatus, "the status of a delivery" {
        /// It is tried, now or later.
        Pending = "pending",
        /// The receiver has taken it.
        Delivered = "delivered",
        /// It is not tried any more, unless somebody asks for it.
        Dead = "dead",
    }
}

/// A receiver, by the events that it wants to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name in the operator's file.
    pub name: String,
    /// The ends that it is told of.
    pub events: Vec<Status>,
    /// Of these datasets; `None`: of all.
    pub datasets: Option<Vec<String>>,
    /// Of these consumers; `None`: of all, and of exports without one.
    pub consumers: Option<Vec<ConsumerId>>,
}

impl Listener {
    /// Whether it wants to hear that an export ended so.
    pub fn wants(&self, end: Status, dataset: &str, consumer: Option<&str>) -> bool {
        let is_of_dataset = self.datasets.as_ref().is_none_or(|names| names.iter().any(|name| name == dataset));
        let is_of_consumer =
            self.consumers.as_ref().is_none_or(|ids| ids.iter().any(|id| Some(id.as_str()) == consumer));
        self.events.contains(&end) && is_of_dataset && is_of_consumer
    }
}

/// A receiver over HTTP, as the operator's file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// What it is told of.
    pub listener: Listener,
    /// Where the events are posted to: `https://…`, or `http://…` where the operator allows it.
    pub url: String,
    /// The variable of the environment that has the secret by which the events are signed.
    pub secret_env: String,
    /// Whether its address may be one of a private network, or of this machine.
    pub allows_private: bool,
}

/// The telling of one event to one receiver.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The event's id: the same at each try.
    pub id: Uuid,
    /// The receiver's name.
    pub endpoint: String,
    /// The export.
    pub job: JobId,
    /// How it ended.
    pub event: Status,
    /// How the telling stands.
    pub status: DeliveryStatus,
    /// How many tries have ended since it was made or asked for again.
    pub attempt: u32,
    /// When it is tried next; `None`: never.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// The status of the last answer; `None`: there was none.
    pub last_status: Option<u16>,
    /// What was wrong with the last try.
    pub last_error: Option<String>,
    /// When the export ended.
    pub created_at: DateTime<Utc>,
    /// When it was delivered, or given up.
    pub ended_at: Option<DateTime<Utc>>,
}

/// Which deliveries a list has, newest first.
#[derive(Clone, Debug, Default)]
pub struct DeliveryFilter {
    /// Those that stand so.
    pub status: Option<DeliveryStatus>,
    /// Those to this receiver.
    pub endpoint: Option<String>,
    /// Those before this one.
    pub before: Option<Uuid>,
}

/// The name of an event in the operator's file: `export.completed`.
pub fn event_name(end: Status) -> String {
    format!("export.{end}")
}

/// The end that an event of this name tells of.
pub fn named_end(name: &str) -> Option<Status> {
    Status::ALL.iter().copied().find(|status| status.is_terminal() && event_name(*status) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_hears_what_it_wants() {
        let all = Listener {
            name: "a".to_owned(),
            events: vec![Status::Completed, Status::Failed],
            datasets: None,
            consumers: None,
        };
        assert!(all.wants(Status::Completed, "users", None) && all.wants(Status::Failed, "orders", Some("search")));
        assert!(!all.wants(Status::Cancelled, "users", None) && !all.wants(Status::Processing, "users", None));
        let some = Listener {
            datasets: Some(vec!["users".to_owned()]),
            consumers: Some(vec!["search".parse().unwrap()]),
            ..all
        };
        assert!(some.wants(Status::Failed, "users", Some("search")));
        for (dataset, consumer) in [("orders", Some("search")), ("users", Some("other")), ("users", None)] {
            assert!(!some.wants(Status::Failed, dataset, consumer), "{dataset} {consumer:?}");
        }
    }

    #[test]
    fn only_ends_have_names() {
        assert_eq!(named_end("export.completed"), Some(Status::Completed));
        for other in ["export.pending", "completed", "export.processing", ""] {
            assert_eq!(named_end(other), None, "{other}");
        }
    }
}
