//! Reads the settings of all modules from the environment, once at the start. No other module reads the environment.
//!
//! Every variable is in `.env.example`. An invalid value stops the start with one line that names the variable.

mod environment;
pub mod operator;
mod output;
mod telemetry;
mod variables;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use environment::Environment;

use crate::catalog::Catalog;
use crate::catalog::current::CurrentCatalog;
use crate::catalog::mistake::Mistakes;
use crate::config::variables::{Variables, invalid};
use crate::http::{self, Access, LocalHosts, Origins};
use crate::job::Terms;
use crate::job::times::Times;
use crate::postgres::{BadUrl, Database, NamedDatabase};
use crate::receiver::Receivers;
use crate::telemetry::spans;
use crate::{maintenance, postgres, worker};
use cdc_capture::Caps;
use cdc_dataset::{CellMax, MaskSecret};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// An invalid setting. The message is one line, or one line for each mistake in the catalog.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{name}: {why}")]
    Value {
        name: &'static str,
        /// The mistake, and the allowed values.
        why: String,
    },
    /// The catalog is invalid or doesn't fit its tables. The message has a line for each mistake.
    #[error("{}", one_line_per_mistake(.file, .mistakes))]
    Catalog { file: String, mistakes: Mistakes },
    /// The file `.env` is invalid. The message doesn't quote its lines, which may contain passwords.
    #[error(".env: {0}")]
    File(String),
}

#[derive(Debug)]
pub struct Config {
    /// The database to use. `None` means the private one.
    pub database: Option<Database>,
    pub embedded: private_postgres::Settings,
    /// The datasets, and the other blocks of the operator's file. Its patterns have datasets once a command has opened
    /// the database.
    pub catalog: CurrentCatalog,
    pub receivers: Arc<Receivers>,
    /// The secrets of receivers that are unset or wrong.
    pub missing_receiver_secrets: Vec<String>,
    /// The operator's file. `None` means that the catalog is the demo's.
    pub catalog_file: Option<PathBuf>,
    pub output: cdc_destination::Settings,
    /// The number of users with which an empty demo table is filled.
    pub seed_rows: u64,
    pub http: http::Settings,
    pub api_connections: u32,
    /// The port on which a process without the API serves its metrics. `None` means that it doesn't serve them.
    pub metrics_port: Option<u16>,
    /// The time for which running exports may continue after a signal to stop.
    pub drain: Duration,
    pub worker: worker::Settings,
    pub maintenance: maintenance::Settings,
    /// The number of connections that read a large table for a full export.
    pub readers: u32,
    pub terms: Terms,
    pub redirects_downloads: bool,
    pub telemetry: crate::telemetry::Settings,
    /// The collector of spans. `None` means that no spans are recorded.
    pub spans: Option<spans::Settings>,
}

impl Error {
    pub fn no_such_host(host: IpAddr) -> Error {
        invalid(
            "HOST",
            format!(
                "{host} is no address of this machine: 127.0.0.1 is open to this machine alone, 0.0.0.0 to all networks"
            ),
        )
    }

    #[cfg(feature = "otel")]
    pub fn collector(why: String) -> Error {
        invalid("OTEL_EXPORTER_OTLP_ENDPOINT", why)
    }

    pub fn output(output: &cdc_destination::Settings, why: &str) -> Error {
        let name = match output {
            cdc_destination::Settings::Folder { .. } => "OUTPUT_DIR",
            #[cfg(feature = "buckets")]
            cdc_destination::Settings::Bucket(_) => "OUTPUT_URL",
        };
        invalid(name, format!("{output}: {why}"))
    }

    /// Returns the error of an API that is open to other machines while there is no key: every call would be refused.
    pub fn no_keys(host: IpAddr) -> Error {
        invalid(
            "AUTH",
            format!(
                "unset, and HOST is {host}: `cdc-export keys create --name NAME` makes a first key, with which the service starts; \
                 AUTH=none opens it to everybody there"
            ),
        )
    }
}

/// The use of the file of `DATASETS` by a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatalogFile {
    /// The file is read and must be valid.
    Read,
    /// The file isn't read. It may be invalid or missing.
    Unread,
    /// The command reads the file itself. The file may not exist yet.
    Named,
}

