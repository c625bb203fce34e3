//! Reads the settings of the destination of files.

use crate::config::Error;
use crate::config::variables::{Variables, invalid};
use crate::publisher;
use cdc_manifest::SigningKey;

pub(super) fn read(vars: &Variables) -> Result<cdc_destination::Settings, Error> {
    let Some(url) = vars.get("OUTPUT_URL") else {
        return Ok(cdc_destination::Settings::Folder(vars.get("OUTPUT_DIR").unwrap_or("./output").into()));
    };
    if vars.get("OUTPUT_DIR").is_some() {
        return Err(invalid("OUTPUT_URL", "OUTPUT_DIR is set too: files go to one place"));
    }
    at_url(vars, "OUTPUT_URL", url)
}

pub(super) fn at_url(vars: &Variables, name: &'static str, url: &str) -> Result<cdc_destination::Settings, Error> {
    if url.starts_with("file:") {
        let path = url::Url::parse(url).ok().and_then(|url| url.to_file_path().ok());
        let no_path = || invalid(name, "a file:// URL has an absolute path, as file:///srv/exports");
        return path.map(cdc_destination::Settings::Folder).ok_or_else(no_path);
    }
    bucket(vars, name, url)
}

#[cfg(feature = "buckets")]
fn bucket(vars: &Variables, name: &'static str, url: &str) -> Result<cdc_destination::Settings, Error> {
    let address =
        cdc_destination::BucketAddress::read(url, vars.all()).map_err(|why| invalid(name, why.to_string()))?;
    Ok(cdc_destination::Settings::Bucket(cdc_destination::BucketSettings {
        address,
        part_bytes: vars.bytes("OUTPUT_PART_SIZE", 8 << 20, 5 << 20..=64 << 20)? as usize,
    }))
}

#[cfg(not(feature = "buckets"))]
fn bucket(_vars: &Variables, name: &'static str, _url: &str) -> Result<cdc_destination::Settings, Error> {
    Err(invalid(
        name,
        "this build writes to folders only (file:///PATH): for buckets build it with `cargo build --release --features full`",
    ))
}

/// Reads the settings of manifests: MANIFESTS, which is on by default for a bucket, and MANIFEST_KEY, which signs them.
pub(super) fn publisher(vars: &Variables, output: &cdc_destination::Settings) -> Result<publisher::Settings, Error> {
    let is_bucket = output.folder().is_none();
    let writes_manifests = vars.one_of_two("MANIFESTS", [("on", true), ("off", false)])?.unwrap_or(is_bucket);
    // The message doesn't quote the text, which is a secret.
    let read = |seed: &str| SigningKey::read(seed).ok_or("64 hexadecimal digits are expected");
    Ok(publisher::Settings { writes_manifests, key: vars.optional("MANIFEST_KEY", read)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<cdc_destination::Settings, String> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        super::read(&Variables(variables)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_folder_has_a_path_or_a_url() {
        for (variables, folder) in [
            (&[][..], "./output"),
            (&[("OUTPUT_DIR", "/srv/a b")], "/srv/a b"),
            (&[("OUTPUT_URL", "file:///srv/exports")], "/srv/exports"),
            // The form of `location` in the API.
            (&[("OUTPUT_URL", "file:///srv/a%20b")], "/srv/a b"),
            (&[("OUTPUT_URL", ""), ("OUTPUT_DIR", "x")], "x"),
        ] {
            assert_eq!(read(variables).unwrap().folder().unwrap().to_str().unwrap(), folder);
        }
    }

    #[test]
    fn files_go_to_one_place() {
        for url in ["file://exports", "https://files", "s3://key:secret@files"] {
            let line = read(&[("OUTPUT_URL", url)]).unwrap_err();
            assert!(line.starts_with("OUTPUT_URL: ") && !line.contains("secret"), "{line}");
        }
        let line = read(&[("OUTPUT_URL", "s3://files"), ("OUTPUT_DIR", "./output")]).unwrap_err();
        assert_eq!(line, "OUTPUT_URL: OUTPUT_DIR is set too: files go to one place");
    }

    #[cfg(feature = "buckets")]
    #[test]
    fn a_bucket_has_parts() {
        let bucket = read(&[("OUTPUT_URL", "s3://files/a"), ("OUTPUT_PART_SIZE", "64MiB")]).unwrap();
        assert!(matches!(&bucket, cdc_destination::Settings::Bucket(bucket) if bucket.part_bytes == 64 << 20));
        assert_eq!(bucket.to_string(), "s3://files/a");
        for size in ["4MiB", "65MiB"] {
            let line = read(&[("OUTPUT_URL", "s3://files"), ("OUTPUT_PART_SIZE", size)]).unwrap_err();
            assert!(line.starts_with("OUTPUT_PART_SIZE: "), "{line}");
        }
    }
}
