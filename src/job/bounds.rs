//! The consumers and datasets that a caller is bound to.

use crate::job::{Export, Job};
use cdc_manifest::ConsumerId;

/// The exports that a caller may see and request. The default allows all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The consumers whose exports the caller may see and request. `None` allows all consumers, and ad-hoc exports.
    pub consumers: Option<Vec<ConsumerId>>,
    /// The names of the datasets that the caller may see and export. `None` allows all datasets.
    pub datasets: Option<Vec<String>>,
}

impl Bounds {
    pub const NONE: Bounds = Bounds { consumers: None, datasets: None };

    pub fn allow_all(&self) -> bool {
        *self == Bounds::NONE
    }

    /// Returns true if exports of this consumer are allowed. `None` stands for ad-hoc exports.
    pub fn allow_consumer(&self, consumer: Option<&ConsumerId>) -> bool {
        self.consumers.as_ref().is_none_or(|own| consumer.is_some_and(|consumer| own.contains(consumer)))
    }

    pub fn allow_dataset(&self, name: &str) -> bool {
        self.datasets.as_ref().is_none_or(|own| own.iter().any(|other| other == name))
    }

    /// Returns true if the export's consumer and dataset are both allowed.
    pub fn allow(&self, export: &Export) -> bool {
        self.allow_consumer(export.consumer.as_ref()) && self.allow_dataset(&export.dataset)
    }

    /// Returns true if the job's consumer and all of its datasets are allowed, also those of removed exports.
    pub fn allow_all_of(&self, job: &Job) -> bool {
        let mut asked = job.datasets.iter().flat_map(|asked| &asked.datasets);
        job.exports.iter().all(|export| self.allow(export)) && asked.all(|name| self.allow_dataset(name))
    }

    /// Returns the job as if it had only the allowed datasets. `None` if it has none, or if its consumer is not
    /// allowed.
    pub fn visible(&self, job: Job) -> Option<Job> {
        job.within(|name| self.allow_dataset(name)).filter(|job| self.allow_consumer(job.consumer()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumers_are_compared_exactly_and_an_empty_list_allows_none() {
        let (a, b) = ("a".parse().unwrap(), "A".parse().unwrap());
        let only_a = Bounds { consumers: Some(vec!["a".parse().unwrap()]), ..Bounds::NONE };
        assert!(only_a.allow_consumer(Some(&a)) && !only_a.allow_consumer(Some(&b)) && !only_a.allow_consumer(None));
        assert!(Bounds::NONE.allow_consumer(Some(&a)) && Bounds::NONE.allow_consumer(None));
        let nobody = Bounds { consumers: Some(Vec::new()), datasets: Some(Vec::new()) };
        assert!(!nobody.allow_consumer(Some(&a)) && !nobody.allow_dataset("users"));
    }
}
