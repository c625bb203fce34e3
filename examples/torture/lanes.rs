//! The lanes, each a consumer of a dataset, and the tables of the datasets.

#[derive(Debug)]
pub(crate) struct Lane {
    /// `consumer/dataset`, as the recorder writes it.
    pub(crate) name: &'static str,
    pub(crate) consumer: &'static str,
    pub(crate) dataset: &'static str,
    /// Percentages of full and of incremental exports among the exports that the consumer requests.
    full: u64,
    incremental: u64,
    /// Clients, at random, or the lane's own loaders.
    pub(crate) asked_by: AskedBy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AskedBy {
    Clients,
    /// The clients, mostly with one job for several of the consumer's datasets.
    Datasets,
    Loaders,
}

macro_rules! lane {
    ($consumer:literal, $dataset:literal, $full:literal, $incremental:literal, $asked_by:ident) => {
        Lane {
            name: concat!($consumer, "/", $dataset),
            consumer: $consumer,
            dataset: $dataset,
            full: $full,
            incremental: $incremental,
            asked_by: AskedBy::$asked_by,
        }
    };
}

/// Consumers that ask for several datasets in one job have all of them. Any other consumer has one.
pub(crate) const LANES: [Lane; 28] = [
    lane!("faithful", "users", 4, 0, Clients),
    lane!("mirror", "users", 4, 0, Clients),
    lane!("mixed", "users", 10, 25, Clients),
    lane!("mixed-2", "users", 10, 25, Clients),
    lane!("live-first", "users", 0, 70, Clients),
    lane!("late.starter", "users", 10, 25, Clients),
    lane!("a:b@c", "users", 10, 25, Clients),
    lane!("full-only", "users", 85, 0, Clients),
    lane!("loader", "users", 0, 0, Loaders),
    lane!("loader-2", "users", 0, 0, Loaders),
    lane!("shaped", "shapes", 0, 0, Clients),
    lane!("shaped-2", "shapes", 4, 30, Clients),
    lane!("shape-loader", "shapes", 0, 0, Loaders),
    lane!("parted", "parts", 4, 20, Clients),
    lane!("fed", "fed", 4, 20, Clients),
    lane!("calm", "calm", 4, 20, Clients),
    lane!("calm-2", "calm", 2, 50, Clients),
    lane!("calm-loader", "calm", 0, 0, Loaders),
    lane!("warehouse", "users", 4, 10, Datasets),
    lane!("warehouse", "shapes", 4, 10, Datasets),
    lane!("warehouse", "parts", 4, 10, Datasets),
    lane!("warehouse", "fed", 4, 10, Datasets),
    lane!("warehouse", "calm", 4, 10, Datasets),
    lane!("mart", "users", 0, 30, Datasets),
    lane!("mart", "shapes", 0, 30, Datasets),
    lane!("mart", "parts", 0, 30, Datasets),
    lane!("mart", "fed", 0, 30, Datasets),
    lane!("mart", "calm", 0, 30, Datasets),
];

/// The consumer and the lane of ad-hoc exports, which have neither.
pub(crate) const AD_HOC: &str = "";

impl Lane {
    /// Returns the type of export that its consumer asks for. `drawn` is a random number below a hundred.
    pub(crate) fn kind(&self, drawn: u64) -> &'static str {
        match drawn {
            n if n < self.full => "full",
            n if n < self.full + self.incremental => "incremental",
            _ => "delta",
        }
    }
}

pub(crate) fn of_consumer(consumer: &str) -> impl Iterator<Item = &'static Lane> {
    LANES.iter().filter(move |lane| lane.consumer == consumer)
}

pub(crate) fn name(consumer: &str, dataset: &str) -> Option<&'static str> {
    if consumer == AD_HOC {
        return Some(AD_HOC);
    }
    of_consumer(consumer).find(|lane| lane.dataset == dataset).map(|lane| lane.name)
}

pub(crate) fn of_loaders() -> impl Iterator<Item = &'static Lane> {
    LANES.iter().filter(|lane| lane.asked_by == AskedBy::Loaders)
}

pub(crate) const DATASETS: &str = r#"
[[dataset]]
name = "users"
table = "users"
columns = ["id", "name", "email", "created_at", "updated_at", "is_deleted"]
updated_at = "updated_at"
created_at = "created_at"
deleted = "is_deleted"

[[dataset]]
name = "shapes"
table = "shapes"
deleted = "hidden"

[[dataset]]
name = "parts"
table = "parts"

[[dataset]]
name = "fed"
table = "fed"

[[dataset]]
name = "calm"
table = "calm"
"#;
