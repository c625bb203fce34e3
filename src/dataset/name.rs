//! Names of datasets, and what to say of a name that there isn't.

/// Whether a dataset may be called so: 1 to 63 characters of `a-z 0-9 _ -`, beginning with a letter.
pub fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.len() <= 63 && text.chars().all(allowed)
}

/// The end of a message that there is no such name: which one somebody may have meant.
pub fn hint<'n>(name: &str, among: impl IntoIterator<Item = &'n str>) -> String {
    hint_in_full(name, among.into_iter().map(|other| (other, other)))
}

/// As [`hint`], of names that are each told in another way than they are compared.
pub fn hint_in_full<'n>(name: &str, among: impl IntoIterator<Item = (&'n str, &'n str)>) -> String {
    // Of a caller's megabyte the beginning is enough: to compare it all would take long.
    let name: String = name.chars().take(256).collect();
    let score = |other: &str| strsim::jaro_winkler(&name.to_lowercase(), &other.to_lowercase());
    let scored = among.into_iter().map(|(other, told)| (score(other), told));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b)).filter(|(score, _)| *score > 0.8);
    best.map(|(_, told)| format!("; is it `{told}`?")).unwrap_or_default()
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
