//! Parses `DATABASE_URL` and the environment variables of libpq. Refuses every parameter that would be ignored.
//!
//! sqlx ignores unknown parameters, and treats an invalid `PGSSLMODE` as unset. An operator who sets
//! `channel_binding=require` or `sslmode=verify-fulll` would get a weaker connection without notice.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::{Uid, User};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use crate::postgres::Database;

/// The parameters that sqlx or this module supports. The service sets `application_name` to a name of its own, by which
/// it knows its sessions, and `client_encoding` to UTF-8.
const KNOWN: [&str; 20] = [
    "application_name",
    "client_encoding",
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

const SEVERAL_HOSTS: &str = "it names several hosts, and one is taken: the primary, or a proxy that follows it";
const NOT_A_URL: BadUrl = BadUrl::Form(
    "not a URL of the form postgres://USER:PASSWORD@HOST:PORT/DATABASE; in a user or password, / is written %2F, @ %40, ? %3F and # %23",
);
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
    /// A mistake that this sentence explains.
    #[error("{0}")]
    Form(&'static str),
    #[error("the parameter {name} {why}")]
    Parameter { name: String, why: &'static str },
    #[error("the parameter {0} is {NOT_A_MODE}")]
    Mode(String),
    /// A variable of libpq that would be ignored.
    #[error("{why}")]
    Variable { name: &'static str, why: &'static str },
}

#[derive(Debug)]
pub struct NamedDatabase {
    pub database: Database,
    /// The files that the URL and the variables name, each with its parameter or variable.
    pub files: Vec<(&'static str, PathBuf)>,
}

impl NamedDatabase {
    /// Parses a `postgres://` URL. `variable` reads the variables that libpq would read from the environment.
    pub fn read<'v>(url: &str, variable: impl Fn(&str) -> Option<&'v str>) -> Result<NamedDatabase, BadUrl> {
        let Some((scheme @ ("postgres" | "postgresql"), rest)) = url.split_once("://") else {
            return Err(mistaken_scheme(url));
        };
        if url.contains('#') {
            let why = "a URL of a database has no `#`: one that belongs to a name or password is written %23";
            return Err(BadUrl::Form(why));
        }
        let address = url.split('?').next().unwrap_or(url);
        // With a password such as 12/ab, the user's name would be parsed as the host and 12 as the port.
        if address.splitn(4, '/').nth(3).is_some_and(|database| database.contains('@')) {
            return Err(NOT_A_URL);
        }
        let authority = rest.split(['/', '?']).next().unwrap_or(rest);
        check_host(authority.rsplit('@').next().unwrap_or(authority))?;
        // libpq takes an empty host behind a user, if another one is named.
        let localhost = if authority.ends_with('@') { "localhost" } else { "" };
        let parsed = Url::parse(&format!("{scheme}://{authority}{localhost}{}", &rest[authority.len()..]));
        let mut parsed = parsed.map_err(|_| NOT_A_URL)?;
        let parameters: Vec<(String, String)> = parsed.query_pairs().into_owned().collect();
        parameters.iter().try_for_each(|(name, value)| check_parameter(name, value))?;
        for (_, name, harmless) in NEUTRAL_PARAMETERS {
            if variable(name).is_some_and(|value| !harmless.contains(&value)) {
                return Err(BadUrl::Variable { name, why: "not known here, and not ignored: unset it" });
            }
        }
        let last_of =
            |names: &[&str]| parameters.iter().rfind(|(name, _)| names.contains(&&**name)).map(|(_, value)| &**value);
        if !localhost.is_empty() && last_of(&["host", "hostaddr"]).is_none() {
            let host = variable("PGHOST").ok_or(BadUrl::Form("it names no host, behind the `@` or as `host=`"))?;
            parsed.query_pairs_mut().append_pair("host", host);
        }
        let bad_timeout = BadUrl::Form("the parameter connect_timeout is not a number of seconds from 1 to 600");
        let of_variable = BadUrl::Variable { name: "PGCONNECT_TIMEOUT", why: NOT_A_TIME };
        let connect_timeout = match (last_of(&["connect_timeout"]), variable("PGCONNECT_TIMEOUT")) {
            (Some(text), _) => Some(seconds(text).ok_or(bad_timeout)?),
            (None, text) => text.map(|text| seconds(text).ok_or(of_variable)).transpose()?,
        };
        if variable("PGPORT").is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err(BadUrl::Variable { name: "PGPORT", why: "not a port" });
        }
        // Without a user, libpq uses the system's user. sqlx would use `anonymous`, and that user's password.
        let names_user = !parsed.username().is_empty() || last_of(&["user"]).is_some_and(|user| !user.is_empty());
        let is_users_own = !names_user && variable("PGUSER").is_none();
        if is_users_own {
            let no_user = BadUrl::Form("it names no user: postgres://USER:PASSWORD@HOST:PORT/DATABASE");
            let user = User::from_uid(Uid::effective()).ok().flatten().ok_or(no_user)?;
            parsed.query_pairs_mut().append_pair("user", &user.name);
        }
        let mut options = PgConnectOptions::from_url(&parsed).map_err(|_| NOT_A_URL)?;
        // An IPv6 address has brackets in a URL only.
        if let Some(host) = options.get_host().strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            options = options.clone().host(host);
        }

        if let Some(mode) = variable("PGSSLMODE").filter(|_| last_of(&MODES).is_none()) {
            let bad_mode = |_| BadUrl::Variable { name: "PGSSLMODE", why: NOT_A_MODE };
            options = options.ssl_mode(mode.parse().map_err(bad_mode)?);
        }
        let mode = options.get_ssl_mode();
        let checks_name = matches!(mode, PgSslMode::VerifyFull);
        let has_address = last_of(&["hostaddr"]).is_some() || variable("PGHOSTADDR").is_some();
        if has_address && checks_name {
            return Err(BadUrl::Form(
                "the parameter hostaddr takes the place of the host's name, which sslmode=verify-full checks: take one of them out",
            ));
        }
        let named = last_of(&ROOTS);
        let bad_roots = |why| match named {
            Some(_) => BadUrl::Parameter { name: "sslrootcert".to_owned(), why },
            None => BadUrl::Variable { name: "PGSSLROOTCERT", why },
        };
        // In libpq, the file of the variable makes `require` check the certificate.
        let roots_need_full = named.is_some() || matches!(mode, PgSslMode::Require | PgSslMode::VerifyCa);
        let roots = match named.or(variable("PGSSLROOTCERT")) {
            Some("system") => {
                return Err(bad_roots("names a file: without it, sslmode=verify-full asks the platform's authorities"));
            }
            Some(_) if roots_need_full && !checks_name => return Err(bad_roots(ROOTS_NEED)),
            file => file.filter(|_| checks_name),
        };
        if matches!(mode, PgSslMode::VerifyCa) && variable("SSL_CERT_FILE").is_none() {
            return Err(BadUrl::Form(
                "with sslmode=verify-ca, which checks no host's name, SSL_CERT_FILE has to name the file of the only trusted authorities",
            ));
        }
        if let Some(file) = roots {
            options = options.ssl_root_cert(file);
        }
        // With `allow`, sqlx never encrypts. libpq encrypts if the server requires it, as `prefer` does.
        if matches!(mode, PgSslMode::Allow) {
            options = options.ssl_mode(PgSslMode::Prefer);
        }
        let client_files =
            [("sslcert", ["sslcert", "ssl-cert"], "PGSSLCERT"), ("sslkey", ["sslkey", "ssl-key"], "PGSSLKEY")];
        let client_files = client_files.into_iter().filter_map(|(name, spellings, variable_name)| {
            // A key may be given as text instead of a file.
            let file = last_of(&spellings).or(variable(variable_name)).filter(|file| !file.starts_with("-----"));
            file.map(|file| (name, PathBuf::from(file)))
        });
        let files = roots.map(|file| ("sslrootcert", PathBuf::from(file))).into_iter().chain(client_files).collect();
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

/// Returns the error of a text that doesn't begin as a URL of Postgres.
fn mistaken_scheme(url: &str) -> BadUrl {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    match (url.chars().next(), scheme) {
        (Some('"' | '\''), _) => BadUrl::Form("it has quotes around it: take them off"),
        (Some('\u{feff}' | ' '), _) => BadUrl::Form("it begins with a blank or a byte order mark: take that off"),
        (_, Some(scheme)) if scheme.starts_with("jdbc:") || scheme.contains('+') => {
            BadUrl::Form("its scheme names a driver: write postgres://USER:PASSWORD@HOST:PORT/DATABASE")
        }
        (_, None) if url.contains('=') => {
            BadUrl::Form("it is a list of key=value: write postgres://USER:PASSWORD@HOST:PORT/DATABASE?KEY=VALUE")
        }
        (_, _) => NOT_A_URL,
    }
}

fn check_host(host: &str) -> Result<(), BadUrl> {
    let port = host.rsplit(']').next().and_then(|rest| rest.split_once(':')).map_or("", |(_, port)| port);
    if host.contains(',') {
        return Err(BadUrl::Form(SEVERAL_HOSTS));
    }
    if !host.starts_with('[') && port.contains(':') {
        return Err(BadUrl::Form("an IPv6 address in a URL has brackets, as [::1]"));
    }
    if port.is_empty() || port.parse::<u16>().is_ok() {
        return Ok(());
    }
    Err(BadUrl::Form(
        "the port behind the host is no number up to 65535; in a user or password, / is written %2F, @ %40, ? %3F and # %23",
    ))
}

fn check_parameter(name: &str, value: &str) -> Result<(), BadUrl> {
    let is_bad = match name {
        "host" if value.contains(',') && !value.starts_with('/') => return Err(BadUrl::Form(SEVERAL_HOSTS)),
        _ if MODES.contains(&name) && value.parse::<PgSslMode>().is_err() => return Err(BadUrl::Mode(name.to_owned())),
        "port" => value.parse::<u16>().is_err(),
        "hostaddr" => value.parse::<IpAddr>().is_err(),
        "statement-cache-capacity" => value.parse::<usize>().is_err(),
        _ => false,
    };
    if is_bad {
        return Err(BadUrl::Parameter { name: name.to_owned(), why: "has a value that can't be read" });
    }
    let is_option = name.strip_prefix("options[").is_some_and(|rest| rest.ends_with(']'));
    let is_neutral = NEUTRAL_PARAMETERS.iter().any(|(own, _, harmless)| *own == name && harmless.contains(&value));
    if KNOWN.contains(&name) || is_option || is_neutral {
        return Ok(());
    }
    if (name, value) == ("channel_binding", "require") {
        return Err(BadUrl::Form(
            "the parameter channel_binding can't be `require` here, since the driver has no channel binding: write `prefer`, \
             and sslmode=verify-full to know who answers",
        ));
    }
    let name = if name.starts_with("options[") { "options" } else { name };
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    let is_word = is_plain && (1..=40).contains(&name.len());
    if is_word {
        let why = "is not known here, and none is ignored: take it out of the URL";
        return Err(BadUrl::Parameter { name: name.to_owned(), why });
    }
    // The name may be part of a password, so it is not quoted.
    Err(BadUrl::Form(
        "a parameter is not known here, and none is ignored: a `&` or `?` that belongs to a value is written %26 or %3F",
    ))
}
