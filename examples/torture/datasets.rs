//! Jobs of several of a consumer's datasets, as their clients ask for them.

use serde_json::json;

use crate::clients::{Caller, MOST_OPEN};
use crate::lanes::{self, Lane};
use crate::random::Random;
use crate::report::locked;

impl Caller<'_> {
    /// Asks for exports of some of the consumer's datasets, or of all that are ready.
    pub(crate) async fn submit_some(&self, lane: &'static Lane, random: &mut Random) {
        let mut lanes: Vec<&'static Lane> = lanes::of_consumer(lane.consumer).collect();
        let is_of_all = random.percent(20);
        if !is_of_all {
            random.shuffle(&mut lanes);
            lanes.truncate(random.between(2, lanes.len() as u64) as usize);
        }
        let drawn = random.below(100);
        let (open, wants_full) = {
            let ledger = locked(&self.world.ledger);
            (ledger.open_of(lane.consumer), lanes.iter().any(|lane| ledger.wants_full(lane.name)))
        };
        if open >= MOST_OPEN {
            return;
        }
        let kind = if wants_full { "full" } else { lane.kind(drawn) };
        let names: Vec<_> = lanes.iter().map(|lane| lane.dataset).collect();
        let mut body = json!({ "datasets": if is_of_all { json!("*") } else { json!(names) } });
        if random.percent(60) {
            body["skipEmpty"] = json!(true);
        }
        self.submit(kind, lane.consumer, &body).await;
    }
}
