//! The type of an export.

crate::words! {
    /// The type of an export: the rows that it holds.
    ExportType, "an export type:" {
        /// Every live row.
        Full = "full",
        /// The live rows changed since the consumer's watermark.
        Incremental = "incremental",
        /// The rows changed since the consumer's watermark, including deleted rows, each with its operation.
        Delta = "delta",
    }
}
