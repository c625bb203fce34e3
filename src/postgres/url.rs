//! Parses `DATABASE_URL` and the environment variables of libpq. Refuses every parameter that would be ignored.
//!
//! sqlx ignores unknown parameters, and treats an invalid `PGSSLMODE` as unset. An operator who sets
//! `channel_binding=require` or `sslmode=verify-fulll` would get a weaker connection without notice.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::{Uid, User};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::postgres::Database;

/// The parameters that sqlx or this module supports. The service sets `application_name` to a name of its own, by which
/// it knows its sessions.
const KNOWN: [&str; 19] = [
    "application_name",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

const NOT_A_TIME: &str = "not a number of seconds from 1 to 600";
const NOT_A_MODE: &str = "not one of disable, allow, prefer, require, verify-ca and verify-full";
const MODES: [&str; 2] = ["sslmode", "ssl-mode"];
/// The names of `sslrootcert`.
const ROOTS: [&str; 3] = ["sslrootcert", "ssl-root-cert", "ssl-ca"];
const ROOTS_NEED: &str = "needs sslmode=verify-full, since the system's authorities are trusted beside it";

/// Parameters with the variable of libpq, and the values that are accepted because they have no effect here. There is
/// no channel binding and no GSSAPI, and TLS begins with 1.2.
const NEUTRAL_PARAMETERS: [(&str, &str, &[&str]); 9] = [
    ("channel_binding", "PGCHANNELBINDING", &["disable", "prefer"]),
    ("gssencmode", "PGGSSENCMODE", &["disable", "prefer"]),
    ("require_auth", "PGREQUIREAUTH", &[]),
    ("requirepeer", "PGREQUIREPEER", &[]),
    ("requiressl", "PGREQUIRESSL", &["0"]),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", &["TLSv1", "TLSv1.1", "TLSv1.2"]),
    ("sslcrl", "PGSSLCRL", &[]),
    ("sslcrldir", "PGSSLCRLDIR", &[]),
    ("target_session_attrs", "PGTARGETSESSIONATTRS", &["any"]),
];

/// The reasons why a URL is refused. The texts contain no value, and no name that may be part of a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// The text is not a URL of Postgres.
    #[error(
        "not a URL of the form postgres://USER:PASSWORD@HOST:PORT/DATABASE; in a user or password, / is written %2F, @ %40, ? %3F and # %23"
    )]
    NotAUrl,
    /// Neither the URL nor `PGUSER` names a user, and this process's user has no name.
    #[error("it names no user: postgres://USER:PASSWORD@HOST:PORT/DATABASE")]
    NoUser,
    /// Everything after a `#` would be ignored.
    #[error("a URL of a database has no `#`: one that belongs to a name or password is written %23")]
    Fragment,
    /// A binding that the driver can't make.
    #[error(
        "the parameter channel_binding can't be `require` here, since the driver has no channel binding: write `prefer`, and sslmode=verify-full to know who answers"
    )]
    ChannelBinding,
    /// The value of `connect_timeout` is no time.
    #[error("the parameter connect_timeout is {NOT_A_TIME}")]
    ConnectTimeout,
    /// A parameter that would be ignored.
    #[error("the parameter {0} is not known here, and none is ignored: take it out of the URL")]
    Unknown(String),
    /// A parameter whose name may be part of a password, so it is not quoted.
    #[error(
        "a parameter is not known here, and none is ignored: a `&` or `?` that belongs to a value is written %26 or %3F"
    )]
    Nameless,
    /// The value of a parameter is invalid.
    #[error("the parameter {0} has a value that can't be read")]
    Value(String),
    /// A value of `sslmode` that does not exist.
    #[error("the parameter {0} is {NOT_A_MODE}")]
    Mode(String),
    /// `sslrootcert` with a mode that doesn't check the host's name.
    #[error("the parameter sslrootcert {ROOTS_NEED}")]
    RootsWithoutName,
    /// `verify-ca` with the system's authorities, which sign certificates for any host.
    #[error(
        "with sslmode=verify-ca, which checks no host's name, SSL_CERT_FILE has to name the file of the only trusted authorities"
    )]
    AuthoritiesOfSystem,
    /// `sslrootcert=system`, where a file is expected.
    #[error("the parameter sslrootcert names a file: without it, sslmode=verify-full asks the platform's authorities")]
    RootsOfSystem,
    /// `hostaddr` with a mode that checks the host's name.
    #[error(
        "the parameter hostaddr takes the place of the host's name, which sslmode=verify-full checks: take one of them out"
    )]
    AddressForName,
    /// A variable of libpq that would be ignored.
    #[error("{why}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// The reason.
        why: &'static str,
    },
}

