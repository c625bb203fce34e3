//! Puts a statement together from several pieces of SQL.
//!
//! A line `-- include NAME` of a `.sql` file stands for a piece: SQL that several statements share, or that depends on
//! the table. A name that ends in `.sql` is a file's, below the folder of the statement's top-level module; the code
//! makes the other pieces.

/// Returns `statement` with the text of each piece, a name and its SQL, in place of the lines that include the piece.
/// Below the first line, which has the name, comments are left out: a server may log each statement.
///
/// # Panics
/// If no line includes one of the pieces, or if a line includes another one.
pub fn with_pieces(statement: &str, pieces: &[(&str, &str)]) -> String {
    let whole = pieces.iter().fold(statement.to_owned(), |text, (name, piece)| {
        let include = format!("-- include {name}");
        let lines: Vec<_> =
            text.lines().map(|line| if line.trim() == include { piece.trim_end() } else { line }).collect();
        let with_piece = lines.join("\n");
        assert!(with_piece != text.trim_end(), "no line of the statement includes the piece {name}");
        with_piece
    });
    let missing = whole.lines().find(|line| line.trim().starts_with("-- include "));
    assert_eq!(missing, None, "the statement includes a piece that is missing");
    let lines = whole.lines().enumerate().filter(|(at, line)| *at == 0 || !line.trim_start().starts_with("--"));
    lines.map(|(_, line)| line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_replaces_each_line_that_includes_it() {
        let statement = "select\n  -- a comment\n  -- include a.sql\nfrom t where (\n  -- include a.sql\n) > 0";
        let made = with_pieces(statement, &[("a.sql", "a + b\n")]);
        assert_eq!(made, "select\na + b\nfrom t where (\na + b\n) > 0");
    }

    #[test]
    #[should_panic = "a piece that is missing"]
    fn a_piece_that_is_missing_is_a_mistake() {
        with_pieces("select\n  -- include a.sql", &[]);
    }

    #[test]
    #[should_panic = "no line of the statement includes the piece b.sql"]
    fn a_piece_that_no_line_includes_is_a_mistake() {
        with_pieces("select 1 -- include b.sql", &[("b.sql", "2")]);
    }
}
