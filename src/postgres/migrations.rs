//! The migrations, embedded into the binary.

use sqlx::migrate::Migrator;

pub(super) static MIGRATIONS: Migrator = sqlx_macros::migrate!("./migrations");

/// Returns the statement by which a migration creates a function. `begins` is the beginning of the function's name and
/// arguments.
pub(super) fn function(begins: &str) -> String {
    let make = format!("create function {begins}");
    let texts = MIGRATIONS.iter().map(|migration| migration.sql.as_str());
    let of = |text: &str| Some(text[text.find(&make)?..].split_inclusive("$$;\n").next()?.to_owned());
    texts.filter_map(of).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_function_of_the_preview_is_one_complete_statement() {
        for name in ["table_of_role", "type_of_role", "primary_key"] {
            let text = function(&format!("cdc_export.{name}("));
            assert!(text.matches("create function").count() == 1 && text.ends_with("$$;\n"), "{text}");
        }
    }
}
