//! Events: a receiver of the operator's file gets one when an export ended. A delivery is the state of one event for
//! one receiver.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::job::{ConsumerId, JobId, Status};

pg_rows::words! {
    /// The state of a delivery.
    DeliveryStatus, "the status of a delivery" {
        /// An attempt is running or due later.
        Pending = "pending",
        /// The receiver accepted the event.
        Delivered = "delivered",
        /// All attempts failed. There is no other one, unless somebody asks for a redelivery.
        Dead = "dead",
    }
}

/// A receiver, and which events it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name in the operator's file.
    pub name: String,
    /// The final statuses that make an event for it.
    pub events: Vec<Status>,
    /// The datasets whose exports it gets events of. `None`: all.
    pub datasets: Option<Vec<String>>,
    /// The consumers whose exports it gets events of. `None`: all, and exports without a consumer.
    pub consumers: Option<Vec<ConsumerId>>,
}

impl Listener {
    /// Returns true if the receiver gets an event of this end.
    pub fn wants(&self, end: Status, dataset: &str, consumer: Option<&str>) -> bool {
        let is_of_dataset = self.datasets.as_ref().is_none_or(|names| names.iter().any(|name| name == dataset));
        let is_of_consumer =
            self.consumers.as_ref().is_none_or(|ids| ids.iter().any(|id| Some(id.as_str()) == consumer));
        self.events.contains(&end) && is_of_dataset && is_of_consumer
    }
}

/// The delivery of one event to one receiver.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The event's id, the same in each attempt.
    pub id: Uuid,
    /// The receiver's name.
    pub endpoint: String,
    /// The export.
    pub job: JobId,
    /// How it ended.
    pub event: Status,
    /// The state.
    pub status: DeliveryStatus,
    /// How many attempts ended since the delivery was made, or since somebody last asked for a redelivery.
    pub attempt: u32,
    /// When the next attempt is due. `None`: there is none.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// The HTTP status of the last answer. `None`: there was no answer.
    pub last_status: Option<u16>,
    /// The error of the last attempt.
    pub last_error: Option<String>,
    /// When the export ended.
    pub created_at: DateTime<Utc>,
    /// When it was delivered or became dead.
    pub ended_at: Option<DateTime<Utc>>,
}

/// Filter of a list of deliveries, newest first.
#[derive(Clone, Debug, Default)]
pub struct DeliveryFilter {
    /// Deliveries in this state.
    pub status: Option<DeliveryStatus>,
    /// Deliveries to this receiver.
    pub endpoint: Option<String>,
    /// Deliveries before this one.
    pub before: Option<Uuid>,
}

/// The name of an event in the operator's file: `export.completed`.
pub fn event_name(end: Status) -> String {
    format!("export.{end}")
}

/// Returns the final status that an event name stands for. `None`: there is no such event.
pub fn named_end(name: &str) -> Option<Status> {
    Status::ALL.iter().copied().find(|status| status.is_terminal() && event_name(*status) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_gets_the_events_of_its_lists() {
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
    fn only_final_statuses_have_event_names() {
        assert_eq!(named_end("export.completed"), Some(Status::Completed));
        for other in ["export.pending", "completed", "export.processing", ""] {
            assert_eq!(named_end(other), None, "{other}");
        }
    }
}
