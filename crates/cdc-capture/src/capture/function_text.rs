//! The SQL text of the triggers and their functions. The bodies are generated once and contain the table's own names,
//! because a dynamic statement would be planned at every call.
//!
//! A function runs in the writer's session, with rights that the writer doesn't have. So every function, operator, type
//! and table is named with its schema. No value is cast, because the owner of a type can define its casts. `concat`
//! writes a value or a row by the type's output function, which only superusers can define.

use crate::quote;
use crate::trigger::{TriggerKind, key_of_parts, key_text};

/// The version of the functions' text, by which `renew` recognizes an older text. Increase it with each change of the
/// text below.
pub(super) const VERSION: u32 = 6;

/// The settings of the writer's session on which the text of a key may depend. A function sets them for its call, so
/// that each key has only one text. Setting them takes longer than the call itself. So a function has no settings if
/// its key's text depends on none.
const SETTINGS: &str = "set search_path = pg_catalog, pg_temp set timezone = 'UTC'
  set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// The part that the names of one table's functions share.
    pub(super) id: String,
    pub(super) kind: TriggerKind,
    /// The oid of the table whose changes it logs.
    pub(super) root: u32,
    pub(super) key: Vec<String>,
    /// True if the text of the key depends on no setting of a session.
    pub(super) is_plain: bool,
}

impl Function {
    /// Returns the function with this name, which has no schema. Returns `None` if no trigger function has such a name.
    pub(super) fn named(name: &str, root: u32, key: Vec<String>, is_plain: bool) -> Option<Function> {
        let (id, letter) = name.strip_prefix("capture_")?.split_once('_')?;
        let kind = letter.parse().ok()?;
        Some(Function { id: id.to_owned(), kind, root, key, is_plain })
    }

    /// Returns the function's name with its schema.
    pub(super) fn name(&self) -> String {
        format!("cdc_export.capture_{}_{}", self.id, self.kind)
    }

    /// Returns the statement that creates or replaces the function. The dollar quotes contain the `id`, so that no name
    /// in the body can end the body.
    pub(super) fn create(&self) -> String {
        let (name, id, body) = (self.name(), &self.id, self.body());
        let settings = if self.has_settings() { SETTINGS } else { "" };
        format!(
            "create or replace function {name}() returns trigger language plpgsql security definer {settings} as $f{id}${body}$f{id}$"
        )
    }

    pub(super) fn has_settings(&self) -> bool {
        self.kind != TriggerKind::Truncates && !self.is_plain
    }

    /// Returns the body, the text between the quotes.
    pub(super) fn body(&self) -> String {
        let key = serde_json::to_string(&self.key).expect("a list of texts is JSON");
        let root = self.root;
        format!("\n-- cdc-export {VERSION} {root} {key}\n#variable_conflict use_column\n{}\n", self.statements())
    }

