//! The text of the triggers. Their bodies are generated once, with the table's own names in them: a dynamic statement would be
//! planned at every call.
//!
//! A function runs in its writer's session, with rights that the writer doesn't have. So nothing in it is looked up where the writer
//! may put things (his temporary schema is searched last), and no value goes through a cast, which the owner of its type may have made:
//! `concat` writes a value, or a row, by its type's output function, which only superusers make.

use crate::source::quote;

/// What renews a function has to be able to tell whether it is of today: goes up with each change of what follows.
const VERSION: u32 = 2;

/// The head of every trigger function: its writer's settings must not show in a key's text, or one key would have two, and its
/// rights must not matter.
const HEAD: &str =
    "returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp set timezone = 'UTC'
  set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1
  set lc_monetary from current";

/// A trigger function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// What the functions of one table have in common in their names.
    pub(super) id: String,
    /// Which of them it is.
    pub(super) does: Does,
    /// The names of the columns that tell the table's rows apart.
    pub(super) key: Vec<String>,
}

/// What a trigger function logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    /// The rows that a statement inserted.
    Inserts,
    /// Those that it updated.
    Updates,
    /// Those that it deleted.
    Deletes,
    /// That it emptied the table.
    Truncates,
    /// A row that was written to a partition.
    Rows,
    /// That a partition was emptied.
    PartitionTruncates,
}

impl Does {
    const ALL: [Does; 6] =
        [Does::Inserts, Does::Updates, Does::Deletes, Does::Truncates, Does::Rows, Does::PartitionTruncates];

    /// The last part of the function's name, and of its trigger's.
    fn letter(self) -> &'static str {
        match self {
            Does::Inserts => "i",
            Does::Updates => "u",
            Does::Deletes => "d",
            Does::Truncates | Does::PartitionTruncates => "t",
            Does::Rows => "r",
        }
    }
}

impl Function {
    /// The function of that name, if it is one of a table that is or isn't partitioned.
    pub(super) fn named(name: &str, is_partitioned: bool, key: Vec<String>) -> Option<Function> {
        let (id, letter) = name.strip_prefix("capture_")?.split_once('_')?;
        let of_rows = |does: &Does| matches!(does, Does::Rows | Does::PartitionTruncates);
        let does = Does::ALL.into_iter().find(|does| does.letter() == letter && of_rows(does) == is_partitioned)?;
        Some(Function { id: id.to_owned(), does, key })
    }

    /// The key in a body of this version; `None`: it is of another one, or nobody's.
    pub(super) fn key_in(body: &str) -> Option<Vec<String>> {
        let (mark, key) = body.trim_start().lines().next()?.split_once(" [")?;
        if mark != format!("-- cdc-export {VERSION}") {
            return None;
        }
        serde_json::from_str(&format!("[{key}")).ok()
    }

    /// Whether the names of its table's key don't matter to it.
    pub(super) fn logs_no_key(&self) -> bool {
        matches!(self.does, Does::Truncates | Does::PartitionTruncates)
    }

    /// Its name, with its schema.
    pub(super) fn name(&self) -> String {
        format!("cdc_export.capture_{}_{}", self.id, self.does.letter())
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
        format!("\n-- cdc-export {VERSION} {key}\n#variable_conflict use_variable\n{}\n", self.statements())
    }

