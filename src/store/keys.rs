//! Creates, lists, revokes and looks up API keys.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};

use crate::job::Bounds;
use crate::key::{Grant, KeyInfo, KeyName, KeySelector, Prefix, PresentedKey, Scope, StoredKey};
use crate::store::{Error, Store};
use crate::telemetry::KEYS;
use cdc_manifest::ConsumerId;

#[derive(Clone, Debug)]
pub struct NewKey {
    pub name: KeyName,
    pub bounds: Bounds,
    pub scopes: Vec<Scope>,
    /// The lifetime of the key. `None` means until it is revoked.
    pub lifetime: Option<Duration>,
}

#[derive(Debug)]
pub enum Created {
    Done(KeyInfo),
    /// Another key that isn't revoked has this name.
    NameTaken,
}

impl FromRow<'_, PgRow> for KeyInfo {
    fn from_row(row: &PgRow) -> Result<KeyInfo, sqlx::Error> {
        Ok(KeyInfo {
            name: row.try_get("name")?,
            grant: Grant::from_row(row)?,
            created_at: row.try_get("created_at")?,
            expires_at: row.try_get("expires_at")?,
            revoked_at: row.try_get("revoked_at")?,
            last_used_at: row.try_get("last_used_at")?,
        })
    }
}

impl FromRow<'_, PgRow> for StoredKey {
    fn from_row(row: &PgRow) -> Result<StoredKey, sqlx::Error> {
        let (hash, is_use_due) = (row.try_get("hash")?, row.try_get("is_use_due")?);
        Ok(StoredKey { grant: Grant::from_row(row)?.into(), hash, is_use_due })
    }
}

/// Ignores words that this version doesn't know.
impl FromRow<'_, PgRow> for Grant {
    fn from_row(row: &PgRow) -> Result<Grant, sqlx::Error> {
        let consumers: Option<Vec<String>> = row.try_get("consumers")?;
        let consumers = consumers.map(|ids| ids.iter().filter_map(|id| id.parse().ok()).collect());
        let scopes: Vec<String> = row.try_get("scopes")?;
        Ok(Grant {
            prefix: Prefix::stored(row.try_get("prefix")?),
            bounds: Bounds { consumers, datasets: row.try_get("datasets")? },
            scopes: scopes.iter().filter_map(|scope| scope.parse().ok()).collect(),
        })
    }
}

/// Logs an event about a key, with its public prefix.
fn log_key(event: &str, KeyInfo { name, grant, .. }: &KeyInfo) {
    let Bounds { consumers, datasets } = &grant.bounds;
    let consumers = consumers.as_ref().map(|ids| ids.iter().map(ConsumerId::as_str).collect::<Vec<_>>().join(" "));
    let datasets = datasets.as_ref().map(|names| names.join(" "));
    let scopes = grant.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" ");
    tracing::info!(target: KEYS, event, key = grant.prefix.as_str(), name, consumers, datasets, scopes);
}

impl Store {
    pub async fn create_key(&self, key: &PresentedKey, new: &NewKey) -> Result<Created, Error> {
        let statement = sqlx::query_as::<_, KeyInfo>(
            "-- store.keys.create
             insert into cdc_export.keys (name, prefix, hash, consumers, scopes, expires_at, datasets)
             values ($1, $2, $3, $4, $5, clock_timestamp() + make_interval(secs => $6), $7)
             returning name, prefix, consumers, datasets, scopes, created_at, expires_at, revoked_at, last_used_at",
        )
        .bind(new.name.as_str())
        .bind(key.prefix().as_str())
        .bind(key.hash())
        .bind(new.bounds.consumers.as_ref().map(|ids| ids.iter().map(ConsumerId::as_str).collect::<Vec<_>>()))
        .bind(new.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>())
        .bind(new.lifetime.map(|lifetime| lifetime.as_secs_f64()))
        .bind(new.bounds.datasets.as_deref());
        match self.with(async |conn| statement.fetch_one(conn).await).await {
            Ok(info) => {
                log_key("key_created", &info);
                Ok(Created::Done(info))
            }
            Err(Error::Sql(sqlx::Error::Database(e))) if e.constraint() == Some("keys_name") => Ok(Created::NameTaken),
            Err(error) => Err(error),
        }
    }

    /// Returns all keys, including expired and revoked ones, the oldest first.
    pub async fn keys(&self) -> Result<Vec<KeyInfo>, Error> {
        let statement = sqlx::query_as(
            "-- store.keys.list
             select name, prefix, consumers, datasets, scopes, created_at, nullif(expires_at, 'infinity') as expires_at,
               revoked_at, last_used_at
             from cdc_export.keys order by created_at, prefix",
        );
        self.with(async |conn| statement.fetch_all(conn).await).await
    }

    /// Revokes a key. Returns `None` if no key has this name or prefix, or if it was revoked before.
    pub async fn revoke_key(&self, selector: &KeySelector) -> Result<Option<KeyInfo>, Error> {
        let statement = sqlx::query_as(
            "-- store.keys.revoke
             update cdc_export.keys set revoked_at = clock_timestamp()
             where revoked_at is null and prefix = (
               select prefix from cdc_export.keys where revoked_at is null and (prefix = $1 or name = $1)
               -- A name may look like another key's prefix.
               order by prefix = $1 desc limit 1)
             returning name, prefix, consumers, datasets, scopes, created_at, expires_at, revoked_at, last_used_at",
        )
        .bind(selector.as_str());
        let info = self.with(async |conn| statement.fetch_optional(conn).await).await?;
        if let Some(info) = &info {
            log_key("key_revoked", info);
        }
        Ok(info)
    }

    /// Returns the keys that are neither revoked nor expired: the one with this prefix, or all.
    pub async fn usable_keys(&self, prefix: Option<&Prefix>) -> Result<Vec<StoredKey>, Error> {
        let statement = sqlx::query_as(
            "-- store.keys.usable
             select prefix, consumers, datasets, scopes, hash,
               coalesce(last_used_at < clock_timestamp() - interval '1 minute', true) as is_use_due
             from cdc_export.keys
             where ($1::text is null or prefix = $1)
               and revoked_at is null and (expires_at is null or expires_at > clock_timestamp())",
        )
        .bind(prefix.map(Prefix::as_str));
        self.with(async |conn| statement.fetch_all(conn).await).await
    }

    pub async fn note_use(&self, prefix: &Prefix) -> Result<(), Error> {
        let statement = sqlx::query(
            "-- store.keys.note_use
             update cdc_export.keys set last_used_at = clock_timestamp() where prefix = $1",
        )
        .bind(prefix.as_str());
        self.execute(statement).await.map(drop)
    }
}
