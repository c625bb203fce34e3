//! Events and their deliveries. The end of a job makes one event for each receiver that is configured for it.
//!
//! A delivery is the state of one event for one receiver.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::job::Status;
use cdc_manifest::{ConsumerId, JobId};

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

/// The type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventType {
    pub end: Status,
}

impl EventType {
    pub fn all() -> impl Iterator<Item = EventType> {
        Status::ALL.iter().copied().filter(|status| status.is_terminal()).map(|end| EventType { end })
    }

    /// Returns the name of the type in the operator's file, for example `export.completed`.
    pub fn name(self) -> String {
        format!("export.{}", self.end)
    }

    pub fn named(name: &str) -> Option<EventType> {
        EventType::all().find(|event| event.name() == name)
    }
}

/// A receiver and the filter of its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub name: String,
    pub events: Vec<EventType>,
    /// The datasets of whose exports the receiver gets events. An event shows the job as if it had only those. `None`
    /// selects all.
    pub datasets: Option<Vec<String>>,
    /// The consumers of whose jobs the receiver gets events. `None` selects all, and ad-hoc exports.
    pub consumers: Option<Vec<ConsumerId>>,
}

impl Listener {
    /// Returns the event that the receiver gets of the end of a job with these exports: the dataset and the status of
    /// each.
    pub fn event_of(&self, consumer: Option<&str>, exports: &[(String, Status)]) -> Option<EventType> {
        let is_of_consumer =
            self.consumers.as_ref().is_none_or(|ids| ids.iter().any(|id| Some(id.as_str()) == consumer));
        let visible = exports.iter().filter(|(dataset, _)| self.may_see(dataset)).map(|(_, status)| *status);
        visible.clone().next().filter(|_| is_of_consumer)?;
        Some(EventType { end: Status::of_job(visible) }).filter(|event| self.events.contains(event))
    }

    pub fn may_see(&self, dataset: &str) -> bool {
        self.datasets.as_ref().is_none_or(|names| names.iter().any(|name| name == dataset))
    }
}

/// The delivery of one event to one receiver.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The event's id, which is the same in each attempt.
    pub id: Uuid,
    pub endpoint: String,
    pub job: JobId,
    pub event: EventType,
    pub status: DeliveryStatus,
    /// The number of ended attempts since the delivery was created, or since the last request for a redelivery.
    pub attempt: u32,
    /// The time at which the next attempt is due. `None` if no attempt follows.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// The HTTP status of the last response. `None` if no response was received.
    pub last_status: Option<u16>,
    pub last_error: Option<String>,
    /// The time at which the job ended.
    pub created_at: DateTime<Utc>,
    /// The time at which the event was delivered or the delivery became dead.
    pub ended_at: Option<DateTime<Utc>>,
}

/// The filter of a list of deliveries, newest first. A field with `None` does not restrict the list.
#[derive(Clone, Debug, Default)]
pub struct DeliveryFilter {
    pub status: Option<DeliveryStatus>,
    pub endpoint: Option<String>,
    /// Selects deliveries older than this one.
    pub before: Option<Uuid>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_final_statuses_have_event_names() {
        assert_eq!(EventType::named("export.completed"), Some(EventType { end: Status::Completed }));
        for other in ["export.pending", "completed", "export.processing", "job.completed", ""] {
            assert_eq!(EventType::named(other), None, "{other}");
        }
    }
}
