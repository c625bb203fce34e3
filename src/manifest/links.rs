//! Which export follows which in the lanes of a place, link by link: where one is missing or stands twice.
//!
//! Takes a hundred bytes of each export. Knows no manifests.

use std::collections::HashMap;

pub(super) type Digest = [u8; 32];

/// What is kept of a manifest of a doubtful lane.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) digest: Digest,
    pub(super) previous: Option<Digest>,
    pub(super) number: u64,
    pub(super) lane: u32,
    /// Whether the digest is that of its content. Of a changed one nothing is believed but its digest, which the next export names.
    pub(super) is_right: bool,
    pub(super) is_base: bool,
}

/// What is wrong with an export's place in its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The export that it follows is missing, and the newest one before it that is there has this number.
    GapAfter(u64),
    /// What it builds on isn't there: it is the lane's first one, with this number, and no full export.
    GapBefore(u64),
    /// Another export with this number, or this export itself, follows the same one, or both follow none.
    ForkedAt(u64),
    /// It follows the export of this number, which isn't below its own.
    NotAbove(u64),
}

/// The links of a place, in the order of lanes and numbers, and their order by digest.
pub(super) struct Place<'l> {
    links: &'l [Link],
    by_digest: Vec<u32>,
    aliases: HashMap<Digest, Digest>,
}

impl Place<'_> {
    /// Of links in the order of lanes, numbers and digests, none twice; and the digests that changed manifests should have, to the ones that
    /// they say.
    pub(super) fn new(links: &[Link], aliases: HashMap<Digest, Digest>) -> Place<'_> {
        let mut by_digest: Vec<u32> = (0..links.len() as u32).collect();
        by_digest.sort_unstable_by_key(|index| links[*index as usize].digest);
        Place { links, by_digest, aliases }
    }

    /// What is wrong, in the order of the links.
    pub(super) fn faults(&self) -> Vec<(usize, Fault)> {
        let mut faults = self.forks();
        faults.extend((0..self.links.len()).filter_map(|index| Some((index, self.fault(index)?))));
        faults.sort_by_key(|(index, _)| *index);
        faults
    }

    /// Those with this digest: one, or several copies with other numbers.
    fn known(&self, digest: &Digest) -> impl Iterator<Item = usize> {
        let range = |digest: &Digest| {
            let begin = self.by_digest.partition_point(|index| self.links[*index as usize].digest < *digest);
            let end = self.by_digest.partition_point(|index| self.links[*index as usize].digest <= *digest);
            &self.by_digest[begin..end]
        };
        let found = match (range(digest), self.aliases.get(digest)) {
            ([], Some(said)) => range(said),
            (found, _) => found,
        };
        found.iter().map(|index| *index as usize)
    }

    /// The one before in the lane, by its number.
    fn lower(&self, index: usize) -> Option<usize> {
        let Link { lane, number, .. } = self.links[index];
        let end = self.links.partition_point(|link| (link.lane, link.number) < (lane, number));
        end.checked_sub(1).filter(|lower| self.links[*lower].lane == lane)
    }

    fn has_base_above(&self, index: usize) -> bool {
        let Link { lane, number, .. } = self.links[index];
        let begin = self.links.partition_point(|link| (link.lane, link.number) <= (lane, number));
        self.links[begin..].iter().take_while(|link| link.lane == lane).any(|link| link.is_base)
    }

    /// Where exports of one database follow the same one. A copy of the database goes on from there too, in a lane of its own.
    fn forks(&self) -> Vec<(usize, Fault)> {
        let mut order: Vec<u32> =
            (0..self.links.len() as u32).filter(|index| self.links[*index as usize].is_right).collect();
        let link = |index: &u32| &self.links[*index as usize];
        // A copy with another number is no other export.
        order.sort_unstable_by_key(|index| (link(index).lane, link(index).previous, link(index).digest, *index));
        order.dedup_by_key(|index| (link(index).lane, link(index).previous, link(index).digest));
        order.sort_unstable_by_key(|index| (link(index).lane, link(index).previous, *index));
        let mut faults = Vec::new();
        for twins in order.chunk_by(|a, b| (link(a).lane, link(a).previous) == (link(b).lane, link(b).previous)) {
            let first = link(&twins[0]);
            for index in &twins[1..] {
                let Link { number, previous, .. } = link(index);
                faults.push((*index as usize, Fault::ForkedAt(previous.map_or(*number, |_| first.number))));
            }
        }
        faults
    }

    /// What is wrong between an export and the one that it follows.
    fn fault(&self, index: usize) -> Option<Fault> {
        let Link { number, lane, is_right, is_base, previous, .. } = self.links[index];
        if !is_right {
            return None;
        }
        let Some(previous) = previous else {
            // Nothing is missing: the service has begun to chain the lane's exports with this one. But nobody can begin with it.
            return (!is_base && !self.has_base_above(index)).then_some(Fault::GapBefore(number));
        };
        let mut followed = self.known(&previous).map(|index| &self.links[index]).peekable();
        if followed.peek().is_some() {
            // One in another lane, which a copy of the database goes on from, has numbers of its own.
            let is_above = |link: &Link| link.lane == lane && link.number >= number;
            let first = followed.next().map(|link| (link.number, is_above(link)));
            let (above, _) = first.filter(|(_, is_above)| *is_above)?;
            return followed.all(is_above).then_some(Fault::NotAbove(above));
        }
        match self.lower(index) {
            Some(lower) => Some(Fault::GapAfter(self.links[lower].number)),
            // What was before a full export nobody needs.
            None => (!is_base).then_some(Fault::GapBefore(number)),
        }
    }

    /// Of each export whether its files are needed: those from the newest full export of its lane on. Where a database was restored as a
    /// copy, its first export may build on those of the other one.
    pub(super) fn required(&self) -> Vec<bool> {
        let (mut required, mut walked) = (vec![false; self.links.len()], vec![false; self.links.len()]);
        let mut begin = 0;
        for lane in self.links.chunk_by(|a, b| a.lane == b.lane) {
            let base = lane.iter().rposition(|link| link.is_base).unwrap_or(0);
            let base = lane.partition_point(|link| link.number < lane[base].number);
            required[begin + base..begin + lane.len()].fill(true);
            let mut next = Some(begin + lane.len() - 1);
            while let Some(index) = next.filter(|index| !walked[*index]) {
                (walked[index], required[index]) = (true, true);
                let link = &self.links[index];
                let followed = link.previous.and_then(|previous| self.known(&previous).next());
                next = followed.or_else(|| self.lower(index)).filter(|_| !link.is_base);
            }
            begin += lane.len();
        }
        required
    }
}

/// The bytes of a digest in lower-case hexadecimal.
pub(super) fn digest_of(text: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    hex::decode_to_slice(text, &mut digest).ok().map(|()| digest)
}
