//! Enums whose values are words: the same in SQL, JSON, logs and on the command line.

/// A word that is none of an enum's.
#[derive(Debug, thiserror::Error)]
#[error("`{word}` is not {expected}")]
pub struct UnknownWord {
    word: String,
    expected: &'static str,
}

impl UnknownWord {
    /// The word, and what was expected in its place.
    pub fn new(word: &str, expected: &'static str) -> UnknownWord {
        UnknownWord { word: word.to_owned(), expected }
    }
}

/// Declares an enum of words that are the same in SQL, JSON and logs, from one table.
#[macro_export]
macro_rules! words {
    (@ $vis:vis, $(#[$meta:meta])* $name:ident, $expected:literal {
        $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            /// Each of them.
            $vis const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word for it, the same in SQL, JSON and logs.
            $vis const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// What it stands for, as the document of the API says.
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
                    _ => Err($crate::words::UnknownWord::new(word, $expected)),
                }
            }
        }
    };
    ($(#[$meta:meta])* pub(crate) $($table:tt)+) => { $crate::words! { @ pub(crate), $(#[$meta])* $($table)+ } };
    ($($table:tt)+) => { $crate::words! { @ pub, $($table)+ } };
}
