//! Statements that are put together from several pieces of SQL.
//!
//! A line `-- include NAME` of a `.sql` file stands for a piece: CTEs that several statements share, or that depend on
//! the table. A piece begins with a comma and ends without one.

/// Returns `statement` with the text of each piece, a name and its SQL, in place of the line that includes the piece.
///
/// # Panics
/// If the statement has no such line.
pub(super) fn with_pieces(statement: &str, pieces: &[(&str, &str)]) -> String {
    pieces.iter().fold(statement.to_owned(), |text, (name, piece)| {
        let (before, after) = text
            .split_once(&format!("-- include {name}\n"))
            .expect("a statement includes the pieces that it is made of");
        format!("{before}{piece}{after}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_replaces_the_line_that_includes_it() {
        let statement = "with a as (select 1)\n-- include b.sql\nselect from a, b";
        let made = with_pieces(statement, &[("b.sql", ", b as (select 2)\n")]);
        assert_eq!(made, "with a as (select 1)\n, b as (select 2)\nselect from a, b");
    }
}
