//! Reads the variables from the environment and from `.env`.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::config::variables::{SECRET_SUFFIXES, Variables, invalid, is_read};
use crate::config::{CatalogFile, Config, Error, output};
use crate::key::PresentedKey;
use crate::postgres::{BadUrl, NamedDatabase};

/// The variables of the process, and those of `.env` that the process lacks.
pub struct Environment(pub(super) Variables);

impl Environment {
    /// Reads the environment of the process, and the `.env` of the current folder.
    ///
    /// # Errors
    /// If `.env` can't be read, or contains names that are not settings.
    pub fn read() -> Result<Environment, Error> {
        let mut variables = match std::fs::read_to_string(".env") {
            Ok(text) => variables_of(&text)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => HashMap::new(),
            Err(error) => return Err(Error::File(error.to_string())),
        };
        let mut wrong: Vec<_> = variables.keys().filter(|name| !is_read(name)).collect();
        wrong.sort_unstable();
        if !wrong.is_empty() {
            let faults: Vec<_> = wrong.iter().map(|name| format!("{name} is no setting")).collect();
            let (faults, ends) = (faults.join("; "), SECRET_SUFFIXES.join(" or "));
            let why = format!("{faults}; .env.example lists them, and what DATASETS names has to end in {ends} here");
            return Err(Error::File(why));
        }
        #[expect(clippy::disallowed_methods, reason = "here and nowhere else")]
        let environment = std::env::vars_os();
        variables
            .extend(environment.map(|(k, v)| (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned())));
        let variables = Variables(variables);
        variables.refuse_quoted()?;
        Ok(Environment(variables))
    }

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
    pub fn place(&self, place: &str) -> Result<cdc_destination::Settings, Error> {
        if place.contains("://") || place.starts_with("file:") {
            return output::at_url(&self.0, "PLACE", place);
        }
        Ok(cdc_destination::Settings::Folder(place.into()))
    }

    pub fn target(&self, url: &str) -> Result<NamedDatabase, BadUrl> {
        NamedDatabase::read(url, |name| self.0.get(name))
    }

    #[cfg(debug_assertions)]
    pub fn failpoints(&self) -> Option<&str> {
        self.0.get("FAILPOINTS")
    }

    /// Reads the API key for a remote service, the only setting of a client.
    pub fn key(&self) -> Result<Option<String>, Error> {
        let Environment(vars) = self;
        // A key that was read from a file ends with a newline.
        let Some(text) = vars.get("CDC_EXPORT_KEY").map(str::trim) else { return Ok(None) };
        let no_key = |why| invalid("CDC_EXPORT_KEY", format!("{why} as `cdc-export keys create` prints it"));
        text.parse::<PresentedKey>().map(|_| Some(text.to_owned())).map_err(no_key)
    }
}

fn variables_of(text: &str) -> Result<HashMap<String, String>, Error> {
    let text = hide_dollars(text);
    let variables = dotenvy::from_read_iter(text.as_bytes()).map(|variable| {
        // dotenvy's error quotes part of the value, which may be a secret.
        let unreadable = |_| Error::File("a line is no NAME=VALUE, or a value needs quotes".to_owned());
        let (name, value) = variable.map_err(unreadable)?;
        Ok((name, value.replace(HIDDEN_DOLLAR, "$")))
    });
    variables.collect()
}

/// Stands for `$` while dotenvy reads a text. Unicode assigns it to no character.
const HIDDEN_DOLLAR: char = '\u{FFFF}';

/// Hides each `$` that no backslash escapes from dotenvy, which would replace it by the value of a variable.
fn hide_dollars(text: &str) -> String {
    let mut is_escaped = false;
    let hide = |c| {
        let hidden = if c == '$' && !is_escaped { HIDDEN_DOLLAR } else { c };
        is_escaped = c == '\\' && !is_escaped;
        hidden
    };
    text.chars().map(hide).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dollar_sign_stands_for_itself() {
        for (text, value) in [
            ("A=pa$HOME", "pa$HOME"),
            ("A='pa$HOME'", "pa$HOME"),
            ("A=\"pa$HOME\"", "pa$HOME"),
            ("A=${HOME}$", "${HOME}$"),
            ("A=\"${HOME} $$\"", "${HOME} $$"),
            ("A=x'$a'$b\"$c\"", "x$a$b$c"),
            // Escaped ones, where a backslash escapes, and where it does not.
            ("A=a\\$HOME", "a$HOME"),
            ("A=\"a\\$HOME\"", "a$HOME"),
            ("A='a\\$HOME'", "a\\$HOME"),
            ("A=a\\\\$HOME", "a\\$HOME"),
            // Quotes of comments and escaped quotes begin nothing.
            ("# it's $1\nA=b$HOME # it's $1\nB='$HOME'", "b$HOME"),
            ("A=\"it\\\"s $HOME\"", "it\"s $HOME"),
            ("A=a#'$HOME'", "a#$HOME"),
            ("A=\"two\n$HOME lines\"", "two\n$HOME lines"),
        ] {
            assert_eq!(variables_of(text).unwrap()["A"], value, "{text}");
        }
    }

    #[test]
    fn an_invalid_line_is_never_quoted() {
        for text in
            ["A_SECRET=whsec_bmV3= whsec_b2xk=\n", "PORT=1\nwhsec_bmV3\n", "whsec bmV3=\n", "A_SECRET='whsec_b2xk="]
        {
            let said = variables_of(text).unwrap_err().to_string();
            assert!(
                said.contains("a line is no NAME=VALUE, or a value needs quotes") && !said.contains("whsec"),
                "{said}"
            );
        }
        let read = variables_of("A_SECRET=\"whsec_bmV3= whsec_b2xk=\"\nPORT=1 # one\n").unwrap();
        assert_eq!((read["A_SECRET"].as_str(), read["PORT"].as_str()), ("whsec_bmV3= whsec_b2xk=", "1"));
    }
}
