#![doc = include_str!("../README.md")]

mod column;
mod columns;
mod dataset;
mod fault;
mod guard_state;
mod header;
mod mask;
mod name;
mod selection;
mod signature;
mod table_schema;

pub use column::{KeyColumn, ListElement, TableColumn, WireFormat};
pub use columns::{FileColumn, FileColumns, SavedWireFormat};
pub use dataset::{Capture, CellMax, Columns, Dataset, Operation, Owners, ParquetChoices, USERS, Unrepresentable};
pub use fault::{Fault, Faults, MASK_REMOVED};
pub use guard_state::GuardState;
pub use header::{FileHeader, OPERATION};
pub use mask::{MaskRule, MaskSecret, Masks};
pub use name::{derived, hint, hint_in_full};
pub use selection::{BadSelection, Condition, Operator, Selection};
pub use table_schema::{Description, KnownColumn, RelationKind, TableSchema};
