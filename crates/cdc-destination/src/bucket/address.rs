//! The address of a bucket, and the clients that reach it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use crate::bucket::connector::Connector;

/// A client that writes objects whole and in parts, and signs URLs.
pub(super) trait Remote: ObjectStore + MultipartStore + Signer {}
impl<T: ObjectStore + MultipartStore + Signer> Remote for T {}

pub(super) type Client = Arc<dyn Remote>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns the retries of a request. They take less time than a lease; the callers try again after that.
fn retries() -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(5), base: 2.0 };
    RetryConfig { backoff, max_retries: 4, retry_timeout: Duration::from_secs(20) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cloud {
    S3,
    Gcs,
    Azure,
}

struct CloudSpec {
    /// The scheme of the provider's URLs.
    scheme: &'static str,
    /// The prefix of the names of the provider's variables.
    prefix: &'static str,
    /// The variables that the service takes, as the guide lists them.
    variables: &'static [&'static str],
}

impl Cloud {
    const ALL: [Cloud; 3] = [Cloud::S3, Cloud::Gcs, Cloud::Azure];

    fn spec(self) -> CloudSpec {
        match self {
            Cloud::S3 => CloudSpec { scheme: "s3://", prefix: "AWS_", variables: &S3_VARIABLES },
            Cloud::Gcs => CloudSpec { scheme: "gs://", prefix: "GOOGLE_", variables: &GCS_VARIABLES },
            Cloud::Azure => CloudSpec { scheme: "az://", prefix: "AZURE_", variables: &AZURE_VARIABLES },
        }
    }

    /// Returns true for a variable that the client would obey, and the service doesn't take. The bucket is named by the
    /// URL, and other programs have a variable for theirs.
    fn refuses(self, name: &str) -> bool {
        let is_own = name.starts_with(self.spec().prefix);
        let name = name.to_lowercase();
        let is_key = match self {
            Cloud::S3 => name.parse().is_ok_and(|key| !matches!(key, AmazonS3ConfigKey::Bucket)),
            Cloud::Gcs => name.parse().is_ok_and(|key| !matches!(key, GoogleConfigKey::Bucket)),
            Cloud::Azure => name.parse().is_ok_and(|key| !matches!(key, AzureConfigKey::ContainerName)),
        };
        // The timeouts are the service's own.
        is_own && is_key && !name.ends_with("_timeout")
    }
}

const S3_VARIABLES: [&str; 21] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_ALLOW_HTTP",
    "AWS_CHECKSUM_ALGORITHM",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_REGION",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SESSION_TOKEN",
    "AWS_SKIP_SIGNATURE",
    "AWS_SSE_KMS_KEY_ID",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
];

const GCS_VARIABLES: [&str; 5] = [
    "GOOGLE_ALLOW_HTTP",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_SKIP_SIGNATURE",
];

const AZURE_VARIABLES: [&str; 12] = [
    "AZURE_ALLOW_HTTP",
    "AZURE_AUTHORITY_HOST",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_SKIP_SIGNATURE",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_USE_EMULATOR",
    "AZURE_TENANT_ID",
];

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    #[error("none of s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX and file:///PATH")]
    NotABucket,
    #[error("{0} has a line break or another control character")]
    Control(String),
    /// A variable is one that the service doesn't take, although the client of the store would.
    #[error("{0} is not supported: unset it")]
    NotSupported(String),
    #[error("{0} is no address as https://HOST:PORT, without a name, a password or a query in it")]
    NotAnAddress(String),
}

/// The URL of a bucket, with the variables of its cloud: credentials, region, endpoint.
#[derive(Clone)]
pub struct BucketAddress {
    cloud: Cloud,
    bucket: String,
    pub(super) prefix: Path,
    variables: Vec<(String, String)>,
}