/// A database that a URL names.
#[derive(Debug)]
pub struct NamedDatabase {
    /// The connection options.
    pub database: Database,
    /// The files that the URL and the variables name, each with its parameter or variable.
    pub files: Vec<(&'static str, PathBuf)>,
}

/// A decoded parameter of the query: its name and value.
type Parameter<'u> = (Cow<'u, str>, Cow<'u, str>);

impl NamedDatabase {
    /// Parses a `postgres://` URL. `variable` reads the variables that libpq would read from the environment.
    ///
    /// # Errors
    /// If the text is not such a URL, or the URL or a variable sets something that would be ignored.
    pub fn read<'v>(url: &str, variable: impl Fn(&str) -> Option<&'v str>) -> Result<NamedDatabase, BadUrl> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(BadUrl::NotAUrl);
        }
        if url.contains('#') {
            return Err(BadUrl::Fragment);
        }
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        // With a password such as 12/ab, the user's name would be parsed as the host and 12 as the port.
        if address.splitn(4, '/').nth(3).is_some_and(|database| database.contains('@')) {
            return Err(BadUrl::NotAUrl);
        }
        let parameters: Vec<Parameter> = form_urlencoded::parse(query.as_bytes()).collect();
        parameters.iter().try_for_each(check_parameter)?;
        for (_, name, harmless) in NEUTRAL_PARAMETERS {
            if variable(name).is_some_and(|value| !harmless.contains(&value)) {
                return Err(BadUrl::Variable { name, why: "not known here, and not ignored: unset it" });
            }
        }
        let last =
            |names: &[&str]| parameters.iter().rfind(|(name, _)| names.contains(&&**name)).map(|(_, value)| &**value);
        let connect_timeout = match (last(&["connect_timeout"]), variable("PGCONNECT_TIMEOUT")) {
            (Some(text), _) => Some(seconds(text).ok_or(BadUrl::ConnectTimeout)?),
            (None, Some(text)) => {
                let bad = BadUrl::Variable { name: "PGCONNECT_TIMEOUT", why: NOT_A_TIME };
                Some(seconds(text).ok_or(bad)?)
            }
            (None, None) => None,
        };
        if variable("PGPORT").is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err(BadUrl::Variable { name: "PGPORT", why: "not a port" });
        }
        // Without a user, libpq uses the system's user. sqlx would use `anonymous`, and that user's password.
        let mut named = Cow::Borrowed(url);
        let is_users_own = !names_user(address, &parameters) && variable("PGUSER").is_none();
        if is_users_own {
            let user = User::from_uid(Uid::effective()).ok().flatten().ok_or(BadUrl::NoUser)?;
            let mut query = form_urlencoded::Serializer::new(query.to_owned());
            named = format!("{address}?{}", query.append_pair("user", &user.name).finish()).into();
        }
        let mut options: PgConnectOptions = named.parse().map_err(|_| unreadable(address, &parameters))?;
        // An IPv6 address has brackets in a URL only.
        if let Some(host) = options.get_host().strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            options = options.clone().host(host);
        }

        if let Some(mode) = variable("PGSSLMODE").filter(|_| last(&MODES).is_none()) {
            let bad = |_| BadUrl::Variable { name: "PGSSLMODE", why: NOT_A_MODE };
            options = options.ssl_mode(mode.parse().map_err(bad)?);
        }
        let mode = options.get_ssl_mode();
        let has_address = last(&["hostaddr"]).is_some() || variable("PGHOSTADDR").is_some();
        if has_address && matches!(mode, PgSslMode::VerifyFull) {
            return Err(BadUrl::AddressForName);
        }
        let checks_name = matches!(mode, PgSslMode::VerifyFull);
        let roots = match (last(&ROOTS), variable("PGSSLROOTCERT")) {
            (Some("system"), _) => return Err(BadUrl::RootsOfSystem),
            (Some(_), _) if !checks_name => return Err(BadUrl::RootsWithoutName),
            (None, Some("system")) => {
                let why = "names a file: without it, sslmode=verify-full asks the platform's authorities";
                return Err(BadUrl::Variable { name: "PGSSLROOTCERT", why });
            }
            // In libpq, the file makes `require` check the certificate.
            (None, Some(_)) if matches!(mode, PgSslMode::Require | PgSslMode::VerifyCa) => {
                return Err(BadUrl::Variable { name: "PGSSLROOTCERT", why: ROOTS_NEED });
            }
            (named, beside) => named.or(beside).filter(|_| checks_name),
        };
        if matches!(mode, PgSslMode::VerifyCa) && variable("SSL_CERT_FILE").is_none() {
            return Err(BadUrl::AuthoritiesOfSystem);
        }
        if let Some(file) = roots {
            options = options.ssl_root_cert(file);
        }
        // With `allow`, sqlx never encrypts. libpq encrypts if the server requires it, as `prefer` does.
        if matches!(mode, PgSslMode::Allow) {
            options = options.ssl_mode(PgSslMode::Prefer);
        }
        let own = [("sslcert", ["sslcert", "ssl-cert"], "PGSSLCERT"), ("sslkey", ["sslkey", "ssl-key"], "PGSSLKEY")];
        let own = own.into_iter().filter_map(|(name, names, beside)| {
            // A key may be given as text instead of a file.
            let file = last(&names).or(variable(beside)).filter(|file| !file.starts_with("-----"));
            file.map(|file| (name, PathBuf::from(file)))
        });
        let files = roots.map(|file| ("sslrootcert", PathBuf::from(file))).into_iter().chain(own).collect();
        let assumed = match (is_users_own, options.get_database()) {
            (true, None) => " (it names no user and no database, so the system's user is taken for both)",
            (true, Some(_)) => " (it names no user, so the system's is taken)",
            (false, None) => " (it names no database, so the user's name is taken for it)",
            (false, Some(_)) => "",
        };
        let database = Database { assumed, ..options.into() };
        let connect_timeout = connect_timeout.unwrap_or(database.connect_timeout);
        Ok(NamedDatabase { database: Database { connect_timeout, ..database }, files })
    }
}

