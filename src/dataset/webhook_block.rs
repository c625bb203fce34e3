//! A `[[webhook]]` of the operator's file, as it is read.

use std::net::Ipv4Addr;

use serde::Deserialize;
use toml::Spanned;
use url::{Host, Url};

use crate::dataset::listener_block::{self, Known, List, Mistakes};
use crate::dataset::name::is_name;
use crate::event::address::refusal;
use crate::event::{Listener, Webhook};

/// The members, as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WebhookBlock {
    name: Spanned<String>,
    url: Spanned<String>,
    secret_env: Spanned<String>,
    events: Option<List>,
    datasets: Option<List>,
    consumers: Option<List>,
    #[serde(default)]
    allow_http: bool,
    #[serde(default)]
    allow_private: bool,
}

/// The webhooks of a file, and all that is wrong with them.
pub(super) fn read(blocks: Vec<Spanned<WebhookBlock>>, known: &Known<'_>) -> (Vec<Webhook>, Mistakes) {
    let (mut webhooks, mut mistakes) = (Vec::<Webhook>::new(), Vec::new());
    for block in blocks {
        let (at, block) = (block.span().start, block.into_inner());
        if webhooks.iter().any(|other| other.listener.name == *block.name.as_ref()) {
            mistakes.push((at, format!("webhook {}: there is a webhook of this name already", block.name.as_ref())));
            continue;
        }
        webhooks.push(block.read(known, &mut mistakes));
    }
    (webhooks, mistakes)
}

impl WebhookBlock {
    fn read(self, known: &Known<'_>, mistakes: &mut Mistakes) -> Webhook {
        let name = self.name.as_ref().clone();
        let mut wrong = |at: usize, member: &str, why: &str| {
            mistakes.push((at, format!("webhook {name}: {member}: {why}")));
        };
        if !is_name(&name) {
            let why = "1 to 63 characters of a-z 0-9 _ -, beginning with a letter, are expected";
            wrong(self.name.span().start, "name", why);
        }
        let url = read_url(self.url.as_ref(), self.allow_http, self.allow_private).unwrap_or_else(|why| {
            wrong(self.url.span().start, "url", &why);
            String::new()
        });
        listener_block::check_variable("secret_env", &self.secret_env, "the secret", known, &mut wrong);
        let events = listener_block::events(self.events.as_ref(), &mut wrong);
        let datasets = listener_block::datasets(self.datasets, known, &mut wrong);
        let consumers = listener_block::consumers(self.consumers.as_ref(), &mut wrong);
        Webhook {
            listener: Listener { name, events, datasets, consumers },
            url,
            secret_env: self.secret_env.into_inner(),
            allows_private: self.allow_private,
        }
    }
}

/// An address that events may be posted to, as a browser would write it: whoever posts there doesn't read it in another way. No message quotes
/// it, since it may have a token in its path.
fn read_url(text: &str, allows_http: bool, allows_private: bool) -> Result<String, String> {
    // The parser would leave them out.
    if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err("it has a space or a control character".to_owned());
    }
    let expected = || "an address such as https://example.com/hooks/cdc is expected".to_owned();
    // Of one slash or three, or one that leans back, the parser would make two, and a host of what follows.
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
    // Of a name that is found out when it is looked up.
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
    use crate::dataset::assert_lines;
    use crate::dataset::catalog::Catalog;
    use crate::job::Status;

    const ORDERS: &str = "[[dataset]]\nname = \"orders\"\ntable = \"orders\"\n";

    /// What is wrong with webhooks, the first of whose blocks begins in line 4.
    fn wrong(blocks: &str) -> String {
        Catalog::from_toml(&format!("{ORDERS}{blocks}")).unwrap_err().to_string()
    }

    #[test]
    fn everything_may_be_said() {
        let catalog = Catalog::from_toml(&format!(
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
            "
        ))
        .unwrap();
        let [airflow, here] = catalog.webhooks() else { panic!("two") };
        assert_eq!(airflow.listener.events, [Status::Completed, Status::Failed]);
        assert_eq!(airflow.listener.datasets.as_deref(), Some(&["orders".to_owned()][..]));
        assert_eq!(airflow.listener.consumers.as_ref().map(Vec::len), Some(2));
        assert!(!airflow.allows_private && here.allows_private);
        assert_eq!(airflow.url, "https://airflow.example.com/hooks/cdc?x=1");
        assert_eq!(here.url, "http://127.0.0.1:9000/", "as it is connected to");
        assert_eq!(here.listener.events, [Status::Completed, Status::Failed, Status::Cancelled]);
        assert_eq!((&here.listener.datasets, &here.listener.consumers), (&None, &None));
    }

    #[test]
    fn each_mistake_is_told_with_its_line() {
        let found = wrong(
            "[[webhook]]
name = \"A\"
url = \"http://a.example/token\"
secret_env = \"whsec_secret=\"
events = [\"export.done\"]
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
",
        );
        let expected = [
            "line 5: webhook A: name: 1 to 63",
            "line 6: webhook A: url: everybody on the way",
            "line 7: webhook A: secret_env: the name of a variable",
            "line 8: webhook A: events: `export.done` is none of export.completed, export.failed, export.cancelled",
            "line 9: webhook A: datasets: ",
            "line 10: webhook A: consumers: ",
            "line 13: webhook b: url: a name and a password",
            "line 15: webhook b: events: an empty list",
            "line 16: webhook b: there is a webhook of this name already",
        ];
        assert_lines(&found, &expected);
        assert!(!found.contains("secret@") && !found.contains("token"), "{found}");
    }

    #[test]
    fn an_address_is_one_of_the_web() {
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