    fn statements(&self) -> String {
        // This is not the present root of the partition. While the tracked table is itself a partition, the present
        // root is another table.
        let root = if self.kind == TriggerKind::Replicated { "tg_relid".to_owned() } else { self.root.to_string() };
        let (key, same) = (self.key_of("now"), self.is_same());
        let leave = self.leave();
        match self.kind {
            TriggerKind::Inserts => {
                let new = self.keyed(NEW_ROWS);
                format!("begin {leave} {LOG}) select tg_relid, 'I', {key} from {new} as now where now.is_there; return null; end")
            }
            // The trigger has the rows before and after the statement. It logs the old key of a changed key as deleted.
            // With foreign keys `on update cascade`, one row may occur several times among the statement's rows. So a
            // key is deleted if it occurs more often among the old rows than among the new ones.
            //
            // Most statements change one row, for which a simple comparison is faster. Nested loops are disabled,
            // because plpgsql keeps the plan of a session's first statement. A nested loop planned for two rows would
            // take far too long for 200,000.
            TriggerKind::Updates => {
                let (old, new) = (self.keyed(OLD_ROWS), self.keyed(NEW_ROWS));
                let [was_parts, now_parts] = ["was", "now"].map(|row| self.parts_of(row).collect::<Vec<_>>().join(", "));
                let lost = format!("(select {was_parts} from {old} as was except all select {now_parts} from {new} as now)");
                let is_lost = format!("exists (select from {lost} as now where {same})");
                let log_lost = self.log_deletions(&is_lost);
                format!(
                    "declare
                       rows pg_catalog.int8;
                       nestloop pg_catalog.text;
                     begin
                       {leave}
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
                   {leave}
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
            // A detached partition keeps this trigger. Its TRUNCATE is not logged.
            TriggerKind::Truncates => format!(
                "begin
                   if tg_relid operator(pg_catalog.=) {root} or exists ({}) then
                     {LOG}) values ({root}, 'T', null);
                   end if;
                   return null;
                 end",
                is_ancestor(self.root)
            ),
            // A session keeps its plans of `new.column` when the column is renamed, is dropped or gets another type. If
            // such a plan fails, the function reads the key again by a dynamic statement. The block that catches the
            // error writes nothing, so it takes no transaction id.
            //
            // A text of a key is never NULL, so a missing one tells the operation. In a statement through many
            // partitions each evaluated expression costs a tenth of a microsecond or more, because each partition has
            // plans of its own, which push each other out of the processor's caches. So an INSERT, which has most rows,
            // leaves first.
            TriggerKind::Rows | TriggerKind::Replicated => {
                let (old, new) = (key_text("old", &self.key), key_text("new", &self.key));
                let (id, anew) = (&self.id, key_text("($1)", &self.key));
                format!(
                    "declare
                       old_key pg_catalog.text;
                       new_key pg_catalog.text;
                     begin
                       {leave}
                       begin
                         if tg_op operator(pg_catalog.<>) 'DELETE' then new_key := {new}; end if;
                         if tg_op operator(pg_catalog.<>) 'INSERT' then old_key := {old}; end if;
                       exception when undefined_column or datatype_mismatch then
                         begin
                           if tg_op operator(pg_catalog.<>) 'INSERT' then execute $k{id}$select {anew}$k{id}$ into old_key using old; end if;
                           if tg_op operator(pg_catalog.<>) 'DELETE' then execute $k{id}$select {anew}$k{id}$ into new_key using new; end if;
                         exception when undefined_column then
                           return null;
                         end;
                       end;
                       if old_key is null then
                         {LOG}) values ({root}, 'I', new_key);
                         return null;
                       end if;
                       if new_key is not null then
                         {LOG}) values ({root}, 'U', new_key);
                         if old_key operator(pg_catalog.=) new_key collate pg_catalog.\"C\" then return null; end if;
                       elsif {IS_QUIET} then
                         insert into cdc_export.change_log (table_oid, operation, quiet_deletes) values ({root}, 'Q', 1);
                         return null;
                       end if;
                       {LOG}) values ({root}, 'D', old_key);
                       return null;
                     end"
                )
            }
        }
    }

    /// Returns the statements that end the function if it was called for another table than its own: in a restored copy
    /// of the database, where it may lack the right to write to the log. An export of that table has to be a full one.
    ///
    /// For a partition this takes a query. So the function first asks for a right that a restore without privileges
    /// takes away.
    fn leave(&self) -> String {
        let root = self.root;
        match self.kind {
            TriggerKind::Rows => format!(
                "if not pg_catalog.has_schema_privilege('cdc_export', 'usage') then
                   if not exists ({}) then return null; end if;
                 end if;",
                is_ancestor(root)
            ),
            _ => format!("if tg_relid operator(pg_catalog.<>) {root} then return null; end if;"),
        }
    }

    /// Returns the statement that logs the deletion of the rows of `OLD_ROWS` (called `was`) that satisfy `condition`.
    fn log_deletions(&self, condition: &str) -> String {
        let (key, old) = (self.key_of("was"), self.keyed(OLD_ROWS));
        format!("{LOG}) select tg_relid, 'D', {key} from {old} as was where {condition};")
    }

    /// Returns a relation of these rows with the texts of the key (`part1`, `part2`, …; another text is another key),
    /// and `is_there`.
    ///
    /// If a column of the key was renamed or dropped, its name is that of the NULL column of `missing`, and `is_there`
    /// is false. The trigger then logs nothing, and the writer's statement succeeds. The guard refuses the next export,
    /// because the row of `pg_attribute` of the key's column has changed. The planner removes `missing` and unused
    /// columns, so this costs nothing.
    ///
    /// The relation must not use a variable of plpgsql, because a column of the same name would be used instead.
    fn keyed(&self, rows: &str) -> String {
        let names: Vec<_> = self.key.iter().map(|name| quote::quoted(name)).collect();
        let missing: Vec<_> = names.iter().map(|name| format!("null::pg_catalog.text as {name}")).collect();
        let parts: Vec<_> = names
            .iter()
            .zip(1..)
            .map(|(name, part)| format!("pg_catalog.concat({name}) collate pg_catalog.\"C\" as part{part}"))
            .collect();
        let (names, missing, parts) = (names.join(", "), missing.join(", "), parts.join(", "));
        format!(
            "(select keyed.* from (select {missing}) as missing,
               lateral (select {parts}, pg_catalog.num_nulls({names}) operator(pg_catalog.=) 0 as is_there from {rows}) as keyed)"
        )
    }

    /// Returns the key of a row of `keyed`, in the form that the log has.
    fn key_of(&self, row: &str) -> String {
        key_of_parts(self.parts_of(row))
    }

    /// Returns the texts of the key's values for a row of `keyed`.
    fn parts_of(&self, row: &str) -> impl Iterator<Item = String> {
        (1..=self.key.len()).map(move |part| format!("{row}.part{part}"))
    }

    /// Returns the condition that the rows `was` and `now` of `keyed` have the same key. Compares texts, because the
    /// operators of a type may be in any schema.
    fn is_same(&self) -> String {
        let same = self.parts_of("now").zip(self.parts_of("was"));
        same.map(|(now, was)| format!("{now} operator(pg_catalog.=) {was}")).collect::<Vec<_>>().join(" and ")
    }
}

