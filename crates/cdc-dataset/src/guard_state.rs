//! The state of a table that a position stores for the guard.

use serde::{Deserialize, Serialize};

/// The state of a table that a position stores for the guard, as a JSON object. Only the guard of `cdc-capture` reads
/// its members, except `lane_sequence`, which the service compares with its own tables. It does not compare a member
/// that a saved position lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GuardState(serde_json::Map<String, serde_json::Value>);

impl GuardState {
    pub fn get(&self, name: &str) -> &serde_json::Value {
        self.0.get(name).unwrap_or(&serde_json::Value::Null)
    }

    pub fn set(&mut self, name: &str, value: impl Into<serde_json::Value>) {
        self.0.insert(name.to_owned(), value.into());
    }
}
