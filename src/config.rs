//! Settings of all modules, read once from the environment into a struct for each. No other module reads the
//! environment.
//!
//! Every variable is in `.env.example`. A value that can't be used stops the start with one line that names the
//! variable.

mod authorities;
mod environment;
pub mod operator;
mod output;
mod telemetry;
mod variables;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use authorities::trust_alone;
pub use environment::Environment;
pub use variables::Misspelt;

use private_postgres::mirror::{Checksum, Mirror, NotAMirror};

use crate::config::variables::{Variables, bad};
use crate::dataset::CellMax;
use crate::dataset::catalog::Catalog;
use crate::dataset::fault::Mistakes;
use crate::http::{self, Access, LocalHosts, Origins};
use crate::job::Terms;
use crate::postgres::{BadUrl, Database, NamedDatabase};
use crate::receiver::{MissingSecret, Receivers};
use crate::service::Downloads;
use crate::source::purge;
use crate::telemetry::spans;
use crate::{maintenance, postgres, sink, worker};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A setting that can't be used, as one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A variable's value.
    #[error("{name}: {why}")]
    Value {
        /// The variable.
        name: &'static str,
        /// The mistake, and the values that are allowed.
        why: String,
    },
    /// A catalog that can't be read, or that doesn't fit its tables: a line for each mistake.
    #[error("{}", a_line_each(.file, .mistakes))]
    Catalog {
        /// The catalog's file.
        file: String,
        /// Everything that is wrong with the catalog.
        mistakes: Mistakes,
    },
    /// The file `.env`. Its lines are not quoted: they may hold passwords.
    #[error(".env: {0}")]
    File(String),
}

/// All settings, for `main` to hand out.
#[derive(Debug)]
pub struct Config {
    /// The database to use; `None`: a private one.
    pub database: Option<Database>,
    /// The file of the only certificate authorities that the database's server may be signed by. `None`: no file is
    /// named.
    pub authorities: Option<PathBuf>,
    /// The private server.
    pub embedded: private_postgres::Settings,
    /// The datasets, and the other blocks of the operator's file.
    pub catalog: Arc<Catalog>,
    /// The receivers of events, with their secrets.
    pub receivers: Arc<Receivers>,
    /// The secrets of receivers that are unset or wrong.
    pub missing_secrets: Vec<MissingSecret>,
    /// The operator's file. `None`: the catalog is the demo's.
    pub catalog_file: Option<PathBuf>,
    /// The destination of files.
    pub output: sink::Settings,
    /// How many users an empty demo table is filled with.
    pub seed_rows: u64,
    /// The API.
    pub http: http::Settings,
    /// How many connections to Postgres the API has.
    pub api_connections: u32,
    /// The port on which a process without the API serves its metrics; `None`: none.
    pub metrics_port: Option<u16>,
    /// The time for which running exports may go on after a signal to stop.
    pub drain: Duration,
    /// The workers, which run exports.
    pub worker: worker::Settings,
    /// The periodic tasks of any process that runs exports.
    pub maintenance: maintenance::Settings,
    /// How many connections read a large table for a full export.
    pub readers: u32,
    /// The limits under which a job is accepted.
    pub terms: Terms,
    /// The way in which clients fetch files from a bucket.
    pub downloads: Downloads,
    /// The logs.
    pub telemetry: crate::telemetry::Settings,
    /// The collector of spans. `None`: no spans are made.
    pub spans: Option<spans::Settings>,
    /// Faults for tests.
    #[cfg(debug_assertions)]
    pub failpoints: Option<String>,
}

impl Error {
    /// `HOST` is an address that this machine doesn't have.
    pub fn no_such_host(host: IpAddr) -> Error {
        bad(
            "HOST",
            format!(
                "{host} is no address of this machine: 127.0.0.1 is open to this machine alone, 0.0.0.0 to all networks"
            ),
        )
    }

    /// The collector of spans can't be used.
    #[cfg(feature = "otel")]
    pub fn collector(why: String) -> Error {
        bad("OTEL_EXPORTER_OTLP_ENDPOINT", why)
    }

    /// The destination of the files can't be used.
    pub fn output(output: &sink::Settings, why: &str) -> Error {
        let name = match output {
            sink::Settings::Folder { .. } => "OUTPUT_DIR",
            #[cfg(feature = "buckets")]
            sink::Settings::Bucket(_) => "OUTPUT_URL",
        };
        bad(name, format!("{output}: {why}"))
    }

