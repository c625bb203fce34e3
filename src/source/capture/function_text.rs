//! The text of the triggers. Their bodies are generated once, with the table's own names in them: a dynamic statement would be
//! planned at every call.
//!
//! A function runs in its writer's session, with rights that the writer doesn't have. So nothing in it is looked up where the writer
//! may put things (his temporary schema is searched last), and no value goes through a cast, which the owner of its type may have made:
//! `concat` writes a value, or a row, by its type's output function, which only superusers make.

use crate::source::quote;
use crate::source::trigger::{TriggerKind, key_text};

/// The version of the functions' text, by which `renew` recognizes an older text. It goes up with each change of the text below.
pub(super) const VERSION: u32 = 3;

/// The head of every trigger function: the writer's settings must not show in a key's text, or one key would have two texts, and the
/// writer's rights must not matter.
const HEAD: &str =
    "returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp set timezone = 'UTC'
  set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1
  set lc_monetary from current";

/// A trigger function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// What the functions of one table have in common in their names.
    pub(super) id: String,
    pub(super) kind: TriggerKind,
    /// The oid of the table whose changes it logs.
    pub(super) root: u32,
    /// The names of the columns that tell the table's rows apart.
    pub(super) key: Vec<String>,
}

impl Function {
    /// The function of that name.
    pub(super) fn named(name: &str, root: u32, key: Vec<String>) -> Option<Function> {
        let (id, letter) = name.strip_prefix("capture_")?.split_once('_')?;
        let kind = TriggerKind::of_letter(letter)?;
        Some(Function { id: id.to_owned(), kind, root, key })
    }

    /// Its name, with its schema.
    pub(super) fn name(&self) -> String {
        format!("cdc_export.capture_{}_{}", self.id, self.kind.letter())
    }

    /// The statement that makes it, or puts it in the place of an older one. No name in its body can end that. What a table calls
    /// its columns hides no variable. plpgsql keeps the plan of a session's first, small update; as a nested loop it would never end
    /// on 200,000 rows.
    pub(super) fn create(&self) -> String {
        let (name, id, body) = (self.name(), &self.id, self.body());
        format!("create or replace function {name}() {HEAD} set enable_nestloop = off as $f{id}${body}$f{id}$")
    }

    /// What is between its quotes.
    pub(super) fn body(&self) -> String {
        let key = serde_json::to_string(&self.key).expect("a list of texts is JSON");
        let root = self.root;
        format!("\n-- cdc-export {VERSION} {root} {key}\n#variable_conflict use_variable\n{}\n", self.statements())
    }

    fn statements(&self) -> String {
        const LOG: &str = "insert into cdc_export.change_log (tbl, op, pk";
        // Not the root that the partition has now: while the table itself is somebody's partition, that is another.
        let root = if self.kind == TriggerKind::Replicated { "tg_relid".to_owned() } else { self.root.to_string() };
        let (old, new) = (self.key_of(OLD_ROWS), self.key_of(NEW_ROWS));
        // A whole row by its star: its bare name would be a column of that name.
        let image = format!("{}, {}", image_of(&format!("{OLD_ROWS}.*")), columns_of("tg_relid"));
        let gone = |rows: &str| {
            let (row, key) =
                (format!("tg_relid, 'D', {old}, {image} from {rows}"), format!("tg_relid, 'D', {old} from {rows}"));
            in_full_or_by_key(&format!("{LOG}, image, image_columns) select {row}"), &format!("{LOG}) select {key}"))
        };
        let of_row = |image: &str| {
            let (key, columns) = (self.key_of("old"), columns_of("root"));
            format!("{LOG}, image, image_columns) values (root, 'D', {key}, {image}, {columns})")
        };
        let (in_full, if_it_fits) = (of_row("concat(old)"), of_row(&image_of("old")));
        let lost = format!("{OLD_ROWS} where not exists (select from {NEW_ROWS} where {})", self.is_same());
        match self.kind {
            TriggerKind::Inserts => format!("begin {LOG}) select tg_relid, 'I', {new} from {NEW_ROWS}; return null; end"),
            // One trigger sees the rows before and after, so a key that was changed is logged as gone.
            TriggerKind::Updates => format!(
                "begin
                   {LOG}) select tg_relid, 'U', {new} from {NEW_ROWS};
                   if exists (select from {lost}) then {} end if;
                   return null;
                 end",
                gone(&lost)
            ),
            TriggerKind::Deletes => format!("begin {} return null; end", gone(OLD_ROWS)),
            // A partition that was detached keeps this trigger, and is no part of any tree.
            TriggerKind::Truncates => format!(
                "begin
                   if tg_relid = {root} or exists (select from pg_partition_ancestors(tg_relid) as its (oid) where its.oid = {root}) then
                     {LOG}) values ({root}, 'T', null);
                   end if;
                   return null;
                 end"
            ),
            // Each row of a partition would begin a transaction within its own: only one that may be too large does.
            TriggerKind::Rows | TriggerKind::Replicated => format!(
                "declare root constant oid := {root}; begin
                   if tg_op <> 'DELETE' then
                     {LOG}) values (root, case tg_op when 'INSERT' then 'I' else 'U' end::pg_catalog.\"char\", {new});
                   end if;
                   if tg_op = 'DELETE' or tg_op = 'UPDATE' and {old} <> {new} collate \"C\" then
                     if pg_column_size(old) <= {LARGE} then {in_full}; else {} end if;
                   end if;
                   return null;
                 end",
                in_full_or_by_key(&if_it_fits, &format!("{LOG}) values (root, 'D', {})", self.key_of("old"))),
                new = self.key_of("new"),
                old = self.key_of("old"),
            ),
        }
    }

    fn key_of(&self, row: &str) -> String {
        key_text(row, &self.key)
    }

    /// That an old row and a new one have the same key, by its texts: the log has a text, and a type's operators are in some schema.
    fn is_same(&self) -> String {
        let part = |name: &String| {
            let name = quote::quoted(name);
            format!("concat({NEW_ROWS}.{name}) = concat({OLD_ROWS}.{name}) collate \"C\"")
        };
        self.key.iter().map(part).collect::<Vec<_>>().join(" and ")
    }
}

