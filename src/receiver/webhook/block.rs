//! Reads a `[[webhook]]` block of the operator's file.

use std::net::Ipv4Addr;

use url::{Host, Url};

use crate::catalog::block::Block;
use crate::catalog::listener::{KnownNames, listener};
use crate::receiver::webhook::Webhook;
use crate::receiver::webhook::address::refusal;
use crate::receiver::webhook::body_shape::BodyShape;

pub(super) fn webhook(block: &mut Block<'_, '_>, known: &KnownNames<'_>) -> Option<Webhook> {
    let (allows_http, allows_private) = (block.flag("allow_http", false), block.flag("allow_private", false));
    let url = block.required("url", |url| read_url(url, allows_http, allows_private));
    let shape = block.or_default("shape", BodyShape::CloudEvents, str::parse);
    let secret_env = match shape {
        Some(BodyShape::Slack | BodyShape::Teams) if !block.has("secret_env") => {
            block.text("secret_env");
            Some(None)
        }
        _ => block.required("secret_env", |name| known.secret_variable(name, "the secret")).map(Some),
    };
    let listener = listener(block, known);
    Some(Webhook { listener, url: url?, shape: shape?, secret_env: secret_env?, allows_private, secrets: None })
}

/// Parses the address that events are posted to, and returns it in the URL standard's form, which every HTTP client
/// reads the same way. No message quotes the address, since its path may have a token.
fn read_url(text: &str, allows_http: bool, allows_private: bool) -> Result<String, String> {
    // The parser would leave such characters out.
    if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err("it has a space or a control character".to_owned());
    }
    let expected = || "an address such as https://example.com/hooks/cdc is expected".to_owned();
    // The parser would turn one slash, three slashes or a backslash into two slashes, and take what follows for a host.
    let is_plain = text.split_once("://").is_some_and(|(_, rest)| !rest.starts_with('/')) && !text.contains('\\');
    let url = Url::parse(text).ok().filter(|_| is_plain).ok_or_else(expected)?;
    match url.scheme() {
        "https" => {}
        "http" if allows_http => {}
        "http" => {
            let why = "everybody on the way could read the events: https is expected, or `allow_http = true`";
            return Err(why.to_owned());
        }
        _ => return Err("https is expected".to_owned()),
    }
    if !url.username().is_empty() || url.password().is_some() {
        let why = "a name and a password in it would be in the file: the receiver knows the service by its signature";
        return Err(why.to_owned());
    }
    if url.fragment().is_some() {
        return Err("what comes after # is never sent".to_owned());
    }
    if url.host_str().is_none_or(str::is_empty) || url.port() == Some(0) {
        return Err("a host is expected".to_owned());
    }
    // A host name is checked when it is looked up.
    let address = match url.host() {
        Some(Host::Ipv4(v4)) => Some(v4.into()),
        Some(Host::Ipv6(v6)) => Some(v6.into()),
        Some(Host::Domain("localhost" | "localhost.")) => Some(Ipv4Addr::LOCALHOST.into()),
        _ => None,
    };
    if let Some(why) = address.and_then(|address| refusal(address, allows_private)) {
        return Err(format!("its address {why}"));
    }
    Ok(url.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::block::{Names, OperatorFile};
    use crate::catalog::mistake::Mistakes;
    use crate::catalog::{Catalog, assert_refused};

    const BLOCK: &str = "[[webhook]]
name = \"hook\"
url = \"http://0x7f.1:9000\"
secret_env = \"_S2\"
allow_http = true
allow_private = true
";

    fn read(block: &str) -> Result<Webhook, Mistakes> {
        let (mut webhooks, mut names) = (Vec::new(), Names::default());
        let read = |file: &mut OperatorFile<'_>, known: &KnownNames<'_>| {
            file.each_block("webhook", &mut names, |block| webhooks.extend(webhook(block, known)));
            Vec::new()
        };
        Catalog::with_receivers(block, &["webhook"], |_| false, read)?;
        Ok(webhooks.remove(0))
    }

    #[test]
    fn every_member_is_read() {
        let events = |webhook: &Webhook| webhook.listener.events.iter().map(|event| event.name()).collect::<Vec<_>>();
        let plain = read(BLOCK).unwrap();
        assert_eq!(plain.url, "http://127.0.0.1:9000/", "as it is connected to");
        assert_eq!(events(&plain), ["export.completed", "export.failed", "export.cancelled"]);
        assert_eq!((&plain.listener.datasets, &plain.listener.consumers), (&None, &None));
        assert_eq!((plain.shape, plain.allows_private), (BodyShape::CloudEvents, true));
        let all = "[[webhook]]
name = \"chat\"
url = \"https://hooks.slack.example/services/T0?x=1\"
shape = \"slack\"
events = [\"export.completed\", \"export.failed\"]
datasets = [\"users\"]
consumers = [\"search\", \"a@b\"]";
        let all = read(all).unwrap();
        assert_eq!((&*all.url, all.shape), ("https://hooks.slack.example/services/T0?x=1", BodyShape::Slack));
        assert_eq!((&all.secret_env, all.allows_private), (&None, false));
        assert_eq!(events(&all), ["export.completed", "export.failed"]);
        assert_eq!(all.listener.datasets.as_deref(), Some(&["users".to_owned()][..]));
        assert_eq!(all.listener.consumers.as_ref().map(Vec::len), Some(2));
    }

    #[test]
    fn a_webhook_that_cannot_be_used_is_refused() {
        let cases = [
            ("allow_http\nurl = \"http://a.example/hidden\"", "line 5: webhook hook: url: everybody on the way"),
            ("url = \"https://u:hidden@b.example/\"", "url: a name and a password"),
            ("secret_env", "missing field `secret_env`"),
            ("secret_env = \"whsec_hidden=\"", "secret_env: the name of a variable"),
            ("shape = \"irc\"", "shape: `irc` is not a shape"),
            ("events = []", "events: an empty list"),
            (
                "events = [\"job.failed\"]",
                "events: `job.failed` is none of export.completed, export.skipped, export.failed, export.cancelled",
            ),
            ("datasets = [\"order\"]", "datasets: there is no dataset `order`; there are: users"),
            ("consumers = [\"a b\"]", "consumers: a consumer id has"),
        ];
        assert_refused(BLOCK, &cases, read);
    }

    #[test]
    fn addresses_that_are_no_safe_url_are_refused() {
        for url in [
            "ftp://a.example/",
            "https:///",
            "https:///a.example/",
            "https:/a.example/",
            "https:a.example",
            "https:\\\\a.example/",
            "https://a.example\\@b.example/",
            "a.example/hooks",
            "https://a.example/#x",
            "file:///etc/passwd",
            "https://a:0/",
            "https://a.example/hooks\tcdc",
            "https://a.example/ ",
            "https://10.0.0.1/",
            "https://[::1]/",
            "https://169.254.169.254/",
        ] {
            assert!(read_url(url, false, false).is_err(), "{url}");
        }
    }
}
