//! Where a bucket is, and the clients that reach it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use crate::tls;

/// A store that takes objects whole and in parts, and signs addresses of them.
pub(super) trait Remote: ObjectStore + MultipartStore + Signer {}
impl<T: ObjectStore + MultipartStore + Signer> Remote for T {}

pub(super) type Client = Arc<dyn Remote>;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Tries again what may pass, for a shorter time than a lease lasts: those who call go on from there.
fn retries() -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(5), base: 2.0 };
    RetryConfig { backoff, max_retries: 4, retry_timeout: Duration::from_secs(20) }
}

/// Whose bucket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cloud {
    S3,
    Gcs,
    Azure,
}

impl Cloud {
    /// How its variables' names begin.
    fn variables(self) -> &'static str {
        match self {
            Cloud::S3 => "AWS_",
            Cloud::Gcs => "GOOGLE_",
            Cloud::Azure => "AZURE_",
        }
    }
}

/// What keeps a bucket from being reached by what an operator has said.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    /// The URL is none of a bucket.
    #[error("none of s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX and file:///PATH")]
    NotABucket,
    /// A variable has a line break, which no request can carry.
    #[error("{0} has a line break or another control character")]
    Control(String),
    /// A variable has to be an address.
    #[error("{0} is no address as https://HOST:PORT, without a name or a password in it")]
    NotAnAddress(String),
}

/// Where a bucket is, with the variables of its cloud: credentials, region, endpoint.
#[derive(Clone)]
pub struct Address {
    cloud: Cloud,
    bucket: String,
    pub(super) prefix: Path,
    variables: Vec<(String, String)>,
}

impl Address {
    /// The bucket at this URL, reached by those of `variables` that are its cloud's.
    ///
    /// # Errors
    /// If it is no such URL, or a variable can't be used.
    pub fn read<'v>(url: &str, variables: impl IntoIterator<Item = (&'v str, &'v str)>) -> Result<Address, BadAddress> {
        let (scheme, rest) = url.split_once("://").ok_or(BadAddress::NotABucket)?;
        let cloud = match scheme {
            "s3" => Cloud::S3,
            "gs" => Cloud::Gcs,
            "az" => Cloud::Azure,
            _ => return Err(BadAddress::NotABucket),
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if bucket.is_empty() || !bucket.chars().all(is_name) || prefix.contains(['?', '#']) {
            return Err(BadAddress::NotABucket);
        }
        let prefix = Path::parse(prefix.trim_end_matches('/')).map_err(|_| BadAddress::NotABucket)?;
        let of_cloud = |(name, _): &(&str, &str)| name.starts_with(cloud.variables());
        let own = |(name, value): (&str, &str)| (name.to_lowercase(), value.to_owned());
        let mut variables: Vec<_> = variables.into_iter().filter(of_cloud).map(own).collect();
        // How long requests may take is decided here.
        variables.retain(|(name, _)| !name.ends_with("_timeout"));
        // Of two names for one thing the same one wins each time.
        variables.sort_unstable();
        for (name, value) in &variables {
            let told = || name.to_uppercase();
            // The text of a service account's key has lines.
            if value.contains(char::is_control) && !name.ends_with("_account_key") {
                return Err(BadAddress::Control(told()));
            }
            let is_address = name.contains("endpoint") || name.contains("_url") || name.ends_with("_uri");
            if is_address && !name.ends_with("relative_uri") && !is_plain(value) {
                return Err(BadAddress::NotAnAddress(told()));
            }
        }
        Ok(Address { cloud, bucket: bucket.to_owned(), prefix, variables })
    }

    /// Whether its objects have metadata that are given with an upload.
    pub(super) fn keeps_metadata(&self) -> bool {
        self.cloud != Cloud::Azure
    }

    /// Whether a part may have no bytes.
    pub(super) fn takes_empty_parts(&self) -> bool {
        self.cloud != Cloud::Azure
    }

