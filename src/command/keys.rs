//! `keys`: creates, lists and revokes API keys. Requires access to the database, and no key.

use std::process::ExitCode;
use std::time::Duration;

use crate::config::{CatalogFile, Config};
use crate::duration;
use crate::http::Access;
use crate::job::Bounds;
use crate::key::{self, KeyInfo, KeySelector, PresentedKey, Scope};
use crate::store::Store;
use crate::store::keys::{Created, NewKey};
use anyhow::bail;
use cdc_manifest::ConsumerId;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::command::BadUsage;
use crate::command::database_handle::{CreateMissing, with_database};
use crate::command::start::{Logs, block_on, settings};
use crate::command::words::{dataset_name, words};

/// The actions on keys.
#[derive(Subcommand)]
pub(crate) enum KeysCommand {
    /// Create a key and print it; it is never shown again
    Create(CreateKey),
    /// List all keys, also revoked ones
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key permanently; running services refuse it within 5 seconds
    Revoke {
        /// The prefix or the name of the key
        #[arg(value_name = "PREFIX|NAME")]
        key: String,
    },
}

/// The key to create.
#[derive(Args)]
pub(crate) struct CreateKey {
    /// A name for the key
    #[arg(long)]
    name: key::KeyName,
    /// A consumer that the key may export for; may be repeated [default: all consumers, and exports without one]
    #[arg(long = "consumer", value_name = "ID")]
    consumers: Vec<ConsumerId>,
    /// A dataset that the key may see and export; may be repeated; a key with --consumer needs it, or --all-datasets
    #[arg(long = "dataset", value_name = "NAME", value_parser = dataset_name, conflicts_with = "all_datasets")]
    datasets: Vec<String>,
    /// Open all datasets to a key with --consumer, also those that are added later
    #[arg(long)]
    all_datasets: bool,
    /// A scope of the key; may be repeated; admin allows everything [default: export:read and export:write]
    #[arg(long = "scope", value_parser = words::<Scope>(Scope::ALL.iter().map(|it| it.as_str())))]
    scopes: Vec<Scope>,
    /// The lifetime of the key, such as 90d or 12h [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    expires: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(100 * 365 * 24 * 60 * 60));
    let time = duration::parse(text).filter(|time| (shortest..=longest).contains(time));
    time.ok_or_else(|| "not a time from 1s to 36500d, such as 90d or 12h".to_owned())
}

impl CreateKey {
    /// Refuses a key whose rights are probably not what the operator means.
    fn check(&self) -> Result<(), BadUsage> {
        let (has_consumers, has_datasets) = (!self.consumers.is_empty(), !self.datasets.is_empty());
        let why = if self.scopes.contains(&Scope::Admin) && (has_consumers || has_datasets) {
            "--scope admin opens everything: leave --consumer and --dataset out, or give other scopes"
        } else if has_consumers && !has_datasets && !self.all_datasets {
            "--consumer does not limit the data that a key opens: say which by --dataset NAME, or give --all-datasets"
        } else {
            return Ok(());
        };
        Err(BadUsage(why.to_owned()))
    }
}

impl KeysCommand {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if let KeysCommand::Create(new) = &self {
            new.check()?;
        }
        // The first migration reads from the catalog if the demo table `users` is needed.
        let (catalog, makes) = match self {
            KeysCommand::Create(_) => (CatalogFile::Read, CreateMissing::Tables),
            KeysCommand::List { .. } | KeysCommand::Revoke { .. } => (CatalogFile::Unread, CreateMissing::Nothing),
        };
        let config = settings(catalog, Logs::Errors)?;
        block_on(with_database(&config, makes, async |database| {
            let store = Store::new(database.pool());
            match self {
                KeysCommand::Create(new) => create(&store, &config, new).await,
                KeysCommand::List { json } => list(&store, json).await,
                KeysCommand::Revoke { key } => revoke(&store, &key).await,
            }
        }))
    }
}

