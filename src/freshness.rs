//! Freshness: whether a consumer's exports have what the table has, and if not, why.
//!
//! This module has plain values only. It must not know SQL.

use std::time::Duration;

use cdc_capture::{Continuity, Readiness};
use chrono::{DateTime, Utc};

use crate::job::unacknowledged::Unacknowledged;
use pg_rows::export_type::ExportType;

/// The shortest time within which a lane counts as fresh, unless the operator says another one.
const LEAST: Duration = Duration::from_secs(60);

/// The time within which a lane counts as fresh that has no two exports to tell how often it has them.
pub const WITHOUT_HISTORY: Duration = Duration::from_secs(86_400);

pg_rows::words! {
    /// The state of a lane.
    LaneState, "a state" {
        /// The newest export has every change, or the oldest other one is not old yet.
        Fresh = "fresh",
        /// There was no export yet.
        New = "new",
        /// There is no dataset of that name any more.
        Gone = "gone",
        /// The consumer acknowledges its exports, and has not acknowledged one for too long.
        NotLoaded = "not_loaded",
        /// A change waits for too long.
        Behind = "behind",
        /// The table's changes are not captured.
        NotTracked = "not_tracked",
        /// Only a full export can go on.
        NeedsFull = "needs_full",
        /// The files of a committed export have no names after a minute. The lane's later exports wait.
        NotPublished = "not_published",
        /// The last export failed, or the next one will, of whatever type it is.
        Failing = "failing",
    }
}

impl LaneState {
    /// Returns a number that is larger, the more urgent the state is.
    pub fn urgency(self) -> usize {
        self as usize
    }
}

/// Returns the most urgent of the states of a consumer's lanes. Returns `None` if one is unknown and no other one needs
/// somebody.
pub fn of_all(states: impl Iterator<Item = Option<LaneState>> + Clone) -> Option<LaneState> {
    let most_urgent = states.clone().flatten().max_by_key(|state| state.urgency())?;
    let is_calm = most_urgent.urgency() <= LaneState::New.urgency();
    Some(most_urgent).filter(|_| !is_calm || states.into_iter().all(|state| state.is_some()))
}

#[derive(Clone, Copy, Debug, Default)]
pub struct LaneHistory {
    /// The number of exports that failed since the last completed one.
    pub failures: u64,
    /// The time when the first of these failed.
    pub failing_since: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    /// True if the files of a committed export have no names after a minute.
    pub is_unpublished: bool,
    /// The median of the times between the last completed exports.
    pub usual_interval: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct LaneFacts {
    pub history: LaneHistory,
    /// True if it has a position or a watermark.
    pub has_position: bool,
    pub export_type: Option<ExportType>,
    pub continuity: Option<Continuity>,
    /// The state of its table. The verdict is unknown if that is.
    pub table: Readiness,
    /// The age of the oldest change that no export has. None: unknown.
    pub behind: Option<Duration>,
    /// The unacknowledged exports; `None`: the consumer never acknowledges.
    pub unacknowledged: Option<Unacknowledged>,
    pub fresh_within: Option<Duration>,
}

impl LaneFacts {
    /// Returns the state of the lane, whose dataset is there. Returns `None` if it can't be told now.
    pub fn state(&self, now: DateTime<Utc>) -> Option<LaneState> {
        let next = self.export_type.unwrap_or(ExportType::Delta);
        let is_new = self.history.completed_at.is_none() && !self.has_position;
        let too_old = |age: Duration| age > self.limit();
        let unloaded = self.unacknowledged.and_then(|of| of.since).and_then(|since| (now - since).to_std().ok());
        match (self.table, self.continuity) {
            (Readiness::NotTracked, _) => return Some(LaneState::NotTracked),
            (Readiness::Unfit, _) => return Some(LaneState::Failing),
            _ if self.history.is_unpublished => return Some(LaneState::NotPublished),
            (_, Some(why)) if !why.allows(next) => return Some(LaneState::NeedsFull),
            _ if self.history.failures > 0 => return Some(LaneState::Failing),
            _ if is_new => return Some(LaneState::New),
            (Readiness::Unknown, _) => return None,
            (Readiness::Ready, _) => {}
        }
        // The operator or two exports tell how old a change may be.
        let knows_limit = self.fresh_within.is_some() || self.history.usual_interval.is_some();
        match (self.behind, unloaded) {
            (Some(age), _) if too_old(age) => Some(LaneState::Behind),
            (_, Some(age)) if too_old(age) => Some(LaneState::NotLoaded),
            (Some(age), _) if age <= LEAST || knows_limit => Some(LaneState::Fresh),
            (_, _) => None,
        }
    }

