//! Suggestions for names that don't exist, and names of datasets that are made of names of tables.

use deunicode::deunicode;

/// Converts the name of a table or schema to the characters of a dataset's name: letters of any script to small Latin
/// ones, and all else but digits and `-` to `_`. The result may begin with another character than a letter.
pub fn derived(text: &str) -> String {
    let allowed = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' { c } else { '_' };
    deunicode(text).trim().to_lowercase().chars().map(allowed).collect()
}

/// The end of a message that a name doesn't exist: it suggests the most similar one, if one is similar.
pub fn hint<'n>(name: &str, among: impl IntoIterator<Item = &'n str>) -> String {
    hint_in_full(name, among.into_iter().map(|other| (other, other)))
}

/// As [`hint`], for pairs: the name that is compared, and the text that is shown for it.
pub fn hint_in_full<'n>(name: &str, among: impl IntoIterator<Item = (&'n str, &'n str)>) -> String {
    // Only the beginning is compared: a caller may send a megabyte.
    let name: String = name.chars().take(256).collect();
    let score = |other: &str| strsim::jaro_winkler(&name.to_lowercase(), &other.to_lowercase());
    let scored = among.into_iter().map(|(other, shown)| (score(other), shown));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b)).filter(|(score, _)| *score > 0.8);
    best.map(|(_, shown)| format!("; is it `{shown}`?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(hint("totl", ["id", "total", "tax"]), "; is it `total`?");
        assert_eq!(hint("ID", ["id", "total"]), "; is it `id`?");
        assert_eq!(hint("weight", ["id", "total"]), "");
        assert_eq!(
            hint_in_full("order", [("orders", "sales.orders"), ("tax", "sales.tax")]),
            "; is it `sales.orders`?"
        );
    }
}
