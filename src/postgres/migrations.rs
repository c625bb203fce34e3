//! The migrations, as they are in the binary.

use sqlx::migrate::Migrator;

/// The condition under which the first migration makes no `users`.
pub(super) const USERS_ARE_THERE: &str = "if to_regclass('users') is not null then";

pub(super) static MIGRATIONS: Migrator = sqlx_macros::migrate!("./migrations");

/// The text of a function as a migration makes it, by the beginning of its name and arguments.
pub(super) fn function(begins: &str) -> String {
    let make = format!("create function {begins}");
    let texts = MIGRATIONS.iter().map(|migration| migration.sql.as_str());
    let of = |text: &str| Some(text[text.find(&make)?..].split_inclusive("end $$;\n").next()?.to_owned());
    texts.filter_map(of).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_functions_of_a_preview_are_whole() {
        for name in ["table_of_role", "type_of_role"] {
            let text = function(&format!("cdc_export.{name}("));
            assert!(text.matches("create function").count() == 1 && text.ends_with("end $$;\n"), "{text}");
        }
    }

    #[test]
    fn one_migration_makes_users_and_only_under_its_condition() {
        let conditional: Vec<_> = MIGRATIONS.iter().filter(|it| it.sql.as_str().contains(USERS_ARE_THERE)).collect();
        assert_eq!(conditional.len(), 1);
        let made: Vec<_> = MIGRATIONS.iter().filter(|it| it.sql.as_str().contains("create table users")).collect();
        assert_eq!((made.len(), made[0].version), (1, conditional[0].version));
    }
}