    /// Returns the age of a change up to which the lane is fresh.
    fn limit(&self) -> Duration {
        let usual = self.history.usual_interval.map_or(WITHOUT_HISTORY, |usual| LEAST.max(usual * 2));
        self.fresh_within.unwrap_or(usual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> LaneFacts {
        LaneFacts {
            history: LaneHistory {
                completed_at: Some(DateTime::UNIX_EPOCH),
                usual_interval: Some(Duration::from_secs(40)),
                ..LaneHistory::default()
            },
            has_position: true,
            export_type: Some(ExportType::Delta),
            continuity: None,
            table: Readiness::Ready,
            behind: Some(Duration::ZERO),
            unacknowledged: None,
            fresh_within: None,
        }
    }

    fn state(facts: LaneFacts) -> Option<LaneState> {
        facts.state(DateTime::UNIX_EPOCH + Duration::from_secs(1000))
    }

    #[test]
    fn a_lane_is_fresh_up_to_twice_its_usual_interval() {
        let behind = |seconds| LaneFacts { behind: Some(Duration::from_secs(seconds)), ..facts() };
        assert_eq!(state(behind(80)), Some(LaneState::Fresh));
        assert_eq!(state(behind(81)), Some(LaneState::Behind));
        let often = LaneHistory { usual_interval: Some(Duration::from_secs(1)), ..facts().history };
        assert_eq!(state(LaneFacts { history: often, ..behind(60) }), Some(LaneState::Fresh));
        assert_eq!(state(LaneFacts { history: often, ..behind(61) }), Some(LaneState::Behind));
        let once = LaneHistory { usual_interval: None, ..facts().history };
        assert_eq!(state(LaneFacts { history: once, ..behind(60) }), Some(LaneState::Fresh));
        assert_eq!(state(LaneFacts { history: once, ..behind(86_400) }), None, "nobody knows if it is too old");
        assert_eq!(state(LaneFacts { history: once, ..behind(86_401) }), Some(LaneState::Behind));
        assert_eq!(state(LaneFacts { fresh_within: Some(LEAST), ..behind(61) }), Some(LaneState::Behind));
    }

    #[test]
    fn the_reason_that_needs_somebody_comes_first() {
        let failing = LaneFacts { history: LaneHistory { failures: 2, ..facts().history }, ..facts() };
        let of = |continuity| LaneFacts { continuity: Some(continuity), ..failing.clone() };
        assert_eq!(state(failing.clone()), Some(LaneState::Failing));
        assert_eq!(state(of(Continuity::Truncated)), Some(LaneState::NeedsFull));
        // A consumer that takes no deletions goes on.
        let increments = LaneFacts { export_type: Some(ExportType::Incremental), ..of(Continuity::Truncated) };
        assert_eq!(state(increments), Some(LaneState::Failing));
        let full = LaneFacts { export_type: Some(ExportType::Full), ..facts() };
        let full = LaneFacts { continuity: Some(Continuity::DatabaseRestored), ..full };
        assert_eq!(state(full.clone()), Some(LaneState::Fresh));
        for lane in [full, of(Continuity::DatabaseRestored)] {
            let with = |table| state(LaneFacts { table, ..lane.clone() });
            assert_eq!(with(Readiness::NotTracked), Some(LaneState::NotTracked));
            assert_eq!(with(Readiness::Unfit), Some(LaneState::Failing));
        }
    }

    #[test]
    fn a_consumer_is_in_the_most_urgent_state_of_its_lanes() {
        use LaneState::{Behind, Failing, Fresh};
        for (states, all) in [
            (&[Some(Fresh), Some(Failing), Some(Behind)][..], Some(Failing)),
            (&[Some(Fresh), None], None),
            (&[Some(Behind), None], Some(Behind)),
            (&[Some(Fresh), Some(Fresh)], Some(Fresh)),
            (&[], None),
        ] {
            assert_eq!(of_all(states.iter().copied()), all, "{states:?}");
        }
    }

    #[test]
    fn a_lane_may_be_new_or_not_loaded_or_unknown() {
        let new = LaneFacts { history: LaneHistory::default(), has_position: false, behind: None, ..facts() };
        assert_eq!(state(new), Some(LaneState::New));
        let since = |seconds| {
            let since = Some(DateTime::UNIX_EPOCH + Duration::from_secs(seconds));
            LaneFacts { unacknowledged: Some(Unacknowledged { exports: 3, since }), ..facts() }
        };
        assert_eq!(state(since(920)), Some(LaneState::Fresh));
        assert_eq!(state(since(919)), Some(LaneState::NotLoaded));
        assert_eq!(state(LaneFacts { behind: None, ..facts() }), None);
        assert_eq!(state(LaneFacts { table: Readiness::Unknown, ..facts() }), None);
    }
}
