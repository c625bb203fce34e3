//! How many jobs are open in all, and whether there is room for one more.
//!
//! Nobody counts them each time: beside an export that runs for hours, the index of open jobs keeps an entry for each one that has
//! ended since, and all submissions would wait for one row that had the number. A process counts once in a while, and its own from
//! then on. So the bound is kept by each process; several may go beyond it, by what the others take on in that time.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::PgConnection;

use crate::store::{Error, Store};

/// How long a count is believed.
const BELIEVED: Duration = Duration::from_secs(1);

/// What this process knows of the number of open jobs.
#[derive(Debug, Default)]
pub(super) struct Room {
    open: Mutex<Open>,
    /// One counts, and the others wait for that.
    counting: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Open {
    /// How many there were, and when that was counted.
    counted: Option<(u32, Instant)>,
    /// Made here since.
    made: u32,
    /// Being made here.
    making: u32,
}

/// What a count says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Taken,
    Full,
    /// It is old, or what came on top of it may have ended.
    CountAgain,
}

impl Open {
    fn take(&mut self, max: u32) -> Answer {
        let Some((counted, at)) = self.counted else { return Answer::CountAgain };
        if at.elapsed() > BELIEVED {
            return Answer::CountAgain;
        }
        if counted >= max {
            return Answer::Full;
        }
        if counted.saturating_add(self.made).saturating_add(self.making) >= max {
            return Answer::CountAgain;
        }
        self.making += 1;
        Answer::Taken
    }
}

/// A place for one more open job, until it is made or given up.
#[derive(Debug)]
pub(super) struct Place<'a> {
    room: &'a Room,
    is_made: bool,
}

impl Place<'_> {
    /// The job is there.
    pub(super) fn made(mut self) {
        self.is_made = true;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut open = self.room.open();
        open.making -= 1;
        open.made += u32::from(self.is_made);
    }
}

impl Room {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A count that began at a time, when so many had been made since the one before: those are in it.
    fn counted(&self, counted: u32, at: Instant, made: u32) {
        let mut open = self.open();
        open.counted = Some((counted, at));
        open.made -= made;
    }

    fn take(&self, max: u32) -> (Answer, Option<Place<'_>>) {
        let answer = self.open().take(max);
        (answer, (answer == Answer::Taken).then(|| Place { room: self, is_made: false }))
    }
}

impl Store {
    /// A place for one more job among `max` open ones; `None`: there is none.
    pub(super) async fn place(&self, conn: &mut PgConnection, max: u32) -> Result<Option<Place<'_>>, Error> {
        let (answer, place) = self.room.take(max);
        if answer != Answer::CountAgain {
            return Ok(place);
        }
        let _turn = self.room.counting.lock().await;
        // Somebody may just have counted.
        let (answer, place) = self.room.take(max);
        if answer != Answer::CountAgain {
            return Ok(place);
        }
        // What is made from here on is counted twice at worst.
        let (at, made) = (Instant::now(), self.room.open().made);
        let counted: i64 = sqlx::query_scalar(
            "-- store.room.count
             select count(*) from (select from exports where status in ('pending', 'processing') limit $1) open",
        )
        .bind(i64::from(max))
        .fetch_one(conn)
        .await?;
        self.room.counted(u32::try_from(counted).unwrap_or(u32::MAX), at, made);
        Ok(self.room.take(max).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_believed_while_it_can_be() {
        let room = Room::default();
        let answer = || room.open().take(10);
        assert_eq!(answer(), Answer::CountAgain, "nobody has counted");
        *room.open() = Open { counted: Some((8, Instant::now())), ..Open::default() };
        let (first, second) = (room.take(10).1.unwrap(), room.take(10).1.unwrap());
        assert_eq!(answer(), Answer::CountAgain, "some of the eight may have ended");
        drop(first);
        let (answered, place) = room.take(10);
        assert_eq!(answered, Answer::Taken, "it was given up");
        second.made();
        place.unwrap().made();
        let Open { made, making, .. } = *room.open();
        assert_eq!((made, making), (2, 0));
        assert_eq!(answer(), Answer::CountAgain);
        // One more was made while somebody counted.
        room.open().made = 3;
        room.counted(8, Instant::now(), 2);
        assert_eq!((answer(), room.open().made), (Answer::Taken, 1));
        room.counted(10, Instant::now(), 1);
        assert_eq!(answer(), Answer::Full);
        room.counted(10, Instant::now() - BELIEVED * 2, 0);
        assert_eq!(answer(), Answer::CountAgain, "it is old");
    }
}
