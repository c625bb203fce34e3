//! The report of an export, and the guard's verdict in it.

use serde::{Deserialize, Serialize};

use pg_rows::export_type::ExportType;
use pg_rows::words::UnknownWord;

pg_rows::words! {
    /// The reason why an export can't continue from the consumer's last one.
    Continuity, "a word of continuity" {
        /// The file of an export was lost before it was published, so no consumer got its rows.
        FileLost = "file_lost",
        /// The change log since the last export was purged, because it became too large or too old.
        LogExpired = "log_expired",
        /// The watermark was created manually. This one export uses the timestamps alone.
        NoSnapshot = "no_snapshot",
        /// The watermark was set forward manually. This one export uses the timestamps alone.
        WatermarkEdited = "watermark_edited",
        /// The definition of the dataset's rows or columns changed, in the catalog or in a function that its filter
        /// calls.
        DatasetChanged = "dataset_changed",
        /// A column that exports have masked is no masked column any more. No export of any type is made, not even to
        /// heal, until `mask drop` says so.
        MaskRemoved = "mask_removed",
        /// A column or its type changed. No trigger captures the converted values, and the change log has the old ones.
        ColumnRetyped = "column_retyped",
        /// The table was dropped and created again, or replaced by another one.
        TableRecreated = "table_recreated",
        /// The database belongs to another cluster than before, whose transaction ids can't be compared.
        OtherCluster = "other_cluster",
        /// The database is a copy, or was restored to an older state. Consumers may have exports that it does not know.
        DatabaseRestored = "database_restored",
        /// The transaction ids went back: the database was restored to an older state.
        XidWentBack = "xid_went_back",
        /// A trigger is missing or disabled.
        TriggerMissing = "trigger_missing",
        /// A trigger was disabled or missing for some time since the last export.
        TriggerChanged = "trigger_changed",
        /// A partition was attached or detached together with its rows.
        PartitionsChanged = "partitions_changed",
        /// The deletions in the change log were purged, so the deleted rows are not known.
        DeletesExpired = "deletes_expired",
        /// The table was truncated, so the deleted rows are not known.
        Truncated = "truncated",
        /// The watermark was set back manually. The export has the rows after it in addition to the exact changes.
        Rewound = "rewound",
    }
}

impl Continuity {
    /// Parses the guard's word. Returns `None` for `first`, the word for a consumer without a position.
    pub fn from_guard(word: Option<&str>) -> Result<Option<Continuity>, UnknownWord> {
        word.filter(|word| *word != "first").map(str::parse).transpose()
    }

    /// Returns true if the export uses the timestamps alone, and so may lack rows.
    pub fn is_by_time(self) -> bool {
        matches!(self, Continuity::NoSnapshot | Continuity::WatermarkEdited)
    }

    /// Returns true if the watermark was set manually, so that the export begins exactly there.
    pub fn is_manual(self) -> bool {
        self.is_by_time() || self == Continuity::Rewound
    }

    /// Returns true if the changed live rows are known nevertheless, from the change log or the timestamps.
    pub fn keeps_live_rows(self) -> bool {
        self.allows(ExportType::Incremental)
    }

    /// Returns true if an export of this type is exact nevertheless. A full export always is.
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

/// The facts that an export reports about itself. They are saved with its job in this JSON form. A member with its
/// default value is absent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExportReport {
    #[serde(skip_serializing_if = "is_default")]
    pub continuity: Option<Continuity>,
    /// The number of rows that the timestamps alone would have missed: deleted rows, and changed rows with a time at or
    /// before the watermark.
    #[serde(skip_serializing_if = "is_default")]
    pub late_rows: u64,
    /// The number of rows deleted since the consumer's last export by transactions with `cdc_export.quiet`.
    #[serde(skip_serializing_if = "is_default")]
    pub quiet_deletes: u64,
    /// The number of open transactions in this database that had written. Their changes belong to the next export.
    #[serde(skip_serializing_if = "is_default")]
    pub open_transactions: Option<u32>,
    /// The age of the oldest of these transactions, in seconds. `None` if the role may not see it.
    #[serde(skip_serializing_if = "is_default")]
    pub oldest_transaction_seconds: Option<f64>,
    /// True if the columns or their types differ from those of the consumer's last export. The commit finds that.
    #[serde(skip_serializing_if = "is_default")]
    pub schema_changed: bool,
    /// True if the table was rewritten since the last export without a change of its columns, as `VACUUM FULL` does.
    #[serde(skip_serializing_if = "is_default")]
    pub table_rewritten: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
