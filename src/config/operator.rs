//! The operator's file, and the variables that it names for secrets.

use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

#[cfg(feature = "amqp")]
use crate::amqp::AddressedBroker;
#[cfg(feature = "amqp")]
use crate::amqp::address::Address;
#[cfg(feature = "amqp")]
use crate::broker::Broker;
use crate::config::Error;
use crate::config::variables::{Variables, bad, is_setting};
use crate::dataset::catalog::Catalog;
use crate::dataset::fault::Mistakes;
use crate::webhook::Receiver;

impl Error {
    /// The catalog in this file is wrong.
    pub fn catalog(file: &Path, mistakes: Mistakes) -> Error {
        Error::Catalog { file: file.display().to_string(), mistakes }
    }

    /// Variables that the catalog's file names are unset or wrong.
    pub fn no_secrets(file: &Path, missing: &[String]) -> Error {
        bad("DATASETS", format!("{}: {}", file.display(), missing.join("; ")))
    }

    /// The catalog's file can't be read.
    pub fn unreadable_catalog(file: &Path, why: &std::io::Error) -> Error {
        let help = match why.kind() {
            std::io::ErrorKind::NotFound if file.is_relative() => {
                "; a path that begins with / is the same in every folder"
            }
            _ => "",
        };
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        bad("DATASETS", format!("{}: {why}{help}", file.display()))
    }
}

/// Reads the catalog in this file.
pub(super) fn read_catalog(file: &Path) -> Result<Catalog, Error> {
    let text = std::fs::read_to_string(file).map_err(|why| Error::unreadable_catalog(file, &why))?;
    Catalog::from_toml_beside(&text, is_setting).map_err(|mistakes| Error::catalog(file, mistakes))
}

/// The secrets of receivers and the addresses of brokers, out of the variables that a catalog names.
#[derive(Debug, Default)]
pub struct Secrets {
    /// The webhooks that have a secret.
    pub receivers: Vec<Receiver>,
    /// The brokers that have an address.
    #[cfg(feature = "amqp")]
    pub brokers: Vec<AddressedBroker>,
    /// The faults that matter to a process that runs exports, since it delivers the events of their ends.
    pub missing_to_tell: Vec<String>,
    /// The faults that matter to a process that serves the API, since it takes the requests of brokers.
    pub missing_to_ask: Vec<String>,
}

impl Secrets {
    /// All faults, each once.
    pub fn missing(&self) -> Vec<String> {
        let also = self.missing_to_ask.iter().filter(|why| !self.missing_to_tell.contains(why));
        self.missing_to_tell.iter().chain(also).cloned().collect()
    }
}

/// Reads the variables that a catalog names.
pub(super) fn secrets(vars: &Variables, catalog: &Catalog) -> Secrets {
    let mut found = Secrets::default();
    for webhook in catalog.webhooks() {
        let block = format!("webhook {}", webhook.listener.name);
        match secret(vars, &block, &webhook.secret_env, "secret") {
            Ok(secrets) => found.receivers.push(Receiver { webhook: webhook.clone(), secrets }),
            Err(why) => found.missing_to_tell.push(why),
        }
    }
    #[cfg(feature = "amqp")]
    for broker in catalog.brokers() {
        match addressed(vars, broker, &found.brokers) {
            Ok(broker) => found.brokers.push(broker),
            Err(why) => {
                if broker.publication.is_some() {
                    found.missing_to_tell.push(why.clone());
                }
                if broker.intake.is_some() {
                    found.missing_to_ask.push(why);
                }
            }
        }
    }
    found
}

/// Reads a broker's address, and compares the broker with the `others` at the same address.
#[cfg(feature = "amqp")]
fn addressed(vars: &Variables, broker: &Broker, others: &[AddressedBroker]) -> Result<AddressedBroker, String> {
    let block = format!("amqp {}", broker.name);
    let address: Address = secret(vars, &block, &broker.url_env, "address")?;
    // Two blocks that name the same variable were compared when the file was read.
    let mut others = others.iter().filter(|other| other.address.is_same_place(&address));
    match others.find_map(|other| broker.clash(&other.broker)) {
        Some((member, why)) => Err(format!("{block}: {member}: {why}")),
        None => Ok(AddressedBroker { broker: broker.clone(), address }),
    }
}

/// Parses the variable that a block names. The error names block and variable, and doesn't quote the value.
fn secret<T>(vars: &Variables, block: &str, variable: &str, noun: &str) -> Result<T, String>
where
    T: FromStr<Err: Display>,
{
    match vars.get(variable) {
        Some(text) => text.parse().map_err(|why| format!("{block}: {variable}: {why}")),
        None => Err(format!("{block}: the variable {variable}, which has its {noun}, is unset")),
    }
}