impl BucketAddress {
    /// Parses a URL, and takes the variables of its cloud from `variables`. Ignores variables that only other programs
    /// of the cloud read.
    pub fn read<'v>(
        url: &str,
        variables: impl IntoIterator<Item = (&'v str, &'v str)>,
    ) -> Result<BucketAddress, BadAddress> {
        let rest_of = |cloud: Cloud| Some((cloud, url.strip_prefix(cloud.spec().scheme)?));
        let (cloud, rest) = Cloud::ALL.into_iter().find_map(rest_of).ok_or(BadAddress::NotABucket)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if bucket.is_empty() || !bucket.chars().all(is_name) || prefix.contains(['?', '#']) {
            return Err(BadAddress::NotABucket);
        }
        let prefix = Path::parse(prefix.trim_end_matches('/')).map_err(|_| BadAddress::NotABucket)?;
        let (known, others): (Vec<_>, Vec<_>) =
            variables.into_iter().partition(|(name, _)| cloud.spec().variables.contains(name));
        // One of them switches off the check of certificates.
        if let Some((name, _)) = others.iter().filter(|(name, _)| cloud.refuses(name)).min() {
            return Err(BadAddress::NotSupported((*name).to_owned()));
        }
        let mut variables: Vec<_> =
            known.into_iter().map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        // If two variables mean the same, the order decides which one counts.
        variables.sort_unstable();
        for (name, value) in &variables {
            let told = || name.to_uppercase();
            // The key of a service account has line breaks.
            if value.contains(char::is_control) && !name.ends_with("_account_key") {
                return Err(BadAddress::Control(told()));
            }
            let is_address = name.contains("endpoint") || name.contains("_url") || name.ends_with("_uri");
            if is_address && !name.ends_with("relative_uri") && !is_plain(value) {
                return Err(BadAddress::NotAnAddress(told()));
            }
        }
        Ok(BucketAddress { cloud, bucket: bucket.to_owned(), prefix, variables })
    }

    /// Returns true if uploads give objects no metadata, and no empty part is taken.
    pub(super) fn is_azure(&self) -> bool {
        self.cloud == Cloud::Azure
    }

    pub(super) fn client(&self, options: ClientOptions, connector: Connector) -> Result<Client, object_store::Error> {
        http_client::provide();
        let options = options.with_connect_timeout(CONNECT_TIMEOUT);
        Ok(match self.cloud {
            Cloud::S3 => {
                let mut builder = AmazonS3Builder::new().with_client_options(options).with_retry(retries());
                // The answer to a bulk deletion reports a refusal as a success.
                builder = builder.with_config(AmazonS3ConfigKey::DisableBulkDelete, "true");
                let is_endpoint =
                    |name: &str| matches!(name, "aws_endpoint" | "aws_endpoint_url" | "aws_endpoint_url_s3");
                if !self.variables.iter().any(|(name, _)| is_endpoint(name)) {
                    // With a checksum, S3 refuses a part that changed on the way.
                    builder = builder.with_checksum_algorithm(Checksum::SHA256);
                }
                builder = self.parsed().fold(builder, |builder, (key, value)| builder.with_config(key, value));
                Arc::new(builder.with_bucket_name(&self.bucket).with_http_connector(connector).build()?)
            }
            Cloud::Gcs => {
                let builder = GoogleCloudStorageBuilder::new().with_client_options(options).with_retry(retries());
                let builder = self.parsed().fold(builder, |builder, (key, value)| builder.with_config(key, value));
                Arc::new(builder.with_bucket_name(&self.bucket).with_http_connector(connector).build()?)
            }
            Cloud::Azure => {
                let builder = MicrosoftAzureBuilder::new().with_client_options(options).with_retry(retries());
                let builder = self.parsed().fold(builder, |builder, (key, value)| builder.with_config(key, value));
                Arc::new(builder.with_container_name(&self.bucket).with_http_connector(connector).build()?)
            }
        })
    }

    /// Returns the variable that prevents a client: without it, a client can be made.
    pub(super) fn culprit(&self) -> Option<String> {
        let is_to_blame = |(at, _): &(usize, _)| {
            let mut without = self.clone();
            without.variables.remove(*at);
            without.client(ClientOptions::new(), Connector::Small).is_ok()
        };
        let (_, (name, _)) = self.variables.iter().enumerate().find(is_to_blame)?;
        Some(name.to_uppercase())
    }

    fn parsed<K: FromStr>(&self) -> impl Iterator<Item = (K, &str)> {
        self.variables.iter().filter_map(|(name, value)| Some((name.parse().ok()?, value.as_str())))
    }

    pub(super) fn url(&self, key: &str) -> String {
        format!("{}{}/{key}", self.cloud.spec().scheme, self.bucket)
    }

    /// Returns true if the URL is that of an object with this name, below any prefix of any bucket of this cloud: a
    /// copied manifest has the URLs of the original.
    pub(super) fn is_url_of(&self, url: &str, name: &str) -> bool {
        let key = url.strip_prefix(self.cloud.spec().scheme).and_then(|rest| rest.split_once('/')).map(|(_, key)| key);
        key.and_then(|key| key.strip_suffix(name)).is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('/'))
    }
}

