//! Declares enums whose values are words: the same in SQL, JSON, logs and on the command line.

/// A word that no value of an enum has.
#[derive(Debug, thiserror::Error)]
#[error("`{word}` is not {expected}")]
pub struct UnknownWord {
    word: String,
    expected: String,
}

impl UnknownWord {
    /// Names the word. If `expected` ends with a colon, names all words that are expected instead.
    pub fn new(word: &str, expected: &str, all: &[&str]) -> UnknownWord {
        let list = if expected.ends_with(':') { format!(" {}", all.join(", ")) } else { String::new() };
        UnknownWord { word: word.to_owned(), expected: format!("{expected}{list}") }
    }
}

/// Declares an enum of words that are the same in SQL, JSON and logs, from one table.
///
/// ```
/// pg_rows::words! {
///     /// The size of a shirt.
///     Size, "a size:" {
///         /// For children.
///         Small = "small",
///         /// For adults.
///         Large = "large",
///     }
/// }
///
/// assert_eq!("large".parse::<Size>()?, Size::Large);
/// assert_eq!(Size::Small.meaning(), "For children.");
/// assert_eq!("tiny".parse::<Size>().unwrap_err().to_string(), "`tiny` is not a size: small, large");
/// # Ok::<(), pg_rows::words::UnknownWord>(())
/// ```
#[macro_export]
macro_rules! words {
    (@ $vis:vis, $(#[$meta:meta])* $name:ident, $expected:literal {
        $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            /// All values, in the order of their declaration.
            $vis const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Returns the word, the same in SQL, JSON and logs.
            $vis const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// Returns the value's documentation, which the document of the API repeats.
            $vis const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                <String as serde::Deserialize>::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::words::UnknownWord;

            fn from_str(word: &str) -> Result<Self, $crate::words::UnknownWord> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::words::UnknownWord::new(word, $expected, &[$($word),+])),
                }
            }
        }
    };
    ($(#[$meta:meta])* pub(crate) $($table:tt)+) => { $crate::words! { @ pub(crate), $(#[$meta])* $($table)+ } };
    ($($table:tt)+) => { $crate::words! { @ pub, $($table)+ } };
}
