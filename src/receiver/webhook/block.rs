//! Reads a `[[webhook]]` block of the operator's file.

use std::net::Ipv4Addr;

use url::{Host, Url};

use crate::dataset::block::Block;
use crate::dataset::listener::{Known, listener};
use crate::receiver::webhook::Webhook;
use crate::receiver::webhook::address::refusal;
use crate::receiver::webhook::body_shape::BodyShape;

/// Reads one block. Returns `None` if a member that a webhook needs is missing or wrong.
pub(super) fn webhook(block: &mut Block<'_, '_>, known: &Known<'_>) -> Option<Webhook> {
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
    use crate::dataset::assert_lines;
    use crate::dataset::block::{Names, OperatorFile};
    use crate::dataset::catalog::Catalog;
    use crate::dataset::fault::Mistakes;

    const ORDERS: &str = "[[dataset]]\nname = \"orders\"\ntable = \"orders\"\n";

    fn read(text: &str) -> Result<Vec<Webhook>, Mistakes> {
        let (mut webhooks, mut names) = (Vec::new(), Names::default());
        let read = |file: &mut OperatorFile<'_>, known: &Known<'_>| {
            file.each_block("webhook", &mut names, |block| webhooks.extend(webhook(block, known)));
            Vec::new()
        };
        Catalog::with_receivers(text, &["webhook"], |_| false, read)?;
        Ok(webhooks)
    }

    /// Returns the faults of webhooks, the first of whose blocks begins in line 4.
    fn wrong(blocks: &str) -> String {
        read(&format!("{ORDERS}{blocks}")).unwrap_err().to_string()
    }

    #[test]
    fn every_member_is_read() {
        let webhooks = read(&format!(
            "{ORDERS}
            [[webhook]]
            name = \"airflow\"
            url = \"https://airflow.example.com/hooks/cdc?x=1\"
            secret_env = \"AIRFLOW_WEBHOOK_SECRET\"
            events = [\"export.completed\", \"export.failed\"]
            datasets = [\"orders\"]
            consumers = [\"search\", \"a@b\"]

            [[webhook]]
            name = \"here\"
            url = \"http://0x7f.1:9000\"
            secret_env = \"_S2\"
            allow_http = true
            allow_private = true

            [[webhook]]
            name = \"chat\"
            url = \"https://hooks.slack.example/services/T0\"
            shape = \"slack\"
            "
        ))
        .unwrap();
        let [airflow, here, chat] = webhooks.as_slice() else { panic!("three") };
        assert_eq!((airflow.shape, chat.shape, &chat.secret_env), (BodyShape::CloudEvents, BodyShape::Slack, &None));
        let names = |webhook: &Webhook| webhook.listener.events.iter().map(|event| event.name()).collect::<Vec<_>>();
        assert_eq!(names(airflow), ["export.completed", "export.failed"]);
        assert_eq!(airflow.listener.datasets.as_deref(), Some(&["orders".to_owned()][..]));
        assert_eq!(airflow.listener.consumers.as_ref().map(Vec::len), Some(2));
        assert!(!airflow.allows_private && here.allows_private);
        assert_eq!(airflow.url, "https://airflow.example.com/hooks/cdc?x=1");
        assert_eq!(here.url, "http://127.0.0.1:9000/", "as it is connected to");
        assert_eq!(names(here), ["export.completed", "export.failed", "export.cancelled"]);
        assert_eq!((&here.listener.datasets, &here.listener.consumers), (&None, &None));
    }

    #[test]
    fn each_fault_is_reported_with_its_line() {
        let found = wrong(
            "[[webhook]]
name = \"A\"
url = \"http://a.example/token\"
secret_env = \"whsec_secret=\"
events = [\"job.failed\"]
datasets = [\"order\"]
consumers = [\"a b\"]
[[webhook]]
name = \"b\"
url = \"https://u:secret@b.example/\"
secret_env = \"B\"
events = []
[[webhook]]
name = \"b\"
url = \"https://b.example/\"
secret_env = \"B\"
[[webhook]]
name = \"c\"
url = \"https://c.example/\"
shape = \"irc\"
",
        );
        let expected = [
            "line 5: webhook A: name: 1 to 63",
            "line 6: webhook A: url: everybody on the way",
            "line 7: webhook A: secret_env: the name of a variable",
            "line 8: webhook A: events: `job.failed` is none of export.completed, export.skipped, export.failed, export.cancelled",
            "line 9: webhook A: datasets: ",
            "line 10: webhook A: consumers: ",
            "line 13: webhook b: url: a name and a password",
            "line 15: webhook b: events: an empty list",
            "line 16: webhook b: there is a webhook of this name already",
            "line 23: webhook c: shape: `irc` is not a shape",
            "line 20: webhook: missing field `secret_env`",
        ];
        assert_lines(&found, &expected);
        assert!(!found.contains("secret@") && !found.contains("token"), "{found}");
    }

    #[test]
    fn addresses_that_are_no_safe_url_are_refused() {
        for url in [
            "ftp://a.example/",
            "https:///",
            "https:///a.example/",
            "https:/a.example/",
            "https:a.example",
            "https:\\\\\\\\a.example/",
            "https://a.example\\\\@b.example/",
            "a.example/hooks",
            "https://a.example/#x",
            "file:///etc/passwd",
            "https://a:0/",
            "https://a.example/hooks\\tcdc",
            "https://a.example/ ",
            "https://10.0.0.1/",
            "https://[::1]/",
            "https://169.254.169.254/",
        ] {
            let found = wrong(&format!("[[webhook]]\nname = \"a\"\nurl = \"{url}\"\nsecret_env = \"A\"\n"));
            assert!(found.starts_with("line 6: webhook a: url: "), "{url} {found}");
        }
    }
}