impl fmt::Display for BucketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url(self.prefix.as_ref()))
    }
}

/// Leaves out the variables, which have secrets.
impl fmt::Debug for BucketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BucketAddress({self})")
    }
}

/// Returns true for an HTTP URL without a password or a token in a query, because error messages show the URL.
fn is_plain(address: &str) -> bool {
    url::Url::parse(address).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
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
            assert_eq!(BucketAddress::read(url, []).unwrap().to_string(), shown);
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
            assert_eq!(BucketAddress::read(url, []).err(), Some(BadAddress::NotABucket), "{url}");
        }
    }

    #[test]
    fn variables_that_no_request_can_carry_are_named() {
        for (name, value, good) in [
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000", true),
            ("AWS_ENDPOINT_URL", "127.0.0.1:9000", false),
            ("AWS_ENDPOINT_URL_S3", "ht!tp://x y", false),
            ("AWS_ENDPOINT_URL", "https://user:geheim@host", false),
            ("AWS_ENDPOINT_URL", "https://host/?sig=geheim", false),
            ("AWS_ENDPOINT_URL", "https://host/#geheim", false),
            ("AWS_ACCESS_KEY_ID", "a\nb", false),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/1", true),
        ] {
            let read = BucketAddress::read("s3://files", [(name, value)]);
            assert_eq!(read.is_ok(), good, "{name}={value}");
            if let Err(why) = read {
                assert!(why.to_string().starts_with(name) && !why.to_string().contains("geheim"), "{why}");
            }
        }
    }

    #[test]
    fn variables_that_are_not_supported_are_refused_or_ignored() {
        for (url, name) in [
            ("s3://files", "AWS_ALLOW_INVALID_CERTIFICATES"),
            ("s3://files", "AWS_IMDSV1_FALLBACK"),
            ("s3://files", "AWS_METADATA_ENDPOINT"),
            ("s3://files", "AWS_PROXY_URL"),
            ("s3://files", "AWS_UNSIGNED_PAYLOAD"),
            ("gs://files", "GOOGLE_ALLOW_INVALID_CERTIFICATES"),
            ("gs://files", "GOOGLE_BEARER_TOKEN"),
            ("az://files", "AZURE_ALLOW_INVALID_CERTIFICATES"),
            ("az://files", "AZURE_USE_AZURE_CLI"),
        ] {
            let read = BucketAddress::read(url, [(name, "true")]);
            assert_eq!(read.err(), Some(BadAddress::NotSupported(name.to_owned())));
            // It is another cloud's.
            let other = if url == "s3://files" { "gs://files" } else { "s3://files" };
            assert!(BucketAddress::read(other, [(name, "true")]).is_ok(), "{name}");
        }
        for name in ["AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_BUCKET", "AWS_TIMEOUT", "AWS_STS_REGIONAL_ENDPOINTS", "TOKEN"]
        {
            let read = BucketAddress::read("s3://files", [(name, "true")]).unwrap();
            assert_eq!(read.variables, []);
        }
    }

    #[test]
    fn the_guide_has_every_variable() {
        let guide = include_str!("../../../../docs/guides/buckets.md");
        let variables = Cloud::ALL.into_iter().flat_map(|cloud| cloud.spec().variables);
        for name in variables.filter(|name| !matches!(**name, "AWS_ENDPOINT" | "AZURE_STORAGE_USE_EMULATOR")) {
            assert!(guide.contains(&format!("`{name}`")) || guide.contains(&format!("`{name}=true`")), "{name}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let address = BucketAddress::read("s3://files/a", [("AWS_SECRET_ACCESS_KEY", "geheim")]).unwrap();
        assert!(!format!("{address:?} {address}").contains("geheim"));
    }
}
