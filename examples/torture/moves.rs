//! Moves beside kills and cuts. A run has some or all of them.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Move {
    /// The tables' owner changes their shape.
    Ddl,
    /// A subscription that writes into a tracked table comes and goes.
    Subscription,
    /// The database is put back to a copy of itself.
    Restores,
    /// The database's clock goes back and forth.
    Clock,
    /// The tables' owner changes so many rows at once that the change log is over its bound.
    Backfill,
    /// An application locks the tables, while processes are stopped, a folder hangs and the synchronous standby is
    /// dead.
    Locks,
}

impl Move {
    pub(crate) const ALL: [Move; 6] =
        [Move::Ddl, Move::Subscription, Move::Restores, Move::Clock, Move::Backfill, Move::Locks];
}