    /// A client with these options.
    pub(super) fn client(&self, options: ClientOptions) -> Result<Client, object_store::Error> {
        tls::provide();
        let options = options.with_connect_timeout(CONNECT_TIMEOUT);
        // Variables that a cloud's other programs read, and this client doesn't, are passed over.
        Ok(match self.cloud {
            Cloud::S3 => {
                let mut builder = AmazonS3Builder::new().with_client_options(options).with_retry(retries());
                // An answer to a request for many tells of a refusal as if it were a success.
                builder = builder.with_config(AmazonS3ConfigKey::DisableBulkDelete, "true");
                let is_endpoint =
                    |name: &str| matches!(name, "aws_endpoint" | "aws_endpoint_url" | "aws_endpoint_url_s3");
                if !self.variables.iter().any(|(name, _)| is_endpoint(name)) {
                    // S3 refuses a part then that changed on the way.
                    builder = builder.with_checksum_algorithm(Checksum::SHA256);
                }
                builder = self.parsed().fold(builder, |builder, (key, value)| builder.with_config(key, value));
                Arc::new(builder.with_bucket_name(&self.bucket).build()?)
            }
            Cloud::Gcs => {
                let builder = GoogleCloudStorageBuilder::new().with_client_options(options).with_retry(retries());
                let builder = self.parsed().fold(builder, |builder, (key, value)| builder.with_config(key, value));
                Arc::new(builder.with_bucket_name(&self.bucket).build()?)
            }
            Cloud::Azure => {
                let builder = MicrosoftAzureBuilder::new().with_client_options(options).with_retry(retries());
                let builder = self.parsed().fold(builder, |builder, (key, value)| builder.with_config(key, value));
                Arc::new(builder.with_container_name(&self.bucket).build()?)
            }
        })
    }

    /// The variable whose value keeps a client from being made: without it one could be.
    pub(super) fn culprit(&self) -> Option<String> {
        let is_to_blame = |(at, _): &(usize, _)| {
            let mut without = self.clone();
            without.variables.remove(*at);
            without.client(ClientOptions::new()).is_ok()
        };
        let (_, (name, _)) = self.variables.iter().enumerate().find(is_to_blame)?;
        Some(name.to_uppercase())
    }

    fn parsed<K: FromStr>(&self) -> impl Iterator<Item = (K, &str)> {
        self.variables.iter().filter_map(|(name, value)| Some((name.parse().ok()?, value.as_str())))
    }

    /// The URL of an object.
    pub(super) fn url(&self, key: &str) -> String {
        let Address { bucket, .. } = self;
        match self.cloud {
            Cloud::S3 => format!("s3://{bucket}/{key}"),
            Cloud::Gcs => format!("gs://{bucket}/{key}"),
            Cloud::Azure => format!("az://{bucket}/{key}"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url(self.prefix.as_ref()))
    }
}

/// Without the variables, which have secrets.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

/// Whether it is an address of HTTP without a password, which error messages would show.
fn is_plain(address: &str) -> bool {
    url::Url::parse(address).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (url, shown) in [
            ("s3://files", "s3://files/"),
            ("s3://files/a/b/", "s3://files/a/b"),
            ("gs://files/exports", "gs://files/exports"),
            ("az://container/x", "az://container/x"),
        ] {
            assert_eq!(Address::read(url, []).unwrap().to_string(), shown);
        }
        for url in [
            "",
            "files",
            "s3:/files",
            "s3:///a",
            "s3://",
            "S3://files",
            "s3://key:secret@files/a",
            "s3://files/a//b",
            "s3://files/../b",
            "s3://files/a?versionId=1",
            "http://files/a",
            "file:///a",
        ] {
            assert_eq!(Address::read(url, []).err(), Some(BadAddress::NotABucket), "{url}");
        }
    }

    #[test]
    fn variables_that_no_request_can_carry_are_named() {
        for (name, value, good) in [
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000", true),
            ("AWS_ENDPOINT_URL", "127.0.0.1:9000", false),
            ("AWS_ENDPOINT_URL_S3", "ht!tp://x y", false),
            ("AWS_ENDPOINT_URL", "https://user:geheim@host", false),
            ("AWS_ACCESS_KEY_ID", "a\nb", false),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/1", true),
        ] {
            let read = Address::read("s3://files", [(name, value)]);
            assert_eq!(read.is_ok(), good, "{name}={value}");
            if let Err(why) = read {
                assert!(why.to_string().starts_with(name) && !why.to_string().contains("geheim"), "{why}");
            }
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let address = Address::read("s3://files/a", [("AWS_SECRET_ACCESS_KEY", "geheim")]).unwrap();
        assert!(!format!("{address:?} {address}").contains("geheim"));
    }
}
