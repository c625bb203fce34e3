//! Events and their deliveries. The end of an export makes an event for each receiver that is configured for it.
//!
//! A delivery is the state of one event for one receiver.

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
        /// All attempts failed. No further attempt follows unless an operator requests a redelivery.
        Dead = "dead",
    }
}

/// A receiver and the filter of its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The receiver's name in the operator's file.
    pub name: String,
    /// The final statuses for which the receiver gets an event.
    pub events: Vec<Status>,
    /// The datasets for whose exports the receiver gets events. `None` selects all.
    pub datasets: Option<Vec<String>>,
    /// The consumers for whose exports the receiver gets events. `None` selects all, and ad-hoc exports.
    pub consumers: Option<Vec<ConsumerId>>,
}

impl Listener {
    /// Returns true if the receiver gets an event for an export that ended with this status.
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
    /// The event's id, which is the same in each attempt.
    pub id: Uuid,
    /// The receiver's name.
    pub endpoint: String,
    /// The export's job.
    pub job: JobId,
    /// The final status of the export.
    pub event: Status,
    /// The state of the delivery.
    pub status: DeliveryStatus,
    /// The number of ended attempts since the delivery was created, or since the last request for a redelivery.
    pub attempt: u32,
    /// The time at which the next attempt is due. `None` if no attempt follows.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// The HTTP status of the last response. `None` if no response was received.
    pub last_status: Option<u16>,
    /// The error of the last attempt.
    pub last_error: Option<String>,
    /// The time at which the export ended.
    pub created_at: DateTime<Utc>,
    /// The time at which the event was delivered or the delivery became dead.
    pub ended_at: Option<DateTime<Utc>>,
}

/// The filter of a list of deliveries, newest first. A field with `None` does not restrict the list.
#[derive(Clone, Debug, Default)]
pub struct DeliveryFilter {
    /// Selects deliveries in this state.
    pub status: Option<DeliveryStatus>,
    /// Selects deliveries to this receiver.
    pub endpoint: Option<String>,
    /// Selects deliveries older than this one.
    pub before: Option<Uuid>,
}

/// Returns the name of an event in the operator's file, for example `export.completed`.
pub fn event_name(end: Status) -> String {
    format!("export.{end}")
}

/// Parses the name of an event and returns its final status. Returns `None` if there is no such event.
pub fn named_end(name: &str) -> Option<Status> {
    Status::ALL.iter().copied().find(|status| status.is_terminal() && event_name(*status) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listener_gets_only_events_that_match_its_filter() {
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
