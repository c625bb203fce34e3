//! The catalog in force, which a reload replaces while the process runs.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, Utc};

use crate::catalog::Catalog;

/// A handle of the catalog in force. All its clones see a replacement.
#[derive(Clone, Debug)]
pub struct CurrentCatalog(Arc<RwLock<InForce>>);

#[derive(Clone, Debug)]
struct InForce {
    catalog: Arc<Catalog>,
    changed_at: DateTime<Utc>,
    stale: Option<Arc<str>>,
    untrackable: Arc<BTreeMap<String, String>>,
}

impl CurrentCatalog {
    pub fn new(catalog: Arc<Catalog>) -> CurrentCatalog {
        CurrentCatalog(Arc::new(RwLock::new(InForce {
            catalog,
            changed_at: Utc::now(),
            stale: None,
            untrackable: Arc::default(),
        })))
    }

    pub fn get(&self) -> Arc<Catalog> {
        self.in_force().catalog
    }

    /// The time since which the catalog is in force.
    pub fn changed_at(&self) -> DateTime<Utc> {
        self.in_force().changed_at
    }

    /// Why the operator's file, which has changed, is not in force. `None`: it is.
    pub fn stale(&self) -> Option<Arc<str>> {
        self.in_force().stale
    }

    /// Why the service can't track the table of each of these datasets by itself.
    pub fn untrackable(&self) -> Arc<BTreeMap<String, String>> {
        self.in_force().untrackable
    }

    /// Records why the service can't track tables by itself. Returns true if that is news.
    pub fn set_untrackable(&self, why: BTreeMap<String, String>) -> bool {
        self.change(|in_force| {
            let is_new = *in_force.untrackable != why;
            in_force.untrackable = Arc::new(why);
            is_new
        })
    }

    /// Puts another catalog in force. That alone doesn't say that the operator's file is.
    pub fn replace(&self, catalog: Arc<Catalog>) {
        let changed_at = Utc::now();
        self.change(|in_force| (in_force.catalog, in_force.changed_at) = (catalog, changed_at));
    }

    /// Records whether the operator's file is in force. `why` says why not. Returns true if that is news.
    pub fn set_stale(&self, why: Option<&str>) -> bool {
        self.change(|in_force| {
            let is_new = in_force.stale.as_deref() != why;
            in_force.stale = why.map(Arc::from);
            is_new
        })
    }

    fn in_force(&self) -> InForce {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut InForce) -> T) -> T {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}
