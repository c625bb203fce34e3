//! What each trigger of ours is: what it logs, which tables have it, what `pg_trigger` says of it, and when it fires.
//!
//! The pieces of SQL that recognize the triggers are made of the same table as the code that makes them.

use crate::source::quote;

/// Says once what each trigger is, for the code and for SQL. Of each: its kind, the letter that ends its name and its function's, its
/// `tgtype`, and its `tgenabled` (`O`: it fires where somebody writes here; `R`: where rows are replicated; `A`: always).
///
/// `triggers!(type_of_kind)` is one of the pieces of SQL below.
macro_rules! triggers {
    ($what:ident) => {
        $crate::source::trigger::triggers! {
            @$what
            of_plain_tables {
                /// The rows that a statement inserted.
                Inserts "i" 4 "O",
                /// The rows that a statement updated.
                Updates "u" 16 "O",
                /// The rows that a statement deleted.
                Deletes "d" 8 "O",
                /// A row that was written where statement triggers don't fire: by a subscription's apply worker, or with
                /// `session_replication_role = replica`. The letter isn't "r": a partition's trigger can't have the name of one that
                /// its root hands down.
                Replicated "s" 29 "R",
            }
            of_partitioned_tables {
                /// A row that was written to a partition. Postgres clones row triggers to every partition, those to come too, so
                /// that they see what is written directly into one; statement triggers of the parent wouldn't. A row that moves is a
                /// delete and an insert.
                Rows "r" 29 "A",
            }
            of_both {
                /// That a statement emptied the table.
                Truncates "t" 32 "A",
            }
        }
    };
    (
        @kinds
        of_plain_tables { $($(#[$plain_doc:meta])* $plain:ident $plain_letter:literal $plain_type:literal $plain_fires:literal,)* }
        of_partitioned_tables { $(#[$parted_doc:meta])* $parted:ident $parted_letter:literal $parted_type:literal $parted_fires:literal, }
        of_both { $(#[$both_doc:meta])* $both:ident $both_letter:literal $both_type:literal $both_fires:literal, }
    ) => {
        /// What a trigger and its function log.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum TriggerKind {
            $($(#[$plain_doc])* $plain,)*
            $(#[$parted_doc])* $parted,
            $(#[$both_doc])* $both,
        }

        impl TriggerKind {
            pub(crate) const ALL: &[TriggerKind] = &[$(TriggerKind::$plain,)* TriggerKind::$parted, TriggerKind::$both];

            /// The triggers that a table needs.
            pub(crate) fn of_table(is_partitioned: bool) -> &'static [TriggerKind] {
                match is_partitioned {
                    true => &[TriggerKind::$parted, TriggerKind::$both],
                    false => &[$(TriggerKind::$plain,)* TriggerKind::$both],
                }
            }

            /// The last part of the function's name, and of the trigger's.
            pub(crate) fn letter(self) -> &'static str {
                match self {
                    $(TriggerKind::$plain => $plain_letter,)*
                    TriggerKind::$parted => $parted_letter,
                    TriggerKind::$both => $both_letter,
                }
            }
        }
    };
    // The `tgtype` that the trigger of a function `f` of that `kind`, a letter, has to have.
    (
        @type_of_kind
        of_plain_tables { $($(#[$doc:meta])* $kind:ident $letter:literal $type:literal $fires:literal,)* }
        of_partitioned_tables { $(#[$parted_doc:meta])* $parted:ident $parted_letter:literal $parted_type:literal $parted_fires:literal, }
        of_both { $(#[$both_doc:meta])* $both:ident $both_letter:literal $both_type:literal $both_fires:literal, }
    ) => {
        concat!(
            "case f.kind ", $("when '", $letter, "' then ", $type, " ",)*
            "when '", $both_letter, "' then ", $both_type, " when '", $parted_letter, "' then ", $parted_type, " end"
        )
    };
    // The `tgenabled` that the trigger of a function `p` has to have.
    (
        @fires_of_function
        of_plain_tables { $($(#[$doc:meta])* $kind:ident $letter:literal $type:literal $fires:literal,)* }
        of_partitioned_tables { $(#[$parted_doc:meta])* $parted:ident $parted_letter:literal $parted_type:literal $parted_fires:literal, }
        of_both { $(#[$both_doc:meta])* $both:ident $both_letter:literal $both_type:literal $both_fires:literal, }
    ) => {
        concat!(
            "case right(p.proname::text, 1) ", $("when '", $letter, "' then '", $fires, "' ",)*
            "when '", $both_letter, "' then '", $both_fires, "' when '", $parted_letter, "' then '", $parted_fires, "' end"
        )
    };
    // All triggers of a plain table, each as its letter and its `tgenabled`: an array of texts.
    (
        @all_of_plain_table
        of_plain_tables { $($(#[$doc:meta])* $kind:ident $letter:literal $type:literal $fires:literal,)* }
        of_partitioned_tables { $($parted:tt)* }
        of_both { $(#[$both_doc:meta])* $both:ident $both_letter:literal $both_type:literal $both_fires:literal, }
    ) => {
        concat!("'{", $($letter, $fires, ",",)* $both_letter, $both_fires, "}'")
    };
    // The trigger that logs the rows of a partition, in the same form.
    (
        @rows_of_partition
        of_plain_tables { $($plain:tt)* }
        of_partitioned_tables { $(#[$doc:meta])* $kind:ident $letter:literal $type:literal $fires:literal, }
        of_both { $($both:tt)* }
    ) => {
        concat!("'", $letter, $fires, "'")
    };
    // The trigger that logs a TRUNCATE, in the same form.
    (
        @truncates
        of_plain_tables { $($plain:tt)* }
        of_partitioned_tables { $($parted:tt)* }
        of_both { $(#[$doc:meta])* $kind:ident $letter:literal $type:literal $fires:literal, }
    ) => {
        concat!("'", $letter, $fires, "'")
    };
}
pub(crate) use triggers;

triggers!(kinds);

impl TriggerKind {
    /// The kind that has this letter.
    pub(crate) fn of_letter(letter: &str) -> Option<TriggerKind> {
        TriggerKind::ALL.iter().copied().find(|kind| kind.letter() == letter)
    }

    /// Whether each partition needs a trigger of its own for it beside the root's.
    pub(crate) fn is_of_each_partition(self) -> bool {
        self == TriggerKind::Truncates
    }

    /// Whether the names of its table's key don't matter to it.
    pub(crate) fn logs_no_key(self) -> bool {
        self == TriggerKind::Truncates
    }
}

/// A row's key as the log has it: a text for one column, a JSON array of texts for several.
pub(crate) fn key_text(row: &str, key: &[String]) -> String {
    let columns: Vec<_> = key.iter().map(|name| format!("pg_catalog.concat({row}.{})", quote::quoted(name))).collect();
    match columns.as_slice() {
        [column] => column.clone(),
        columns => format!("pg_catalog.jsonb_build_array({})::pg_catalog.text", columns.join(", ")),
    }
}
