//! The name of a dataset, which stands in manifests and in the keys of a bucket.

/// Returns true if a text is a valid name of a dataset: 1 to 63 characters of `a-z 0-9 _ -`, beginning with a letter.
pub fn is_dataset_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.len() <= 63 && text.chars().all(allowed)
}