    fn statements(&self) -> String {
        const LOG: &str = "insert into cdc_export.change_log (tbl, op, pk";
        let (old, new) = (self.key_of(OLD_ROWS), self.key_of(NEW_ROWS));
        // A whole row by its star: its bare name would be a column of that name.
        let image = format!("concat({OLD_ROWS}.*), {}", columns_of("tg_relid"));
        let gone = |rows: &str| {
            let (row, key) =
                (format!("tg_relid, 'D', {old}, {image} from {rows}"), format!("tg_relid, 'D', {old} from {rows}"));
            in_full_or_by_key(&format!("{LOG}, image, image_columns) select {row}"), &format!("{LOG}) select {key}"))
        };
        let in_full = format!(
            "{LOG}, image, image_columns) values (root, 'D', {}, concat(old), {})",
            self.key_of("old"),
            columns_of("root")
        );
        let lost = format!("{OLD_ROWS} where not exists (select from {NEW_ROWS} where {})", self.is_same());
        match self.does {
            Does::Inserts => format!("begin {LOG}) select tg_relid, 'I', {new} from {NEW_ROWS}; return null; end"),
            // One trigger sees the rows before and after, so a key that was changed is logged as gone.
            Does::Updates => format!(
                "begin
                   {LOG}) select tg_relid, 'U', {new} from {NEW_ROWS};
                   if exists (select from {lost}) then {} end if;
                   return null;
                 end",
                gone(&lost)
            ),
            Does::Deletes => format!("begin {} return null; end", gone(OLD_ROWS)),
            Does::Truncates => format!("begin {LOG}) values (tg_relid, 'T', null); return null; end"),
            // Each row of a partition would begin a transaction within its own: only one that may be too large does.
            Does::Rows => format!(
                "declare root oid := pg_partition_root(tg_relid); begin
                   if tg_op <> 'DELETE' then
                     {LOG}) values (root, case tg_op when 'INSERT' then 'I' else 'U' end::pg_catalog.\"char\", {new});
                   end if;
                   if tg_op = 'DELETE' or tg_op = 'UPDATE' and {old} <> {new} collate \"C\" then
                     if pg_column_size(old) <= {LARGE} then {in_full}; else {} end if;
                   end if;
                   return null;
                 end",
                in_full_or_by_key(&in_full, &format!("{LOG}) values (root, 'D', {})", self.key_of("old"))),
                new = self.key_of("new"),
                old = self.key_of("old"),
            ),
            // A partition that was detached keeps this trigger, and is no part of any tree.
            Does::PartitionTruncates => format!(
                "begin {LOG}) values (coalesce(pg_partition_root(tg_relid), tg_relid), 'T', null); return null; end"
            ),
        }
    }

    /// A row's key as the log has it: a text for one column, a JSON array of texts for several.
    fn key_of(&self, row: &str) -> String {
        let columns: Vec<_> = self.key.iter().map(|name| format!("concat({row}.{})", quote::quoted(name))).collect();
        match columns.as_slice() {
            [column] => column.clone(),
            columns => format!("jsonb_build_array({})::pg_catalog.text", columns.join(", ")),
        }
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

/// What makes a table's changes captured.
pub(super) struct Statements {
    /// What the triggers call.
    pub(super) functions: Vec<Function>,
    /// Statements that make the triggers.
    pub(super) triggers: Vec<String>,
}

/// The functions and triggers for a table, the first of `relations`, and its partitions, the others.
pub(super) fn statements(is_partitioned: bool, key: &[String], relations: &[String]) -> Statements {
    // Not named after the table: it may be renamed, or dumped and restored beside another one.
    let id = uuid::Uuid::new_v4().simple().to_string();
    let function = |does| {
        let function = Function { id: id.clone(), does, key: Vec::new() };
        if function.logs_no_key() { function } else { Function { key: key.to_owned(), ..function } }
    };
    if is_partitioned {
        by_row(function(Does::Rows), function(Does::PartitionTruncates), relations)
    } else {
        let all = [Does::Inserts, Does::Updates, Does::Deletes, Does::Truncates];
        by_statement(all.map(function).into(), &relations[0])
    }
}

/// A plain table: one call a statement, which sees all its rows.
fn by_statement(functions: Vec<Function>, table: &str) -> Statements {
    let trigger = |function: &Function| {
        let (event, referencing) = match function.does {
            Does::Inserts => ("insert", format!("referencing new table as {NEW_ROWS}")),
            Does::Updates => ("update", format!("referencing old table as {OLD_ROWS} new table as {NEW_ROWS}")),
            Does::Deletes => ("delete", format!("referencing old table as {OLD_ROWS}")),
            _ => ("truncate", String::new()),
        };
        let (letter, name) = (function.does.letter(), function.name());
        format!(
            "-- source.capture.{event}
             create trigger cdc_export_{letter} after {event} on {table} {referencing} for each statement execute function {name}()"
        )
    };
    Statements { triggers: functions.iter().map(trigger).collect(), functions }
}

/// A partitioned table: one call a row. Postgres clones row triggers to every partition, those to come too, so that they see
/// what is written directly into one; statement triggers of the parent wouldn't. A row that moves is a delete and an insert.
fn by_row(rows: Function, truncates: Function, relations: &[String]) -> Statements {
    let table = &relations[0];
    let mut triggers = vec![format!(
        "-- source.capture.rows
         create trigger cdc_export_r after insert or update or delete on {table} for each row execute function {}()",
        rows.name()
    )];
    let of_partition = |relation: &String| {
        format!(
            "-- source.capture.truncate_partition
             create trigger cdc_export_t after truncate on {relation} for each statement execute function {}()",
            truncates.name()
        )
    };
    triggers.extend(relations.iter().map(of_partition));
    Statements { functions: vec![rows, truncates], triggers }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(does: Does, key: &[&str]) -> Function {
        Function { id: "0f".to_owned(), does, key: key.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn a_function_is_known_again_by_its_name_and_its_body() {
        let odd = ["id", "a\"b", "two\nlines", "$f0f$", "]"];
        for does in Does::ALL {
            let function = function(does, &odd);
            let name = function.name();
            let of_rows = matches!(does, Does::Rows | Does::PartitionTruncates);
            let key = Function::key_in(&function.body()).unwrap();
            assert_eq!(Function::named(name.strip_prefix("cdc_export.").unwrap(), of_rows, key), Some(function));
        }
        assert_eq!(Function::key_in(" #variable_conflict use_variable\n begin return null; end "), None);
        assert_eq!(Function::key_in("\n-- cdc-export 1 [\"id\"]\n"), None);
    }

    #[test]
    fn no_value_goes_through_a_cast() {
        for does in Does::ALL {
            let body = function(does, &["a", "b"]).body();
            let casts = body.replace("::pg_catalog.", "");
            assert!(!casts.contains("::") && !body.contains("to_jsonb"), "{body}");
        }
    }
}
