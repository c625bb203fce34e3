//! What is found in a place under a name.

/// What there is under a name.
#[derive(Debug)]
pub enum Found<T> {
    /// Nothing.
    Nothing,
    /// A link, a folder or a pipe, which is not followed.
    NoFile,
    /// A file of so many bytes.
    File(u64, T),
}

impl<T> Found<T> {
    /// The same of another type.
    pub(super) fn map<U>(self, file: impl FnOnce(T) -> U) -> Found<U> {
        match self {
            Found::Nothing => Found::Nothing,
            Found::NoFile => Found::NoFile,
            Found::File(bytes, found) => Found::File(bytes, file(found)),
        }
    }
}
