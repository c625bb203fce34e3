//! The text of the triggers. Their bodies are generated once, with the table's own names in them: a dynamic statement
//! would be planned at every call.
//!
//! A function runs in its writer's session, with rights that the writer doesn't have. So every function, operator, type
//! and table says its schema, and no value goes through a cast, which the owner of its type may have made: `concat`
//! writes a value, or a row, by its type's output function, which only superusers make.

use crate::source::quote;
use crate::source::trigger::{TriggerKind, key_of_parts, key_text};

/// The version of the functions' text, by which `renew` recognizes an older text. It goes up with each change of the
/// text below.
pub(super) const VERSION: u32 = 4;

/// The settings of the writer's session that a text may show. A function sets them for its call, so that a key has one
/// text. Setting them takes longer than the call itself, so functions whose texts show no setting have none.
const SETTINGS: &str = "set search_path = pg_catalog, pg_temp set timezone = 'UTC'
  set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1
  set quote_all_identifiers = off set lc_monetary from current";

/// The settings that the text of a table's key depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyText {
    /// On the key's values alone.
    Plain,
    /// On settings of the session too, as far as anybody knows.
    BySettings,
}

impl KeyText {
    /// Plain where that is known.
    pub(super) fn new(is_plain: bool) -> KeyText {
        if is_plain { KeyText::Plain } else { KeyText::BySettings }
    }
}

/// A trigger function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// The part that the names of one table's functions share.
    pub(super) id: String,
    pub(super) kind: TriggerKind,
    /// The oid of the table whose changes it logs.
    pub(super) root: u32,
    /// The names of the columns that tell the table's rows apart.
    pub(super) key: Vec<String>,
    pub(super) key_text: KeyText,
}

impl Function {
    /// The function of that name.
    pub(super) fn named(name: &str, root: u32, key: Vec<String>, key_text: KeyText) -> Option<Function> {
        let (id, letter) = name.strip_prefix("capture_")?.split_once('_')?;
        let kind = TriggerKind::of_letter(letter)?;
        Some(Function { id: id.to_owned(), kind, root, key, key_text })
    }

    /// Its name, with its schema.
    pub(super) fn name(&self) -> String {
        format!("cdc_export.capture_{}_{}", self.id, self.kind.letter())
    }

    /// The statement that makes it, or puts it in the place of an older one. No name in its body can end that.
    pub(super) fn create(&self) -> String {
        let (name, id, body) = (self.name(), &self.id, self.body());
        let settings = if self.has_settings() { SETTINGS } else { "" };
        format!(
            "create or replace function {name}() returns trigger language plpgsql security definer {settings} as $f{id}${body}$f{id}$"
        )
    }

    /// Returns true if it runs with settings of its own.
    pub(super) fn has_settings(&self) -> bool {
        match self.kind {
            TriggerKind::Truncates => false,
            TriggerKind::Deletes => true,
            TriggerKind::Inserts | TriggerKind::Updates | TriggerKind::Rows | TriggerKind::Replicated => {
                self.key_text == KeyText::BySettings
            }
        }
    }

    /// Returns the body, the text between the quotes.
    pub(super) fn body(&self) -> String {
        let key = serde_json::to_string(&self.key).expect("a list of texts is JSON");
        let root = self.root;
        format!("\n-- cdc-export {VERSION} {root} {key}\n#variable_conflict use_column\n{}\n", self.statements())
    }

