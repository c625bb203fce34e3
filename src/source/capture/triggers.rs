//! The text of the triggers. Their bodies are generated once, with the table's own names in them: a dynamic statement would be
//! planned at every call.

use crate::dataset::{Column, Sent};
use crate::source::quote;

/// The head of every trigger function: its writer's settings must not show in a key's text, or one key would have two, and its
/// rights must not matter.
const HEAD: &str = "returns trigger language plpgsql security definer set search_path = '' set timezone = 'UTC'
  set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1";

/// The statements that make functions and triggers for a table, the first of `relations`, and its partitions, the others.
pub(super) fn statements(is_partitioned: bool, key: &[Column], relations: &[String]) -> Vec<String> {
    // Not named after the table: it may be renamed, or dumped and restored beside another one.
    let id = uuid::Uuid::new_v4().simple().to_string();
    if is_partitioned { by_row(key, relations, &id) } else { by_statement(key, relations, &id) }
}

/// A trigger function, whose body no name in it can end. What a table calls its columns hides no variable. plpgsql keeps the plan
/// of a session's first, small update; as a nested loop it would never end on 200,000 rows.
fn function(id: &str, what: &str, body: &str) -> String {
    format!(
        "create function {}() {HEAD} set enable_nestloop = off as $f{id}$ #variable_conflict use_variable\n {body} $f{id}$",
        called(id, what)
    )
}

fn called(id: &str, what: &str) -> String {
    format!("cdc_export.capture_{id}_{what}")
}

/// The rows of a statement before and after it. With a space: as the name of a row it must not be one of a column.
const OLD_ROWS: &str = "\"old rows\"";
const NEW_ROWS: &str = "\"new rows\"";

/// A plain table: one call a statement, which sees all its rows.
fn by_statement(key: &[Column], relations: &[String], id: &str) -> Vec<String> {
    let (old, new, same) = (key_of(key, OLD_ROWS), key_of(key, NEW_ROWS), is_same(key));
    let (logged, table) = ("insert into cdc_export.change_log (tbl, op, pk", &relations[0]);
    let insert = format!("begin {logged}) select tg_relid, 'I', {new} from {NEW_ROWS}; return null; end");
    // One trigger sees the rows before and after, so a key that was changed is logged as gone.
    let update = format!(
        "begin
           {logged}) select tg_relid, 'U', {new} from {NEW_ROWS};
           {logged}, old) select tg_relid, 'D', {old}, to_jsonb({OLD_ROWS}) from {OLD_ROWS}
             where not exists (select from {NEW_ROWS} where {same});
           return null;
         end"
    );
    let delete = format!(
        "begin {logged}, old) select tg_relid, 'D', {old}, to_jsonb({OLD_ROWS}) from {OLD_ROWS}; return null; end"
    );
    let truncate = format!("begin {logged}) values (tg_relid, 'T', null); return null; end");
    let triggers = [
        ("i", insert, "insert", format!("referencing new table as {NEW_ROWS}")),
        ("u", update, "update", format!("referencing old table as {OLD_ROWS} new table as {NEW_ROWS}")),
        ("d", delete, "delete", format!("referencing old table as {OLD_ROWS}")),
        ("t", truncate, "truncate", String::new()),
    ];
    let statement = |(what, body, event, referencing): &(&str, String, &str, String)| {
        format!(
            "-- source.capture.{event}
             {};
             create trigger cdc_export_{what} after {event} on {table} {referencing}
               for each statement execute function {}()",
            function(id, what, body),
            called(id, what)
        )
    };
    triggers.iter().map(statement).collect()
}

/// A partitioned table: one call a row. Postgres clones row triggers to every partition, those to come too, so that they see
/// what is written directly into one; statement triggers of the parent wouldn't. A row that moves is a delete and an insert.
fn by_row(key: &[Column], relations: &[String], id: &str) -> Vec<String> {
    let (new, old) = (key_of(key, "new"), key_of(key, "old"));
    let (logged, table) = ("insert into cdc_export.change_log (tbl, op, pk", &relations[0]);
    let row = format!(
        "declare root oid := pg_catalog.pg_partition_root(tg_relid); begin
           if tg_op <> 'DELETE' then
             {logged}) values (root, case tg_op when 'INSERT' then 'I' else 'U' end::\"char\", {new});
           end if;
           if tg_op = 'DELETE' or tg_op = 'UPDATE' and {old} <> {new} then
             {logged}, old) values (root, 'D', {old}, to_jsonb(old));
           end if;
           return null;
         end"
    );
    // A partition that was detached keeps this trigger, and is no part of any tree.
    let truncate = format!(
        "begin
           {logged}) values (coalesce(pg_catalog.pg_partition_root(tg_relid), tg_relid), 'T', null);
           return null;
         end"
    );
    let mut statements = vec![format!(
        "-- source.capture.rows
         {};
         create trigger cdc_export_r after insert or update or delete on {table} for each row execute function {}();
         {}",
        function(id, "r", &row),
        called(id, "r"),
        function(id, "t", &truncate)
    )];
    let of_partition = |relation: &String| {
        format!(
            "-- source.capture.truncate_partition
             create trigger cdc_export_t after truncate on {relation} for each statement execute function {}()",
            called(id, "t")
        )
    };
    statements.extend(relations.iter().map(of_partition));
    statements
}

/// That an old row and a new one have the same key. By the texts of a type that isn't Postgres's own: its operators are in some
/// schema, and the functions see none.
fn is_same(key: &[Column]) -> String {
    let part = |column: &Column| {
        let text = if column.sent == Sent::Binary { "" } else { "::text" };
        let name = quote::quoted(&column.name);
        format!("{NEW_ROWS}.{name}{text} = {OLD_ROWS}.{name}{text}")
    };
    key.iter().map(part).collect::<Vec<_>>().join(" and ")
}

/// A row's key as the log has it: a text for one column, a JSON array of texts for several.
fn key_of(key: &[Column], row: &str) -> String {
    let columns: Vec<_> = key.iter().map(|column| format!("{row}.{}::text", quote::quoted(&column.name))).collect();
    match columns.as_slice() {
        [column] => column.clone(),
        columns => format!("jsonb_build_array({})::text", columns.join(", ")),
    }
}
