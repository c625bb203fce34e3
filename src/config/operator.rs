//! The operator's file, and the secrets that it names.

use std::path::Path;

#[cfg(feature = "amqp")]
use crate::amqp::AddressedBroker;
#[cfg(feature = "amqp")]
use crate::amqp::address::{Address, NoAddress};
use crate::config::Error;
use crate::config::variables::{Variables, bad, is_setting};
use crate::dataset::catalog::Catalog;
use crate::dataset::fault::Mistakes;
use crate::webhook::Receiver;
use crate::webhook::signature::NoSecrets;

impl Error {
    /// What is wrong with the catalog in this file.
    pub fn catalog(file: &Path, mistakes: Mistakes) -> Error {
        Error::Catalog { file: file.display().to_string(), mistakes }
    }

    /// What the catalog's file names is not in the environment.
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

/// The catalog in this file.
pub(super) fn read_catalog(file: &Path) -> Result<Catalog, Error> {
    let text = std::fs::read_to_string(file).map_err(|why| Error::unreadable_catalog(file, &why))?;
    Catalog::from_toml_beside(&text, is_setting).map_err(|mistakes| Error::catalog(file, mistakes))
}

/// What a catalog names and the environment has: secrets, and addresses with passwords.
#[derive(Debug, Default)]
pub struct Secrets {
    /// Who is told of the ends of exports over HTTP, if the secret is there.
    pub receivers: Vec<Receiver>,
    /// The message brokers, if the address is there.
    #[cfg(feature = "amqp")]
    pub brokers: Vec<AddressedBroker>,
    /// What is wrong with the others that a process has to know which runs exports, since it tells how they ended.
    pub missing_to_tell: Vec<String>,
    /// What is wrong with the others that a process has to know which serves the API, since it takes requests.
    pub missing_to_ask: Vec<String>,
}

impl Secrets {
    /// What is wrong with any of them, each once.
    pub fn missing(&self) -> Vec<String> {
        let also = self.missing_to_ask.iter().filter(|why| !self.missing_to_tell.contains(why));
        self.missing_to_tell.iter().chain(also).cloned().collect()
    }
}

/// What a catalog names and the environment has.
pub(super) fn secrets(vars: &Variables, catalog: &Catalog) -> Secrets {
    let mut found = Secrets::default();
    for webhook in catalog.webhooks() {
        let (name, variable) = (&webhook.listener.name, &webhook.secret_env);
        match vars.get(variable).map(str::parse) {
            Some(Ok(secrets)) => found.receivers.push(Receiver { webhook: webhook.clone(), secrets }),
            Some(Err(why)) => {
                let why: NoSecrets = why;
                found.missing_to_tell.push(format!("webhook {name}: {variable}: {why}"));
            }
            None => {
                let why = format!("webhook {name}: the variable {variable}, which has its secret, is unset");
                found.missing_to_tell.push(why);
            }
        }
    }
    #[cfg(feature = "amqp")]
    for broker in catalog.brokers() {
        let (name, variable) = (&broker.name, &broker.url_env);
        let why = match vars.get(variable).map(str::parse) {
            Some(Ok(address)) => {
                let address: Address = address;
                let mut others = found.brokers.iter().filter(|other| other.address.is_same_place(&address));
                match others.find_map(|other| broker.clash(&other.broker)) {
                    // Of two blocks with one variable the file tells.
                    Some((member, why)) => format!("amqp {name}: {member}: {why}"),
                    None => {
                        found.brokers.push(AddressedBroker { broker: broker.clone(), address });
                        continue;
                    }
                }
            }
            Some(Err(why)) => {
                let why: NoAddress = why;
                format!("amqp {name}: {variable}: {why}")
            }
            None => format!("amqp {name}: the variable {variable}, which has its address, is unset"),
        };
        if broker.publication.is_some() {
            found.missing_to_tell.push(why.clone());
        }
        if broker.intake.is_some() {
            found.missing_to_ask.push(why);
        }
    }
    found
}
