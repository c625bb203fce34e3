//! Finds the tables that the service may track by itself, because a pattern says `track = true`.
//!
//! A table that somebody has untracked is left alone, and so are all tables while a dump may be loaded.

use crate::capture::Triggers;
use crate::quote;
use cdc_dataset::Dataset;

impl Triggers<'_> {
    /// Returns the datasets whose tables the service may track now, each with a text that another definition of the
    /// table changes.
    pub async fn trackable<'a>(&self, datasets: &[&'a Dataset]) -> Result<Vec<(&'a Dataset, String)>, sqlx::Error> {
        let names: Vec<_> = datasets.iter().map(|dataset| quote::relation(&dataset.table)).collect();
        let found: Vec<(i64, String)> =
            sqlx::query_as(include_str!("new_tables/trackable.sql")).bind(names).fetch_all(self.0).await?;
        Ok(found.into_iter().filter_map(|(place, state)| Some((*datasets.get(place as usize - 1)?, state))).collect())
    }
}