    /// The API is open to other machines, and there is no key: nobody could call it.
    pub fn no_keys(host: IpAddr) -> Error {
        bad(
            "AUTH",
            format!(
                "unset, and HOST is {host}: `cdc-export keys create --name NAME` makes a first key, with which the service starts; \
                 AUTH=none opens it to everybody there"
            ),
        )
    }
}

/// The use that a command makes of the file of `DATASETS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatalogFile {
    /// The file is read, and has to be right.
    Read,
    /// The file isn't read: it may be wrong or missing.
    Unread,
    /// The command reads the file by itself: the file may not exist yet.
    Named,
}

impl Config {
    fn from_variables(vars: Variables) -> Result<Config, Error> {
        let named =
            match vars.get("DATABASE_URL").map(|url| NamedDatabase::read(url, |name| vars.get(name))).transpose() {
                Ok(named) => named,
                Err(BadUrl::Variable { name, why }) => return Err(bad(name, why)),
                Err(why) => return Err(bad("DATABASE_URL", why.to_string())),
            };
        for (name, file) in named.iter().flat_map(|named| &named.files) {
            // sqlx's own error would name neither.
            std::fs::File::open(file)
                .map_err(|why| bad("DATABASE_URL", format!("{name}: {}: {why}", file.display())))?;
        }
        let (database, authorities) = named.map(|named| (named.database, named.authorities)).unzip();
        let data_dir = vars.get("DATA_DIR").map(PathBuf::from);
        let catalog_file = vars.get("DATASETS").map(PathBuf::from);
        let lease = Duration::from_secs(vars.number("LEASE_SECONDS", 30, 1..=3600)?);
        let host: IpAddr = match vars.get("HOST") {
            Some("localhost") => IpAddr::from([127, 0, 0, 1]),
            _ => vars.parsed(
                "HOST",
                IpAddr::from([127, 0, 0, 1]),
                "an IP address to listen on, such as 127.0.0.1 or 0.0.0.0, nor localhost",
            )?,
        };
        let access = match vars.get("AUTH") {
            None if host.is_loopback() => Some(Access::LocalCallers),
            // The start asks the database whether there are keys.
            None => None,
            Some("none") => Some(Access::Everybody),
            Some("keys") => Some(Access::Keys),
            Some("local") => Some(Access::LocalCallers),
            Some(other) => return Err(bad("AUTH", format!("`{other}` is none of keys, local and none"))),
        };
        let rate = |text: &str| text.parse().map_err(|why: &str| format!("`{text}` is {why}"));
        let output = output::read(&vars)?;
        let publisher = output::publisher(&vars, &output)?;
        let (catalog, mut receivers) = match &catalog_file {
            None => (Catalog::default(), Receivers::default()),
            Some(file) => operator::read(file)?,
        };
        let missing_secrets = operator::read_secrets(&vars, &mut receivers);
        Ok(Config {
            embedded: private_postgres::Settings {
                data_dir_is_default: data_dir.is_none(),
                data_dir: data_dir.unwrap_or_else(|| "./data".into()),
                bin_dir: vars.get("PG_BIN_DIR").map(PathBuf::from),
                ignores_installed: false,
                download: mirror(&vars)?,
                fetch: postgres::download::fetch,
                search_path: vars.get("PATH").map(|path| std::env::split_paths(path).collect()).unwrap_or_default(),
                runtime_dir: vars.get("XDG_RUNTIME_DIR").map(PathBuf::from),
            },
            catalog: Arc::new(catalog),
            receivers: Arc::new(receivers),
            missing_secrets,
            catalog_file,
            output,
            // A database that the operator names gets demo rows only when asked for.
            seed_rows: vars.number("SEED_ROWS", if database.is_some() { 0 } else { 100_000 }, 0..=100_000_000)?,
            database,
            authorities: authorities.flatten(),
            http: http::Settings {
                host,
                port: vars.number("PORT", 8080, 0..=65535)? as u16,
                access,
                local_hosts: vars.optional("LOCAL_HOSTS", str::parse::<LocalHosts>)?.unwrap_or_default(),
                rate: vars.optional("RATE_LIMIT", rate)?,
                origins: vars.optional("CORS_ORIGINS", str::parse::<Origins>)?.unwrap_or_default(),
            },
            metrics_port: vars.optional_number("METRICS_PORT", 0..=65535)?.map(|port| port as u16),
            api_connections: vars.number("API_CONNECTIONS", 10, 1..=1000)? as u32,
            drain: Duration::from_secs(vars.number("DRAIN_SECONDS", 0, 0..=86_400)?),
            worker: worker::Settings {
                publisher: publisher.clone(),
                workers: vars.number("WORKERS", 2, 1..=64)? as u32,
                lease,
                cell_max: CellMax(vars.bytes("CELL_MAX_BYTES", 64 << 20, 1 << 10..=1 << 30)?),
                compression_level: vars.optional_number("COMPRESSION_LEVEL", 1..=19)?.map(|level| level as u8),
            },
            maintenance: maintenance::Settings {
                publisher,
                lease,
                retain_files: vars.retention("RETAIN_FILES")?,
                retain_jobs: vars.retention("RETAIN_JOBS")?,
                retain_unacked: vars.age("RETAIN_UNACKED", 30 * DAY)?,
                log_caps: purge::Caps {
                    rows: vars.number("CHANGE_LOG_MAX_ROWS", 10_000_000, 1..=1_000_000_000_000)?,
                    age: vars.age("CHANGE_LOG_MAX_AGE", 7 * DAY)?,
                },
            },
            readers: vars.number("READERS", cores().min(2), 1..=16)? as u32,
            terms: Terms {
                max_attempts: vars.number("MAX_ATTEMPTS", 5, 1..=100)? as u32,
                max_open: vars.number("MAX_OPEN_JOBS", 10_000, 1..=1_000_000)? as u32,
            },
            downloads: output::downloads(&vars)?,
            telemetry: telemetry::logs(&vars)?,
            spans: telemetry::spans(&vars)?,
            #[cfg(debug_assertions)]
            failpoints: vars.get("FAILPOINTS").map(str::to_owned),
        })
    }
}