/// Parses a time limit. libpq's 0, which means no limit, is refused: a start would wait for ever.
fn seconds(text: &str) -> Option<Duration> {
    text.parse().ok().filter(|seconds| (1..=600).contains(seconds)).map(Duration::from_secs)
}

fn names_user(address: &str, parameters: &[Parameter]) -> bool {
    let authority = address.split_once("://").map_or(address, |(_, rest)| rest.split('/').next().unwrap_or(rest));
    let in_address = authority.rsplit_once('@').is_some_and(|(user, _)| !user.is_empty() && !user.starts_with(':'));
    in_address || parameters.iter().any(|(name, value)| name == "user" && !value.is_empty())
}

fn check_parameter((name, value): &Parameter) -> Result<(), BadUrl> {
    let (name, value) = (&**name, &**value);
    let is_option = name.strip_prefix("options[").is_some_and(|rest| rest.ends_with(']'));
    let is_neutral = NEUTRAL_PARAMETERS.iter().any(|(own, _, harmless)| *own == name && harmless.contains(&value));
    if KNOWN.contains(&name) || is_option || is_neutral {
        return Ok(());
    }
    if (name, value) == ("channel_binding", "require") {
        return Err(BadUrl::ChannelBinding);
    }
    let name = if name.starts_with("options[") { "options" } else { name };
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    let is_word = is_plain && (1..=40).contains(&name.len());
    Err(if is_word { BadUrl::Unknown(name.to_owned()) } else { BadUrl::Nameless })
}