impl Config {
    fn from_variables(vars: Variables) -> Result<Config, Error> {
        let named =
            match vars.get("DATABASE_URL").map(|url| NamedDatabase::read(url, |name| vars.get(name))).transpose() {
                Ok(named) => named,
                Err(BadUrl::Variable { name, why }) => return Err(invalid(name, why)),
                Err(why) => return Err(invalid("DATABASE_URL", why.to_string())),
            };
        for (name, file) in named.iter().flat_map(|named| &named.files) {
            // The error of sqlx would name neither the parameter nor the file.
            let wrong = |why: String| invalid("DATABASE_URL", format!("{name}: {}: {why}", file.display()));
            let opened = std::fs::File::open(file).map_err(|why| wrong(why.to_string()))?;
            if *name == "sslrootcert" {
                let text = std::io::read_to_string(opened).map_err(|why| wrong(why.to_string()))?;
                if !text.contains("-----BEGIN CERTIFICATE-----") {
                    return Err(wrong("there is no certificate in PEM form in it".to_owned()));
                }
            }
        }
        let database = named.map(|named| named.database);
        let catalog_file = vars.get("DATASETS").map(PathBuf::from);
        let times = Times::of(Duration::from_secs(vars.number("LEASE_SECONDS", 30, 1..=3600)?));
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
            // The start reads from the database if there are keys.
            None => None,
            Some("none") => Some(Access::Everybody),
            Some("keys") => Some(Access::Keys),
            Some("local") => Some(Access::LocalCallers),
            Some(other) => return Err(invalid("AUTH", format!("`{other}` is none of keys, local and none"))),
        };
        let rate = |text: &str| text.parse().map_err(|why: &str| format!("`{text}` is {why}"));
        let output = output::read(&vars)?;
        let publisher = output::publisher(&vars, &output)?;
        let (catalog, mut receivers) = match &catalog_file {
            None => (Catalog::default(), Receivers::default()),
            Some(file) => operator::read_catalog(file, &operator::read_text(file)?)?,
        };
        let missing_receiver_secrets = operator::read_secrets(&vars, &mut receivers);
        let downloads = vars.one_of_two("PG_DOWNLOAD", [("on", true), ("off", false)])?.unwrap_or(true);
        Ok(Config {
            embedded: private_postgres::Settings {
                data_dir: vars.get("DATA_DIR").map(PathBuf::from),
                bin_dir: vars.get("PG_BIN_DIR").map(PathBuf::from),
                ignores_installed: false,
                download: downloads.then_some(postgres::download::fetch),
                search_path: vars.get("PATH").map(|path| std::env::split_paths(path).collect()).unwrap_or_default(),
                runtime_dir: vars.get("XDG_RUNTIME_DIR").map(PathBuf::from),
            },
            catalog: CurrentCatalog::new(Arc::new(catalog)),
            receivers: Arc::new(receivers),
            missing_receiver_secrets,
            catalog_file,
            output,
            // The operator's own database gets demo rows only if SEED_ROWS is set.
            seed_rows: vars.number("SEED_ROWS", if database.is_some() { 0 } else { 100_000 }, 0..=100_000_000)?,
            database,
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
                times,
                give_way: match vars.number("GIVE_WAY_SECONDS", 5, 0..=3600)? {
                    0 => None,
                    seconds => Some(Duration::from_secs(seconds)),
                },
                cell_max: CellMax(vars.bytes("CELL_MAX_BYTES", 64 << 20, 1 << 10..=1 << 30)?),
                compression_level: vars.optional_number("COMPRESSION_LEVEL", 1..=19)?.map(|level| level as u8),
                mask_secret: vars.optional("MASK_SECRET", str::parse::<MaskSecret>)?,
            },
            maintenance: maintenance::Settings {
                publisher,
                times,
                retain_files: vars.retention("RETAIN_FILES", None)?,
                retain_jobs: vars.retention("RETAIN_JOBS", Some("90d,10000"))?,
                retain_unacked: vars.age("RETAIN_UNACKED", 30 * DAY)?,
                log_caps: Caps {
                    bytes: vars.bytes("CHANGE_LOG_MAX_BYTES", 10 << 30, 1 << 10..=1 << 60)?,
                    age: vars.age("CHANGE_LOG_MAX_AGE", 7 * DAY)?,
                    now: None,
                },
            },
            readers: vars.number("READERS", cores().min(4), 1..=16)? as u32,
            terms: Terms {
                max_attempts: vars.number("MAX_ATTEMPTS", 5, 1..=100)? as u32,
                max_open: vars.number("MAX_OPEN_JOBS", 10_000, 1..=1_000_000)? as u32,
            },
            redirects_downloads: vars.one_of_two("DOWNLOADS", [("proxy", false), ("redirect", true)])?.unwrap_or(false),
            telemetry: telemetry::logs(&vars)?,
            spans: telemetry::spans(&vars)?,
        })
    }
}

