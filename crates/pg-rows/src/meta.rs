//! The columns that a file has beside those of its table.

crate::words! {
    /// A column of files that is none of the table.
    MetaColumn, "one of order, xid, committed_at, operation" {
        /// The export's place in its lane: `_order`.
        Order = "order",
        /// The latest transaction that the log has for the row's key: `_xid`.
        Xid = "xid",
        /// The time of that transaction's commit: `_committed_at`.
        CommittedAt = "committed_at",
        /// The operation on the row: `_operation`.
        Operation = "operation",
    }
}
