//! Enums whose values are words: the same in SQL, JSON, logs and on the command line.

/// A word that stands for none of the values it was read as.
#[derive(Debug, thiserror::Error)]
#[error("`{word}` is not {expected}")]
pub struct UnknownWord {
    word: String,
    expected: &'static str,
}

impl UnknownWord {
    /// The word, and what was expected in its place.
    pub(crate) fn new(word: &str, expected: &'static str) -> UnknownWord {
        UnknownWord { word: word.to_owned(), expected }
    }
}

/// An enum of words that are the same in SQL, JSON and logs, from one table.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $expected:literal { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Each of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word for it, the same in SQL, JSON and logs.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::job::words::UnknownWord;

            fn from_str(word: &str) -> Result<Self, $crate::job::words::UnknownWord> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::job::words::UnknownWord::new(word, $expected)),
                }
            }
        }
    };
}
pub(crate) use words;