/// A row that takes no more room than so many bytes has a text that there is room for: what compresses values does it 255 times at
/// best, and a character is four in the text of a row.
const LARGE: u32 = 1_000_000;

/// A row that takes more room than so many bytes has no image: its text would take its writer half a minute for each 100 MB, and twelve times
/// the memory.
const LARGEST: u32 = 16 << 20;

/// The text of a row, if it has an image. Its size is asked without unpacking what is compressed.
fn image_of(row: &str) -> String {
    format!("case when pg_column_size({row}) <= {LARGEST} then concat({row}) end")
}

/// Logs rows that are gone with their images; where one can't be written, since a text has no room for it, all by their keys alone:
/// nobody's statement fails because of what a row holds. Where the log can't be written to at all, it does fail.
fn in_full_or_by_key(in_full: &str, by_key: &str) -> String {
    format!("begin {in_full}; exception when others then {by_key}; end;")
}

/// The rows of a statement before and after it. With a space: as the name of a row it must not be one of a column.
const OLD_ROWS: &str = "\"old rows\"";
const NEW_ROWS: &str = "\"new rows\"";

/// The numbers, in that table, of the columns that a row of `tg_relid` has: a partition may have others than its root.
fn columns_of(table: &str) -> String {
    let own = "pg_attribute a where a.attrelid = tg_relid and a.attnum > 0 and not a.attisdropped";
    if table == "tg_relid" {
        return format!("(select array_agg(a.attnum order by a.attnum) from {own})");
    }
    format!(
        "(select array_agg((select r.attnum from pg_attribute r where r.attrelid = {table} and r.attname = a.attname) order by a.attnum)
          from {own})"
    )
}

/// What a table's triggers call, all of `id`: they are not named after the table, which may be renamed, or dumped and restored
/// beside another one.
pub(super) fn functions(id: &str, is_partitioned: bool, root: u32, key: &[String]) -> Vec<Function> {
    let function = |kind: TriggerKind| {
        let key = if kind.logs_no_key() { Vec::new() } else { key.to_owned() };
        Function { id: id.to_owned(), kind, root, key }
    };
    TriggerKind::of_table(is_partitioned).iter().copied().map(function).collect()
}

impl Function {
    /// The statement that makes its trigger on a table.
    pub(super) fn trigger(&self, table: &str) -> String {
        let (event, rows) = match self.kind {
            TriggerKind::Inserts => ("insert", format!("referencing new table as {NEW_ROWS} for each statement")),
            TriggerKind::Updates => {
                ("update", format!("referencing old table as {OLD_ROWS} new table as {NEW_ROWS} for each statement"))
            }
            TriggerKind::Deletes => ("delete", format!("referencing old table as {OLD_ROWS} for each statement")),
            TriggerKind::Truncates => ("truncate", "for each statement".to_owned()),
            TriggerKind::Rows | TriggerKind::Replicated => ("insert or update or delete", "for each row".to_owned()),
        };
        let (letter, name) = (self.kind.letter(), self.name());
        format!(
            "-- source.capture.trigger
             create trigger cdc_export_{letter} after {event} on {table} {rows} execute function {name}()"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(kind: TriggerKind, key: &[&str]) -> Function {
        Function { id: "0f".to_owned(), kind, root: 16384, key: key.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn a_function_is_known_again_by_its_name() {
        for &kind in TriggerKind::ALL {
            let function = function(kind, &["id", "a\"b"]);
            let name = function.name();
            let (name, key) = (name.strip_prefix("cdc_export.").unwrap(), function.key.clone());
            assert_eq!(Function::named(name, 16384, key), Some(function));
        }
    }

    #[test]
    fn no_value_goes_through_a_cast() {
        for &kind in TriggerKind::ALL {
            let body = function(kind, &["a", "b"]).body();
            let casts = body.replace("::pg_catalog.", "");
            assert!(!casts.contains("::") && !body.contains("to_jsonb"), "{body}");
        }
    }
}
