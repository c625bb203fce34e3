//! One post of an event: its headers, and what the receiver may do with it.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, header};

use crate::telemetry::chain;
use crate::tls;
use crate::trace::TraceParent;
use crate::webhook::Receiver;
use crate::webhook::address::CheckedResolver;

/// How long a post may take, from the look-up of the receiver's name to the end of its answer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How much of an answer is read. It is of no use; but a connection whose answer was read to its end can be used again.
const ANSWER_BYTES: usize = 4 << 10;

/// Posts to one receiver.
pub(super) struct Poster {
    client: Result<Client, String>,
    receiver: Receiver,
}

impl Poster {
    pub(super) fn new(receiver: Receiver) -> Poster {
        let resolver = CheckedResolver { allows_private: receiver.webhook.allows_private };
        // A receiver that moves has to be named anew: whoever could answer in its place could send the events anywhere. A redirect is an
        // answer like any other that isn't 2xx.
        let client = tls::client(&receiver.webhook.url)
            .dns_resolver(Arc::new(resolver))
            // Behind a proxy nobody checks which address is connected to.
            .no_proxy()
            .timeout(TIMEOUT);
        Poster { client: client.build().map_err(|why| chain(&why)), receiver }
    }

    /// What posts.
    ///
    /// # Errors
    /// With the reason why nothing can.
    pub(super) fn client(&self) -> Result<&Client, String> {
        self.client.as_ref().map_err(Clone::clone)
    }

    /// Posts an event, and returns the answer's status.
    ///
    /// # Errors
    /// With the reason why there was no answer.
    pub(super) async fn post(&self, id: &str, body: String, trace: Option<TraceParent>) -> Result<u16, String> {
        let timestamp = chrono::Utc::now().timestamp();
        let post = self
            .client()?
            .post(&self.receiver.webhook.url)
            .header(header::CONTENT_TYPE, "application/cloudevents+json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp.to_string())
            .header("webhook-signature", self.receiver.secrets.sign(id, timestamp, &body));
        let post = match trace {
            Some(place) => post.header("traceparent", place.to_string()),
            None => post,
        };
        let mut answer = post.body(body).send().await.map_err(|error| tls::reason(&error))?;
        // The status is what counts, however the rest of the answer ends.
        let mut read = 0;
        while read < ANSWER_BYTES
            && let Ok(Some(piece)) = answer.chunk().await
        {
            read += piece.len();
        }
        Ok(answer.status().as_u16())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::event::{Listener, Webhook};

    /// A name leads where its owner says: what it leads to is found out at each connection.
    #[tokio::test]
    async fn a_name_is_refused_by_its_address() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://localhost:{}/token", listener.local_addr().unwrap().port());

        let poster = |url: &str, allows_private| {
            let listener = Listener { name: "a".to_owned(), events: Vec::new(), datasets: None, consumers: None };
            let webhook = Webhook { listener, url: url.to_owned(), secret_env: String::new(), allows_private };
            Poster::new(Receiver { webhook, secrets: "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3".parse().unwrap() })
        };
        let refused = poster(&url, false).post("id", "{}".to_owned(), None).await.unwrap_err();
        assert!(
            refused.starts_with("its address ") && refused.ends_with(" is private: `allow_private = true` allows it"),
            "{refused}"
        );
        let allowed = poster(&url, true);
        let (post, connected) =
            tokio::join!(allowed.post("id", "{}".to_owned(), None), async { listener.accept().await.map(drop) });
        assert!(connected.is_ok() && !post.unwrap_err().contains("token"));
        drop(listener);
        assert_eq!(allowed.post("id", "{}".to_owned(), None).await.unwrap_err(), "connection refused");
        let unknown =
            poster("http://no-such-host.invalid/token", true).post("id", "{}".to_owned(), None).await.unwrap_err();
        assert!(unknown.contains("failed to lookup address information") && !unknown.contains("token"), "{unknown}");
    }
}