    fn statements(&self) -> String {
        // Not the root that the partition has now: while the table itself is somebody's partition, that is another.
        let root = if self.kind == TriggerKind::Replicated { "tg_relid".to_owned() } else { self.root.to_string() };
        let (key, same) = (self.key_of("now"), self.is_same());
        match self.kind {
            TriggerKind::Inserts => {
                let new = self.keyed(NEW_ROWS, None);
                format!("begin {LOG}) select tg_relid, 'I', {key} from {new} as now where now.is_there; return null; end")
            }
            // One trigger sees the rows before and after, so a key that was changed is logged as gone. Foreign keys
            // with `on update cascade` share the statement's rows, in which one row may then be several times: a key is
            // gone if it is more often among the old rows than among the new ones. Most statements change one row, of
            // which this is soon access. plpgsql keeps the plan that it made for a session's first statement, maybe of
            // two rows: as a nested loop it would never end on 200,000.
            TriggerKind::Updates => {
                let (old, new) = (self.keyed(OLD_ROWS, None), self.keyed(NEW_ROWS, None));
                let [was_parts, now_parts] = ["was", "now"].map(|row| self.parts_of(row).collect::<Vec<_>>().join(", "));
                let lost = format!("(select {was_parts} from {old} as was except all select {now_parts} from {new} as now)");
                let is_lost = format!("exists (select from {lost} as now where {same})");
                let log_lost = self.log_deletions(&is_lost);
                format!(
                    "declare
                       rows pg_catalog.int8;
                       nestloop pg_catalog.text;
                     begin
                       {LOG}) select tg_relid, 'U', {key} from {new} as now where now.is_there;
                       get diagnostics rows = row_count;
                       if rows operator(pg_catalog.=) 1 then
                         perform from {old} as was, {new} as now where not ({same});
                         if not found then return null; end if;
                       elsif rows operator(pg_catalog.=) 0 then
                         return null;
                       end if;
                       nestloop := pg_catalog.current_setting('enable_nestloop');
                       perform pg_catalog.set_config('enable_nestloop', 'off', true);
                       if exists {lost} then {log_lost} end if;
                       perform pg_catalog.set_config('enable_nestloop', nestloop, true);
                       return null;
                     end"
                )
            }
            TriggerKind::Deletes => format!(
                "begin
                   if {IS_QUIET} then
                     insert into cdc_export.change_log (table_oid, operation, quiet_deletes)
                       select tg_relid, 'Q', pg_catalog.count(*) from (select from {OLD_ROWS}) as its -- without columns, such as tg_relid
                       having pg_catalog.count(*) operator(pg_catalog.>) 0;
                     return null;
                   end if;
                   {} return null;
                 end",
                self.log_deletions("was.is_there")
            ),
            // A partition that was detached keeps this trigger, and is no part of any tree.
            TriggerKind::Truncates => format!(
                "begin
                   if tg_relid operator(pg_catalog.=) {root} or exists (
                     select from pg_catalog.pg_partition_ancestors(tg_relid) as its (oid) where its.oid operator(pg_catalog.=) {root}) then
                     {LOG}) values ({root}, 'T', null);
                   end if;
                   return null;
                 end"
            ),
            // A session keeps its plans of `new.column` when the column is renamed, is dropped or gets another type:
            // what it then can't read it reads anew. The block for that writes nothing, so it takes no transaction id.
            // Only a row that may be too large for a text is written in a subtransaction: one for each row would be
            // slow.
            TriggerKind::Rows | TriggerKind::Replicated => {
                let columns = columns_of(&root);
                let log_deletion = |image: &str, columns: &str| {
                    format!("{LOG}, image, image_columns) values ({root}, 'D', old_key, {image}, {columns})")
                };
                let log_in_full = log_deletion(&self.text_of("old"), &columns);
                let log_large =
                    in_full_or_by_key(&log_deletion(&self.image_of("old"), &columns), &log_deletion("null", "null"));
                let (old, new) = (key_text("old", &self.key), key_text("new", &self.key));
                let (id, anew) = (&self.id, key_text("($1)", &self.key));
                format!(
                    "declare
                       old_key pg_catalog.text;
                       new_key pg_catalog.text;
                     begin
                       if tg_op operator(pg_catalog.=) 'DELETE' and {IS_QUIET} then
                         insert into cdc_export.change_log (table_oid, operation, quiet_deletes) values ({root}, 'Q', 1);
                         return null;
                       end if;
                       begin
                         if tg_op operator(pg_catalog.<>) 'INSERT' then old_key := {old}; end if;
                         if tg_op operator(pg_catalog.<>) 'DELETE' then new_key := {new}; end if;
                       exception when undefined_column or datatype_mismatch then
                         begin
                           if tg_op operator(pg_catalog.<>) 'INSERT' then execute $k{id}$select {anew}$k{id}$ into old_key using old; end if;
                           if tg_op operator(pg_catalog.<>) 'DELETE' then execute $k{id}$select {anew}$k{id}$ into new_key using new; end if;
                         exception when undefined_column then
                           return null;
                         end;
                       end;
                       if tg_op operator(pg_catalog.<>) 'DELETE' then
                         {LOG}) values ({root}, case when tg_op operator(pg_catalog.=) 'INSERT' then 'I' else 'U' end::pg_catalog.\"char\", new_key);
                       end if;
                       if tg_op operator(pg_catalog.=) 'DELETE'
                         or tg_op operator(pg_catalog.=) 'UPDATE' and old_key operator(pg_catalog.<>) new_key collate pg_catalog.\"C\" then
                         if pg_catalog.pg_column_size(old) operator(pg_catalog.<=) {LARGE} then {log_in_full}; else {log_large} end if;
                       end if;
                       return null;
                     end"
                )
            }
        }
    }

    /// Returns the statement that logs deletions of the rows of `OLD_ROWS` (called `was`) that satisfy `condition`.
    fn log_deletions(&self, condition: &str) -> String {
        let (key, columns) = (self.key_of("was"), columns_of("tg_relid"));
        // A whole row by its star: its bare name would be a column of that name.
        let image = self.image_of(&format!("{OLD_ROWS}.*"));
        let (old, with_image) = (self.keyed(OLD_ROWS, None), self.keyed(OLD_ROWS, Some(&image)));
        in_full_or_by_key(
            &format!(
                "{LOG}, image, image_columns) select tg_relid, 'D', {key}, was.image, {columns} from {with_image} as was where {condition}"
            ),
            &format!("{LOG}) select tg_relid, 'D', {key} from {old} as was where {condition}"),
        )
    }

    /// Returns a relation of these rows with the texts of the key (`part1`, `part2`, …; another text is another key),
    /// the image if there is one, and `is_there`.
    ///
    /// If a column of the key was renamed or dropped, its name is that of the NULL column of `missing`, and `is_there`
    /// is false. The trigger then logs nothing, and the writer's statement succeeds. The guard refuses the next export,
    /// because the row of `pg_attribute` of the key's column has changed. The planner removes `missing` and unused
    /// columns, so this costs nothing.
    ///
    /// No variable of plpgsql may stand inside: a column of the same name would be taken instead.
    fn keyed(&self, rows: &str, image: Option<&str>) -> String {
        let names: Vec<_> = self.key.iter().map(|name| quote::quoted(name)).collect();
        let missing: Vec<_> = names.iter().map(|name| format!("null::pg_catalog.text as {name}")).collect();
        let parts: Vec<_> = names
            .iter()
            .zip(1..)
            .map(|(name, part)| format!("pg_catalog.concat({name}) collate pg_catalog.\"C\" as part{part}"))
            .collect();
        let image = image.map(|image| format!(", {image} as image")).unwrap_or_default();
        let (names, missing, parts) = (names.join(", "), missing.join(", "), parts.join(", "));
        format!(
            "(select keyed.* from (select {missing}) as missing,
               lateral (select {parts}{image}, pg_catalog.num_nulls({names}) operator(pg_catalog.=) 0 as is_there from {rows}) as keyed)"
        )
    }

    /// A row's key as the log has it, of a row of `keyed`.
    fn key_of(&self, row: &str) -> String {
        key_of_parts(self.parts_of(row))
    }

    /// The texts of the key's values, of a row of `keyed`.
    fn parts_of(&self, row: &str) -> impl Iterator<Item = String> {
        (1..=self.key.len()).map(move |part| format!("{row}.part{part}"))
    }

    /// That `was` and `now` of `keyed` have the same key, by its texts: a type's operators are in some schema.
    fn is_same(&self) -> String {
        let same = self.parts_of("now").zip(self.parts_of("was"));
        same.map(|(now, was)| format!("{now} operator(pg_catalog.=) {was}")).collect::<Vec<_>>().join(" and ")
    }

    /// The text of a row, which shows no setting of the writer.
    fn text_of(&self, row: &str) -> String {
        if self.has_settings() { format!("pg_catalog.concat({row})") } else { format!("cdc_export.image_of({row})") }
    }

    /// The text of a row, if it has an image. Its size is asked without unpacking what is compressed.
    fn image_of(&self, row: &str) -> String {
        let text = self.text_of(row);
        format!("case when pg_catalog.pg_column_size({row}) operator(pg_catalog.<=) {LARGEST} then {text} end")
    }
}