/// Reads where the private server's programs are downloaded. `None`: nowhere.
fn mirror(vars: &Variables) -> Result<Option<Mirror>, Error> {
    let checksum = |text: &str| text.parse::<Checksum>().map_err(|why| format!("`{text}` is {why}"));
    let checksum = vars.optional("PG_DOWNLOAD_SHA256", checksum)?;
    let mirror = match vars.get("PG_DOWNLOAD") {
        None => Mirror::default(),
        Some("off") => return Ok(None),
        // The message doesn't quote the value, which may hold a password.
        Some(url) => url
            .parse()
            .map_err(|why: NotAMirror| bad("PG_DOWNLOAD", format!("neither off nor the address of a mirror: {why}")))?,
    };
    Ok(Some(match checksum {
        None => mirror,
        Some(checksum) => mirror.with_checksum(checksum),
    }))
}

/// The mistakes of a catalog, a line for each, with the name of its file.
fn a_line_each(file: &str, mistakes: &Mistakes) -> String {
    let lines: Vec<_> = mistakes.to_string().lines().map(|mistake| format!("DATASETS: {file}: {mistake}")).collect();
    lines.join("\n")
}

/// How many cores this process may use.
fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::job::Retention;
    use crate::key::PresentedKey;

    fn read(variables: &[(&str, &str)]) -> Result<Config, String> {
        let variables = variables.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Config::from_variables(Variables(variables)).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults() {
        let config = read(&[("DATABASE_URL", "")]).unwrap();
        assert!(config.database.is_none() && config.embedded.data_dir_is_default);
        assert_eq!((config.seed_rows, config.http.port, config.worker.workers), (100_000, 8080, 2));
        assert_eq!((config.http.access, config.http.rate), (Some(Access::LocalCallers), None));
        assert_eq!(read(&[("RATE_LIMIT", "600/min")]).unwrap().http.rate, Some("600/min".parse().unwrap()));
        assert_eq!(config.maintenance.retain_files, Retention::default());
        assert_eq!(config.worker.cell_max.0, 64 << 20);
        for (text, bytes) in
            [("1024", 1024), ("2048B", 2048), ("64 KiB", 64 << 10), ("3MiB", 3 << 20), ("1GiB", 1 << 30)]
        {
            assert_eq!(read(&[("CELL_MAX_BYTES", text)]).unwrap().worker.cell_max.0, bytes, "{text}");
        }
        assert_eq!(config.worker.compression_level, None);
        assert_eq!(read(&[("COMPRESSION_LEVEL", "19")]).unwrap().worker.compression_level, Some(19));
        assert_eq!(config.maintenance.retain_unacked, 30 * DAY);
        assert_eq!(read(&[("RETAIN_UNACKED", "12h")]).unwrap().maintenance.retain_unacked, DAY / 2);
        for (text, age, count) in [
            ("30d, 500", Some(30 * DAY), Some(500)),
            ("500,30d", Some(30 * DAY), Some(500)),
            ("7", None, Some(7)),
            ("1d", Some(DAY), None),
        ] {
            assert_eq!(read(&[("RETAIN_JOBS", text)]).unwrap().maintenance.retain_jobs, Retention { age, count });
        }
        for here in ["http://127.0.0.1:1/b", "http://[::1]/b", "http://LocalHost:8080", "https://mirror.example/b/"] {
            assert!(read(&[("PG_DOWNLOAD", here)]).unwrap().embedded.download.is_some(), "{here}");
        }
        let brought = read(&[("DATABASE_URL", "postgres://u:p@h/d")]).unwrap();
        assert_eq!(brought.seed_rows, 0);
    }

    #[test]
    fn a_bad_value_is_named() {
        for (name, value) in [
            ("PORT", "80a"),
            ("PORT", "65536"),
            ("METRICS_PORT", "65536"),
            ("WORKERS", "0"),
            ("DRAIN_SECONDS", "86401"),
            ("READERS", "0"),
            ("READERS", "17"),
            ("LEASE_SECONDS", "-1"),
            ("CHANGE_LOG_MAX_ROWS", "0"),
            ("CHANGE_LOG_MAX_AGE", "7 fortnights"),
            ("RETAIN_UNACKED", "30"),
            ("RETAIN_UNACKED", "0s"),
            ("RETAIN_UNACKED", "30d,500"),
            ("MAX_ATTEMPTS", "many"),
            ("MAX_OPEN_JOBS", "0"),
            ("CELL_MAX_BYTES", "0"),
            ("CELL_MAX_BYTES", "MiB"),
            ("CELL_MAX_BYTES", "64MB"),
            ("CELL_MAX_BYTES", "-1KiB"),
            ("CELL_MAX_BYTES", "2GiB"),
            ("CELL_MAX_BYTES", "18446744073709551616"),
            ("CELL_MAX_BYTES", "18446744073709551615KiB"),
            ("COMPRESSION_LEVEL", "0"),
            ("COMPRESSION_LEVEL", "20"),
            ("COMPRESSION_LEVEL", "fast"),
            ("API_CONNECTIONS", "0"),
            ("SEED_ROWS", "1e6"),
            ("RETAIN_FILES", "30d,7d"),
            ("RETAIN_JOBS", "long"),
            ("HOST", "example"),
            ("AUTH", "keyz"),
            ("RATE_LIMIT", "600"),
            ("RATE_LIMIT", "0/s"),
            ("LOG_LEVEL", "loud"),
            ("LOG_FORMAT", "xml"),
            ("PG_DOWNLOAD", "on"),
            ("PG_DOWNLOAD", "ftp://mirror/"),
            ("PG_DOWNLOAD", "https://somebody:secret@mirror/"),
            ("PG_DOWNLOAD", "http://mirror.example/builds"),
            ("PG_DOWNLOAD", "http://10.0.0.7:8080/builds"),
            ("PG_DOWNLOAD", "http://127.0.0.1.mirror.example/"),
            ("PG_DOWNLOAD", "http://localhost.mirror.example/"),
            ("PG_DOWNLOAD_SHA256", "abc"),
            ("PG_DOWNLOAD_SHA256", "md5:d41d8cd98f00b204e9800998ecf8427e"),
            ("DATABASE_URL", "mysql://secret@h/d"),
        ] {
            let line = read(&[(name, value)]).unwrap_err();
            assert!(line.starts_with(&format!("{name}: ")), "{line}");
            assert!(!line.contains('\n') && !line.contains("secret"), "{line}");
        }
    }

    #[test]
    fn a_clients_key_is_shown_nowhere_else() {
        let key = |text: &str| {
            let variables = HashMap::from([("CDC_EXPORT_KEY".to_owned(), text.to_owned())]);
            Environment(Variables(variables)).key().map_err(|e| e.to_string())
        };
        let (_, good) = PresentedKey::random();
        let read = key(&format!("{good}\n")).unwrap().unwrap();
        assert_eq!((read.reveal(), format!("{read:?}").as_str()), (good.as_str(), "SecretKeyText"));
        assert!(key("").unwrap().is_none());
        let line = key("cdcx_secret").unwrap_err();
        assert!(line.starts_with("CDC_EXPORT_KEY: ") && !line.contains("secret"), "{line}");
    }
}
