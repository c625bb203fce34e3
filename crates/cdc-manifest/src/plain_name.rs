//! The name of a file that another program chose, before it becomes part of a path.

use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name that file systems accept.
const MAX_BYTES: usize = 255;

/// The names of devices on Windows, with any extension. A folder may be on a disk that Windows also uses.
const DEVICES: [&str; 6] = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"];

/// A visible name of one file: no folder, no link to a parent, nothing that a system or a shell treats specially.
///
/// Only this type is joined to the folder into which files are copied, so a foreign name can't lead elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PlainName(String);

#[derive(Debug, thiserror::Error)]
#[error("`{}` is no name of a file", .0.escape_debug())]
pub struct NotPlain(String);

impl FromStr for PlainName {
    type Err = NotPlain;

    fn from_str(name: &str) -> Result<PlainName, NotPlain> {
        let is_plain = |byte: u8| (byte.is_ascii_graphic() || byte == b' ') && !b"/\\\"*:<>?|".contains(&byte);
        let is_edge = |c: char| c == ' ' || c == '.';
        let is_valid = !name.is_empty()
            && name.len() <= MAX_BYTES
            && name.bytes().all(is_plain)
            && !name.starts_with(is_edge)
            && !name.ends_with(is_edge)
            && !is_device(name);
        // The error shows the beginning only, because a service may send megabytes.
        if is_valid { Ok(PlainName(name.to_owned())) } else { Err(NotPlain(name.chars().take(MAX_BYTES).collect())) }
    }
}

/// Returns true if Windows reads the name as that of a device.
fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let is_port = ["COM", "LPT"].iter().any(|port| {
        stem.strip_prefix(port).is_some_and(|number| number.len() == 1 && number.as_bytes()[0].is_ascii_digit())
    });
    is_port || DEVICES.contains(&&*stem)
}

impl PlainName {
    pub fn within(&self, folder: &Path) -> PathBuf {
        folder.join(&self.0)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PlainName {
    type Error = NotPlain;

    fn try_from(name: String) -> Result<PlainName, NotPlain> {
        name.parse()
    }
}

impl From<PlainName> for String {
    fn from(name: PlainName) -> String {
        name.0
    }
}

impl Display for PlainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_name_is_one_visible_name() {
        for good in [
            "full_a_20260226T043000Z.csv",
            "delta_orders_a.b_20260226T043000Z-2.part-00001.csv.gz",
            "a b",
            "console.csv",
            "com10.csv",
            &"a".repeat(255),
        ] {
            let name: PlainName = good.parse().unwrap();
            assert_eq!(name.within(Path::new("/inbox")), Path::new("/inbox").join(good));
        }
        for bad in [
            "",
            ".",
            "..",
            "../a.csv",
            "a/b.csv",
            "a\\b.csv",
            ".profile.csv",
            " a.csv",
            "a.csv ",
            "a.csv.",
            "a\0.csv",
            "a\n.csv",
            "a\u{7f}.csv",
            "a\u{202e}.csv",
            "\u{e9}.csv",
            "c:a.csv",
            "a|b",
            "a\"b",
            "CON",
            "nul.csv",
            "aux .csv",
            "com1.csv.gz",
            "LPT9",
            "conin$",
            &"a".repeat(256),
        ] {
            assert!(bad.parse::<PlainName>().is_err(), "{bad:?}");
        }
        let shown = "\u{1b}".repeat(1 << 20).parse::<PlainName>().unwrap_err().to_string();
        assert!(shown.len() < 3000 && !shown.contains('\u{1b}'), "{}", shown.len());
    }
}
