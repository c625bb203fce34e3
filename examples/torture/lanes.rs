//! The consumers, each a lane of one dataset, and the tables behind the datasets.

/// A consumer, and what it mostly asks for.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) name: &'static str,
    pub(crate) dataset: &'static str,
    /// Of a hundred exports that it asks for, so many are full ones, and so many incremental.
    full: u64,
    incremental: u64,
    /// Who asks: the clients, as they come, or loaders of its own.
    pub(crate) asked_by: AskedBy,
}

/// Who asks for a lane's exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AskedBy {
    Clients,
    /// See [`crate::loader`].
    Loaders,
}

const fn lane(name: &'static str, dataset: &'static str, full: u64, incremental: u64) -> Lane {
    Lane { name, dataset, full, incremental, asked_by: AskedBy::Clients }
}

const fn loaded(name: &'static str, dataset: &'static str) -> Lane {
    Lane { name, dataset, full: 0, incremental: 0, asked_by: AskedBy::Loaders }
}

/// No two datasets have a consumer in common, so that a consumer's name is its lane's.
pub(crate) const LANES: [Lane; 18] = [
    lane("faithful", "users", 4, 0),
    lane("mirror", "users", 4, 0),
    lane("mixed", "users", 10, 25),
    lane("mixed-2", "users", 10, 25),
    lane("live-first", "users", 0, 70),
    lane("late.starter", "users", 10, 25),
    lane("a:b@c", "users", 10, 25),
    lane("full-only", "users", 85, 0),
    loaded("loader", "users"),
    loaded("loader-2", "users"),
    lane("shaped", "shapes", 0, 0),
    lane("shaped-2", "shapes", 4, 30),
    loaded("shape-loader", "shapes"),
    lane("parted", "parts", 4, 20),
    lane("fed", "fed", 4, 20),
    lane("calm", "calm", 4, 20),
    lane("calm-2", "calm", 2, 50),
    loaded("calm-loader", "calm"),
];

/// Whose ad-hoc exports are: nobody's, and no lane.
pub(crate) const AD_HOC: &str = "";

impl Lane {
    /// What its consumer asks for if `drawn`, of a hundred, says so.
    pub(crate) fn kind(&self, drawn: u64) -> &'static str {
        match drawn {
            n if n < self.full => "full",
            n if n < self.full + self.incremental => "incremental",
            _ => "delta",
        }
    }
}

/// The lanes that loaders of their own ask for.
pub(crate) fn of_loaders() -> impl Iterator<Item = &'static Lane> {
    LANES.iter().filter(|lane| lane.asked_by == AskedBy::Loaders)
}

/// What the operator's file says.
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
