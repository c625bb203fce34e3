//! The guard's verdict: the reason why an export can't simply go on from the consumer's last one.

use crate::job::ExportType;
use pg_rows::words::UnknownWord;

pg_rows::words! {
    /// The reason why an export can't simply go on from the consumer's last one.
    Continuity, "a word of continuity" {
        /// The file of an export was lost before it had its name: what it held was never handed out.
        FileLost = "file_lost",
        /// Too much was logged since, or for too long: the log was given up.
        LogExpired = "log_expired",
        /// Somebody made the watermark by hand: by the timestamps alone, once.
        NoSnapshot = "no_snapshot",
        /// Somebody set the watermark forward: by the timestamps alone, once.
        WatermarkEdited = "watermark_edited",
        /// The catalog, or a function that the filter calls, says otherwise than before which rows and columns belong
        /// to the dataset.
        DatasetChanged = "dataset_changed",
        /// A column, or its type, is another one than before: values changed that no trigger saw, and the log has them
        /// as they were.
        ColumnRetyped = "column_retyped",
        /// The table is another one than before.
        TableRecreated = "table_recreated",
        /// The database is another cluster's than before: transaction ids began anew.
        OtherCluster = "other_cluster",
        /// The database is a copy, or an older state of itself: exports that it knows nothing of may have been handed
        /// out.
        DatabaseRestored = "database_restored",
        /// The database is an older state of itself.
        XidWentBack = "xid_went_back",
        /// A trigger isn't there, or is disabled.
        TriggerMissing = "trigger_missing",
        /// A trigger was disabled or gone in the meantime.
        TriggerChanged = "trigger_changed",
        /// A partition came or went with its rows.
        PartitionsChanged = "partitions_changed",
        /// Too much was logged since: which rows were deleted is not known.
        DeletesExpired = "deletes_expired",
        /// The table was truncated: which rows were in it is not known.
        Truncated = "truncated",
        /// Somebody set the watermark back: what it says, and what changed.
        Rewound = "rewound",
    }
}

impl Continuity {
    /// The guard's word. It has one more, `first`, for a consumer without a position, for which nothing can be amiss.
    pub fn of_guard(word: Option<&str>) -> Result<Option<Continuity>, UnknownWord> {
        word.filter(|word| *word != "first").map(str::parse).transpose()
    }

    /// Returns true if the watermark is somebody's, so that it rules as it reads.
    pub fn is_by_hand(self) -> bool {
        matches!(self, Continuity::NoSnapshot | Continuity::WatermarkEdited | Continuity::Rewound)
    }

    /// Returns true if live rows that changed are known all the same, by the log or by the time.
    pub fn is_of_rows(self) -> bool {
        self.allows(ExportType::Incremental)
    }

    /// Returns true if an export of this type is exact all the same. A full one always is.
    pub fn allows(self, export_type: ExportType) -> bool {
        use Continuity::{DeletesExpired, NoSnapshot, Rewound, Truncated, WatermarkEdited};
        match export_type {
            ExportType::Full => true,
            ExportType::Incremental => {
                matches!(self, NoSnapshot | WatermarkEdited | Rewound | Truncated | DeletesExpired)
            }
            ExportType::Delta => matches!(self, NoSnapshot | WatermarkEdited | Rewound),
        }
    }
}

/// The findings of an export when it took its snapshot.
#[derive(Clone, Debug, Default)]
pub struct SnapshotReport {
    /// The guard's verdict.
    pub continuity: Option<Continuity>,
    /// Transactions in this database that had changed something and were open: their changes belong to the next export.
    pub open_transactions: Option<u32>,
    /// The age of the oldest of them in seconds, where the role may see it.
    pub oldest_transaction_seconds: Option<f64>,
    /// The table's rows were written anew since the last export, with the columns the same, as `VACUUM FULL` does.
    pub table_rewritten: bool,
    /// Rows that transactions deleted quietly since the consumer's last export.
    pub quiet_deletes: u64,
}