const LOG: &str = "insert into cdc_export.change_log (table_oid, operation, key";

/// The condition that the writer's transaction asked not to log its deletions. Only its own session can set that.
const IS_QUIET: &str = "pg_catalog.current_setting('cdc_export.quiet', true) operator(pg_catalog.=) 'delete'";

/// A row that takes no more room than so many bytes has a text that there is room for: what compresses values does it
/// 255 times at best, and a character is four in the text of a row.
const LARGE: u32 = 1_000_000;

/// A row that takes more room than so many bytes has no image: its text would take its writer half a minute for each
/// 100 MB, and twelve times the memory.
const LARGEST: u32 = 16 << 20;

/// Logs rows that are gone with their images; where one can't be written, since a text has no room for it, all by their
/// keys alone: nobody's statement fails because of what a row holds. Where the log can't be written to at all, it does
/// fail.
fn in_full_or_by_key(in_full: &str, by_key: &str) -> String {
    format!("begin {in_full}; exception when others then {by_key}; end;")
}

/// The rows of a statement before and after it. With a space: as the name of a row it must not be one of a column.
const OLD_ROWS: &str = "\"old rows\"";
const NEW_ROWS: &str = "\"new rows\"";

/// The numbers, in that table, of the columns that a row of `tg_relid` has: a partition may have others than its root.
///
/// `(select tg_relid)` hides the value from the planner. If the planner knew the value, it would expect a custom plan
/// to be cheaper than the generic one, and plan at every call.
fn columns_of(table: &str) -> String {
    let own = "pg_catalog.pg_attribute a
      where a.attrelid operator(pg_catalog.=) (select tg_relid) and a.attnum operator(pg_catalog.>) 0 and not a.attisdropped";
    let number = match table {
        "tg_relid" => "a.attnum".to_owned(),
        table => format!(
            "(select r.attnum from pg_catalog.pg_attribute r
              where r.attrelid operator(pg_catalog.=) {table} and r.attname operator(pg_catalog.=) a.attname)"
        ),
    };
    format!("(select pg_catalog.array_agg({number} order by a.attnum) from {own})")
}

