//! The result of looking up a name.

/// The thing that has a name in a folder or bucket.
#[derive(Debug)]
pub enum Lookup<T> {
    Nothing,
    /// A link, a folder or a pipe has the name. None of these is followed or read.
    NoFile,
    /// A file has the name: its size in bytes, and the file.
    File(u64, T),
}

impl<T> Lookup<T> {
    pub(super) fn map<U>(self, convert: impl FnOnce(T) -> U) -> Lookup<U> {
        match self {
            Lookup::Nothing => Lookup::Nothing,
            Lookup::NoFile => Lookup::NoFile,
            Lookup::File(bytes, file) => Lookup::File(bytes, convert(file)),
        }
    }
}
