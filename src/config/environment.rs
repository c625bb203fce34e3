//! Reads the variables from the environment and from `.env`.

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::variables::{SECRET_SUFFIXES, Variables, invalid, is_read};
use crate::config::{CatalogFile, Config, Error, output};
use crate::key::SecretKeyText;
use crate::postgres::{BadUrl, NamedDatabase};
use crate::sink;

/// The variables of the process, and those of `.env` that the process lacks.
pub struct Environment(pub(super) Variables);

impl Environment {
    /// Reads the environment of the process, and the `.env` of the current folder.
    ///
    /// # Errors
    /// If `.env` can't be read, contains names that are not settings, or may have been written by another user.
    pub fn read() -> Result<Environment, Error> {
        let mut variables: HashMap<String, String> = match open_trusted(Path::new(".env")) {
            Ok(file) => variables_of(&std::io::read_to_string(file).map_err(|why| Error::File(why.to_string()))?)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => HashMap::new(),
            Err(error) => return Err(Error::File(error.to_string())),
        };
        let mut wrong: Vec<_> = variables.keys().filter(|name| !is_read(name)).collect();
        wrong.sort_unstable();
        if !wrong.is_empty() {
            let told: Vec<_> = wrong.iter().map(|name| format!("{name} is no setting")).collect();
            let (told, ends) = (told.join("; "), SECRET_SUFFIXES.join(" or "));
            let why = format!("{told}; .env.example lists them, and what DATASETS names has to end in {ends} here");
            return Err(Error::File(why));
        }
        #[expect(clippy::disallowed_methods, reason = "here and nowhere else")]
        let environment = std::env::vars_os();
        variables
            .extend(environment.map(|(k, v)| (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned())));
        Ok(Environment(Variables(variables)))
    }

    /// Reads the settings of all modules.
    ///
    /// # Errors
    /// If a value is invalid.
    pub fn config(mut self, file: CatalogFile) -> Result<Config, Error> {
        let named = self.0.get("DATASETS").map(PathBuf::from);
        if file != CatalogFile::Read {
            self.0.0.remove("DATASETS");
        }
        let config = Config::from_variables(self.0)?;
        Ok(match file {
            CatalogFile::Named => Config { catalog_file: named, ..config },
            CatalogFile::Read | CatalogFile::Unread => config,
        })
    }

    /// Reads a place of files from an argument: the path of a folder, or a URL as in OUTPUT_URL.
    ///
    /// # Errors
    /// If the URL is invalid, or a variable of its cloud provider is.
    pub fn place(&self, place: &str) -> Result<sink::Settings, Error> {
        output::place(&self.0, place)
    }

    /// Reads a database from an argument.
    ///
    /// # Errors
    /// If the URL is invalid, or sets something that would be ignored.
    pub fn target(&self, url: &str) -> Result<NamedDatabase, BadUrl> {
        NamedDatabase::read(url, |name| self.0.get(name))
    }

    /// Returns the failpoints that a test sets, for a command that reads no other settings.
    #[cfg(debug_assertions)]
    pub fn failpoints(&self) -> Option<&str> {
        self.0.get("FAILPOINTS")
    }

    /// Reads the API key for a remote service, the only setting of a client.
    ///
    /// # Errors
    /// If CDC_EXPORT_KEY is not a key.
    pub fn key(&self) -> Result<Option<SecretKeyText>, Error> {
        let Environment(vars) = self;
        // A key that was read from a file ends with a newline.
        let Some(text) = vars.get("CDC_EXPORT_KEY").map(str::trim) else { return Ok(None) };
        let no_key = |why| invalid("CDC_EXPORT_KEY", format!("{why} as `cdc-export keys create` prints it"));
        text.parse().map(Some).map_err(no_key)
    }
}

/// Opens a file. Refuses it if a user other than root and this one may have written it, because it controls this
/// process.
fn open_trusted(path: &Path) -> std::io::Result<std::fs::File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    let own = rustix::process::geteuid().as_raw();
    let refused = |why: String| Err(std::io::Error::other(why));
    if found.is_dir() {
        return refused("it is a folder".to_owned());
    }
    if found.uid() != own && found.uid() != 0 {
        return refused(format!("it belongs to user {}, who is neither you nor root", found.uid()));
    }
    // A user's own group has no other members, and the usual umask lets that group write.
    let others = if found.gid() == rustix::process::getegid().as_raw() { 0o002 } else { 0o022 };
    if found.mode() & others != 0 && found.is_file() {
        return refused("others may write to it: `chmod go-w .env`".to_owned());
    }
    Ok(file)
}

/// Parses the variables of a text in the format of `.env`.
fn variables_of(text: &str) -> Result<HashMap<String, String>, Error> {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    // The index of the line after the last one that was read.
    let mut next = 0;
    let mut variables = HashMap::new();
    for variable in dotenvy::from_read_iter(text.as_bytes()) {
        // dotenvy's error quotes part of the value, which may be a secret.
        let Ok((name, value)) = variable else { return Err(unreadable(&lines, next)) };
        let read = lines[next..].iter().position(|line| name_in(line) == Some(name.as_str()));
        next += read.map_or(0, |line| line + 1);
        variables.insert(name, value);
    }
    Ok(variables)
}

/// Returns the name of the variable that a line sets. Returns `None` if the line sets none.
fn name_in(line: &str) -> Option<&str> {
    let (name, _) = line.split_once('=')?;
    let name = name.trim().strip_prefix("export ").unwrap_or(name).trim();
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name.then_some(name)
}

/// Returns the error of the first non-empty line from `from` on. It contains the line's number and the variable's name
/// only.
fn unreadable(lines: &[&str], from: usize) -> Error {
    let is_text = |(_, line): &(usize, &&str)| !line.is_empty() && !line.starts_with('#');
    Error::File(match lines.iter().enumerate().skip(from).find(is_text) {
        Some((at, line)) => match name_in(line) {
            Some(name) => format!("line {}: the value of {name} can't be read: does it need quotes?", at + 1),
            None => format!("line {} is no NAME=VALUE", at + 1),
        },
        None => "it can't be read".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_line_is_named_by_its_number_and_never_quoted() {
        for (text, why) in [
            ("A_SECRET=whsec_bmV3= whsec_b2xk=\n", "line 1: the value of A_SECRET can't be read"),
            ("# c\n\nPORT=1\nexport A_SECRET = whsec_bmV3 whsec_b2xk\n", "line 4: the value of A_SECRET can't be read"),
            ("PORT=1\nPORT=2\nwhsec_bmV3\n", "line 3 is no NAME=VALUE"),
            ("whsec bmV3=\n", "line 1 is no NAME=VALUE"),
        ] {
            let said = variables_of(text).unwrap_err().to_string();
            assert!(said.contains(why) && !said.contains("whsec"), "{said}");
        }
        let read = variables_of("A_SECRET=\"whsec_bmV3= whsec_b2xk=\"\nPORT=1 # one\n").unwrap();
        assert_eq!((read["A_SECRET"].as_str(), read["PORT"].as_str()), ("whsec_bmV3= whsec_b2xk=", "1"));
    }
}