const LOG: &str = "insert into cdc_export.change_log (table_oid, operation, key";

/// The condition that the writer's transaction makes its deletions quiet. Only the writer's own session can set this.
const IS_QUIET: &str = "pg_catalog.current_setting('cdc_export.quiet', true) operator(pg_catalog.=) 'delete'";

/// The rows of a statement, before and after it. The names contain a space, so that they don't match a column's name.
const OLD_ROWS: &str = "\"old rows\"";
const NEW_ROWS: &str = "\"new rows\"";

/// Returns the query for a row if the table `root` is above the trigger's table.
fn is_ancestor(root: u32) -> String {
    format!(
        "select from pg_catalog.pg_partition_ancestors(tg_relid) as its (oid) where its.oid operator(pg_catalog.=) {root}::pg_catalog.oid"
    )
}

/// Returns the functions that a table's triggers call. Their names have the `id` and not the table's name: a table may
/// be renamed, or dumped and restored beside another one.
pub(super) fn functions(id: &str, is_partitioned: bool, root: u32, key: &[String], is_plain: bool) -> Vec<Function> {
    let function = |kind: TriggerKind| {
        let key = if kind == TriggerKind::Truncates { Vec::new() } else { key.to_owned() };
        Function { id: id.to_owned(), kind, root, key, is_plain }
    };
    TriggerKind::of_table(is_partitioned).map(function).collect()
}

impl Function {
    /// Returns the statement that creates the function's trigger on a table.
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
        let (kind, name) = (self.kind, self.name());
        // Postgres clones the row trigger to each partition. A partition that was a tracked root has its own row
        // trigger, which needs another name.
        let of_set = if self.kind == TriggerKind::Rows { format!("_{}", self.id) } else { String::new() };
        format!(
            "-- source.capture.trigger
             create trigger cdc_export_{kind}{of_set} after {event} on {table} {rows} execute function {name}()"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(kind: TriggerKind, key: &[&str], is_plain: bool) -> Function {
        let key = key.iter().map(|name| (*name).to_owned()).collect();
        Function { id: "0f".to_owned(), kind, root: 16384, key, is_plain }
    }

    fn all(key: &[&str]) -> Vec<Function> {
        let both = |kind| [true, false].map(|is_plain| function(kind, key, is_plain));
        TriggerKind::ALL.iter().copied().flat_map(both).collect()
    }

    #[test]
    fn a_function_is_known_again_by_its_name() {
        for function in all(&["id", "a\"b"]) {
            let name = function.name();
            let (name, key) = (name.strip_prefix("cdc_export.").unwrap(), function.key.clone());
            assert_eq!(Function::named(name, 16384, key, function.is_plain), Some(function));
        }
    }

    #[test]
    fn no_value_goes_through_a_cast() {
        for body in all(&["a", "b"]).iter().map(Function::body) {
            let casts = body.replace("::pg_catalog.", "");
            assert!(!casts.contains("::") && !body.contains("to_jsonb"), "{body}");
        }
    }

    /// A name or an operator without a schema would be looked up by the writer's search_path.
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