fn one_line_per_mistake(file: &str, mistakes: &Mistakes) -> String {
    let lines: Vec<_> = mistakes.to_string().lines().map(|mistake| format!("DATASETS: {file}: {mistake}")).collect();
    lines.join("\n")
}

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
    fn defaults_and_units_are_applied() {
        let config = read(&[("DATABASE_URL", "")]).unwrap();
        assert!(config.database.is_none() && config.embedded.data_dir.is_none());
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
        let retained = Retention { age: Some(90 * DAY), count: Some(10_000) };
        assert_eq!((config.maintenance.retain_files, config.maintenance.retain_jobs), (Retention::default(), retained));
        assert_eq!(read(&[("RETAIN_UNACKED", "12h")]).unwrap().maintenance.retain_unacked, DAY / 2);
        for (text, age, count) in [
            ("30d, 500", Some(30 * DAY), Some(500)),
            ("500,30d", Some(30 * DAY), Some(500)),
            ("7", None, Some(7)),
            ("1d", Some(DAY), None),
        ] {
            assert_eq!(read(&[("RETAIN_JOBS", text)]).unwrap().maintenance.retain_jobs, Retention { age, count });
        }
        assert!(config.embedded.download.is_some());
        assert!(read(&[("PG_DOWNLOAD", "off")]).unwrap().embedded.download.is_none());
        let brought = read(&[("DATABASE_URL", "postgres://u:p@h/d")]).unwrap();
        assert_eq!(brought.seed_rows, 0);
    }

    #[test]
    fn an_invalid_value_is_refused_with_the_name_of_its_variable() {
        for (name, value) in [
            ("PORT", "80a"),
            ("METRICS_PORT", "65536"),
            ("WORKERS", "0"),
            ("DRAIN_SECONDS", "86401"),
            ("READERS", "0"),
            ("READERS", "17"),
            ("LEASE_SECONDS", "-1"),
            ("CHANGE_LOG_MAX_BYTES", "0"),
            ("CHANGE_LOG_MAX_AGE", "7 fortnights"),
            ("RETAIN_UNACKED", "0s"),
            ("MAX_ATTEMPTS", "many"),
            ("MAX_OPEN_JOBS", "0"),
            ("CELL_MAX_BYTES", "64MB"),
            ("CELL_MAX_BYTES", "2GiB"),
            ("CELL_MAX_BYTES", "18446744073709551615KiB"),
            ("COMPRESSION_LEVEL", "0"),
            ("COMPRESSION_LEVEL", "20"),
            ("API_CONNECTIONS", "0"),
            ("SEED_ROWS", "1e6"),
            ("RETAIN_FILES", "30d,7d"),
            ("RETAIN_JOBS", "long"),
            ("HOST", "example"),
            ("AUTH", "keyz"),
            ("RATE_LIMIT", "600"),
            ("LOG_LEVEL", "loud"),
            ("LOG_FORMAT", "xml"),
            ("PG_DOWNLOAD", "https://mirror.example/builds"),
            ("DATABASE_URL", "mysql://secret@h/d"),
        ] {
            let line = read(&[(name, value)]).unwrap_err();
            assert!(line.starts_with(&format!("{name}: ")), "{line}");
            assert!(!line.contains('\n') && !line.contains("secret"), "{line}");
        }
    }

    #[test]
    fn the_key_of_a_client_is_in_no_error() {
        let key = |text: &str| {
            let variables = HashMap::from([("CDC_EXPORT_KEY".to_owned(), text.to_owned())]);
            Environment(Variables(variables)).key().map_err(|e| e.to_string())
        };
        let (_, good) = PresentedKey::random();
        assert_eq!(key(&format!("{good}\n")), Ok(Some(good)));
        assert_eq!(key(""), Ok(None));
        let line = key("cdcx_secret").unwrap_err();
        assert!(line.starts_with("CDC_EXPORT_KEY: ") && !line.contains("secret"), "{line}");
    }
}