/// Returns the functions that a table's triggers call. Their names have the `id` and not the table's name: a table may
/// be renamed, or dumped and restored beside another one.
pub(super) fn functions(id: &str, is_partitioned: bool, root: u32, key: &[String], key_text: KeyText) -> Vec<Function> {
    let function = |kind: TriggerKind| {
        let key = if kind == TriggerKind::Truncates { Vec::new() } else { key.to_owned() };
        Function { id: id.to_owned(), kind, root, key, key_text }
    };
    TriggerKind::of_table(is_partitioned).map(function).collect()
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
        // Postgres clones the row trigger to each partition. A partition that was a tracked root has its own row
        // trigger, which needs another name.
        let of_set = if self.kind == TriggerKind::Rows { format!("_{}", self.id) } else { String::new() };
        format!(
            "-- source.capture.trigger
             create trigger cdc_export_{letter}{of_set} after {event} on {table} {rows} execute function {name}()"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(kind: TriggerKind, key: &[&str], key_text: KeyText) -> Function {
        let key = key.iter().map(|name| (*name).to_owned()).collect();
        Function { id: "0f".to_owned(), kind, root: 16384, key, key_text }
    }

    fn all(key: &[&str]) -> Vec<Function> {
        let both = |kind| [KeyText::Plain, KeyText::BySettings].map(|text| function(kind, key, text));
        TriggerKind::ALL.into_iter().flat_map(both).collect()
    }

    #[test]
    fn a_function_is_known_again_by_its_name() {
        for function in all(&["id", "a\"b"]) {
            let name = function.name();
            let (name, key) = (name.strip_prefix("cdc_export.").unwrap(), function.key.clone());
            assert_eq!(Function::named(name, 16384, key, function.key_text), Some(function));
        }
    }

    #[test]
    fn no_value_goes_through_a_cast() {
        for body in all(&["a", "b"]).iter().map(Function::body) {
            let casts = body.replace("::pg_catalog.", "");
            assert!(!casts.contains("::") && !body.contains("to_jsonb"), "{body}");
        }
    }

    /// A name without a schema is looked up by the writer's search_path, and so is an operator.
    #[test]
    fn every_name_says_its_schema() {
        let syntax = [
            "having", "exists", "case", "and", "or", "not", "values", "from", "operator", "if", "then", "its", "where",
            "lateral",
        ];
        for body in all(&["a", "b"]).iter().map(Function::body) {
            let text = body.split_once("use_column").unwrap().1.replace("operator(pg_catalog.", "operator(");
            for (at, _) in text.match_indices('(') {
                let before = text[..at].trim_end();
                let name = before.rsplit(|c: char| !(c.is_alphanumeric() || "_.".contains(c))).next().unwrap();
                let is_known = name.is_empty() || syntax.contains(&name) || name.ends_with("change_log");
                assert!(
                    is_known || name.starts_with("pg_catalog.") || name.starts_with("cdc_export."),
                    "{name} in {body}"
                );
            }
            let mut rest = text.clone();
            for said in ["operator(=)", "operator(<>)", "operator(<=)", "operator(>)", ":=", "rows = row_count"] {
                rest = rest.replace(said, "");
            }
            assert!(!rest.contains(['=', '<', '>', '|', '+']), "{rest}");
            assert!(!rest.contains(" in (") && !rest.contains("distinct from") && !rest.contains(" like "), "{rest}");
            for (at, _) in rest.match_indices(" from ") {
                let relation = rest[at + 6..].trim_start();
                let known = ["pg_catalog.", "\"old rows\"", "\"new rows\"", "(select "];
                let is_known = known.iter().any(|it| relation.starts_with(it));
                assert!(is_known, "{rest}");
            }
        }
    }
}