/// Creates a key and prints it. No other command can show the key.
async fn create(store: &Store, config: &Config, new: CreateKey) -> anyhow::Result<()> {
    let CreateKey { name, consumers, datasets, mut scopes, expires: lifetime, json, .. } = new;
    if scopes.is_empty() {
        scopes = vec![Scope::Read, Scope::Write];
    }
    // The key may be made before its dataset.
    let catalog = config.catalog.get();
    for name in datasets.iter().filter(|name| catalog.get(name).is_none()) {
        eprintln!("cdc-export: warning: there is no dataset `{name}`: the key opens nothing until there is");
    }
    let bounds = Bounds {
        consumers: Some(consumers).filter(|consumers| !consumers.is_empty()),
        datasets: Some(datasets).filter(|datasets| !datasets.is_empty()),
    };
    let new_key = NewKey { name, bounds, scopes, lifetime };
    let (key, text) = PresentedKey::random();
    let info = match store.create_key(&key, &new_key).await? {
        Created::Done(info) => info,
        Created::NameTaken => {
            bail!("there is a key `{}` already: take another name, or revoke it", new_key.name.as_str())
        }
    };
    if let Some(Access::LocalCallers | Access::Everybody) = config.http.access {
        eprintln!("cdc-export: warning: AUTH lets in callers without a key: AUTH=keys lets in only those with one");
    }
    if json {
        let mut shown = as_json(&info);
        shown["key"] = text.into();
        outln!("{shown}")?;
        return Ok(());
    }
    outln!("{text}")?;
    eprintln!("This is the only time that the key is shown. Its prefix is {}.", info.grant.prefix);
    Ok(())
}

async fn list(store: &Store, json: bool) -> anyhow::Result<()> {
    let keys = store.keys().await?;
    if json {
        outln!("{}", json!({ "keys": keys.iter().map(as_json).collect::<Vec<_>>() }))?;
        return Ok(());
    }
    outln!(
        "PREFIX        NAME                     CONSUMERS                DATASETS                 \
         SCOPES                     STATUS   CREATED               EXPIRES               LAST USED"
    )?;
    for key in &keys {
        let (consumers, scopes) = (consumers(key).map_or("all".to_owned(), |ids| ids.join(",")), scopes(key).join(","));
        let datasets = key.grant.bounds.datasets.as_ref().map_or("all".to_owned(), |names| names.join(","));
        let time = |time: Option<DateTime<Utc>>| time.map_or("-".to_owned(), |time| time.format("%FT%TZ").to_string());
        let (created, expires) = (time(Some(key.created_at)), time(key.expires_at));
        let (prefix, name, status, used) = (&key.grant.prefix, &key.name, status(key), time(key.last_used_at));
        outln!(
            "{prefix:<12}  {name:<24} {consumers:<24} {datasets:<24} {scopes:<26} {status:<8} {created:<20}  {expires:<20}  {used}"
        )?;
    }
    Ok(())
}

async fn revoke(store: &Store, key: &str) -> anyhow::Result<()> {
    let selector = KeySelector::from(key);
    match store.revoke_key(&selector).await? {
        Some(key) => {
            outln!("{} ({}) is revoked.", key.grant.prefix, key.name)?;
            Ok(())
        }
        None => bail!("there is no key `{}`, or it is revoked already", selector.as_str()),
    }
}

fn consumers(key: &KeyInfo) -> Option<Vec<&str>> {
    key.grant.bounds.consumers.as_ref().map(|ids| ids.iter().map(|id| id.as_str()).collect())
}

fn scopes(key: &KeyInfo) -> Vec<&'static str> {
    key.grant.scopes.iter().map(|scope| scope.as_str()).collect()
}

fn status(key: &KeyInfo) -> &'static str {
    match (key.revoked_at, key.expires_at) {
        (Some(_), _) => "revoked",
        (None, Some(end)) if end <= Utc::now() => "expired",
        (None, _) => "good",
    }
}

fn as_json(key: &KeyInfo) -> Value {
    let time = |time: Option<DateTime<Utc>>| time.map(|time| time.format("%FT%T%.6fZ").to_string());
    json!({
        "prefix": key.grant.prefix.as_str(),
        "name": key.name,
        "consumers": consumers(key),
        "datasets": key.grant.bounds.datasets,
        "scopes": scopes(key),
        "status": status(key),
        "createdAt": time(Some(key.created_at)),
        "expiresAt": time(key.expires_at),
        "revokedAt": time(key.revoked_at),
        "lastUsedAt": time(key.last_used_at),
    })
}