/// Returns the invalid part of a URL. Tests each parameter in a URL that has no other.
fn unreadable(address: &str, parameters: &[Parameter]) -> BadUrl {
    let is_good = |url: &str| url.parse::<PgConnectOptions>().is_ok();
    let alone = |(name, value): &Parameter| {
        form_urlencoded::Serializer::new(format!("{address}?")).append_pair(name, value).finish()
    };
    let bad = parameters.iter().find(|parameter| !is_good(&alone(parameter)));
    match bad {
        Some((name, _)) if is_good(address) && MODES.contains(&&**name) => BadUrl::Mode(name.clone().into_owned()),
        Some((name, _)) if is_good(address) => BadUrl::Value(name.clone().into_owned()),
        _ => BadUrl::NotAUrl,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_user_the_default_is_pguser_or_the_system_user() {
        let user_of = |url: &str, pguser: Option<&str>| {
            let named = NamedDatabase::read(url, |name| pguser.filter(|_| name == "PGUSER")).unwrap();
            named.database.options().get_username().to_owned()
        };
        let own = User::from_uid(Uid::effective()).unwrap().unwrap().name;
        for url in ["postgres://localhost/shop", "postgres://:secret@localhost/shop", "postgres:///shop?host=/run/a@b"]
        {
            assert_eq!(user_of(url, None), own, "{url}");
        }
        for url in
            ["postgres://shop@localhost/shop", "postgres://shop:a@b@localhost", "postgres://localhost/shop?user=shop"]
        {
            assert_eq!(user_of(url, None), "shop", "{url}");
            assert_eq!(user_of(url, Some("other")), "shop", "{url}");
        }
    }

    #[test]
    fn an_assumed_user_or_database_is_shown() {
        let shown = |url: &str, pguser: Option<&str>| {
            NamedDatabase::read(url, |name| pguser.filter(|_| name == "PGUSER")).unwrap().database.to_string()
        };
        let both = shown("postgres://localhost", None);
        assert!(both.ends_with("(it names no user and no database, so the system's user is taken for both)"), "{both}");
        let user = shown("postgres://localhost/shop", None);
        assert!(user.ends_with("/shop (it names no user, so the system's is taken)"), "{user}");
        let database = shown("postgres://shop@localhost", None);
        assert!(database.ends_with("/shop (it names no database, so the user's name is taken for it)"), "{database}");
        for (url, pguser) in [("postgres://shop@localhost/shop", None), ("postgres://localhost/shop", Some("shop"))] {
            assert!(shown(url, pguser).ends_with("@localhost:5432/shop"), "{url}");
        }
    }

    #[test]
    fn an_unescaped_slash_in_a_password_is_refused_with_a_hint() {
        for url in ["postgres://shop:pa/ss@localhost/shop", "postgres://shop:12/ss@localhost/shop"] {
            let why = NamedDatabase::read(url, |_| None).unwrap_err();
            assert!(why == BadUrl::NotAUrl && why.to_string().contains("%2F"), "{why}");
        }
    }

    #[test]
    fn an_ipv6_address_has_brackets_in_the_url_only() {
        let named = NamedDatabase::read("postgres://shop@[::1]:5432/shop", |_| None).unwrap();
        assert_eq!(named.database.options().get_host(), "::1");
        assert!(named.database.to_string().contains("shop@[::1]:5432/shop"), "{}", named.database);
    }
}
