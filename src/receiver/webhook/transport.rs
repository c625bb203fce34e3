//! Posts events to one webhook.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::{Client, header};

use crate::delivery::{DeliveryResult, Event, Transport};
use crate::receiver::webhook::Webhook;
use crate::receiver::webhook::body_shape::BodyShape;
use crate::receiver::webhook::resolver::CheckedResolver;
use crate::receiver::webhook::signature::SigningSecrets;
use crate::trace::TraceParent;
use pg_session::failure::chain;

/// Timeout of a post, from the DNS lookup to the end of the answer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum number of bytes read of an answer. They are discarded; a connection is reused only if its answer was read to
/// the end.
const ANSWER_BYTES: usize = 4 << 10;

pub(super) struct WebhookTransport {
    client: Result<Client, String>,
    url: String,
    shape: BodyShape,
    /// `None`: posts are not signed.
    secrets: Option<SigningSecrets>,
}

impl WebhookTransport {
    pub(super) fn new(webhook: &Webhook) -> WebhookTransport {
        let resolver = CheckedResolver { allows_private: webhook.allows_private };
        // The client follows no redirect: whoever can answer in the receiver's place could send the events anywhere.
        let client = http_client::client(&webhook.url)
            .dns_resolver(Arc::new(resolver))
            // A proxy would resolve the name by itself, unchecked.
            .no_proxy()
            .timeout(TIMEOUT);
        let client = client.build().map_err(|why| chain(&why));
        let (url, shape, secrets) = (webhook.url.clone(), webhook.shape, webhook.secrets.clone());
        WebhookTransport { client, url, shape, secrets }
    }

    fn client(&self) -> Result<&Client, String> {
        self.client.as_ref().map_err(Clone::clone)
    }

    async fn post(&self, id: &str, body: String, trace: Option<TraceParent>) -> Result<u16, String> {
        let timestamp = chrono::Utc::now().timestamp();
        let post = self
            .client()?
            .post(&self.url)
            .header(header::CONTENT_TYPE, self.shape.media_type())
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp.to_string());
        let post = match &self.secrets {
            Some(secrets) => post.header("webhook-signature", secrets.sign(id, timestamp, &body)),
            None => post,
        };
        let post = match trace {
            Some(place) => post.header("traceparent", place.to_string()),
            None => post,
        };
        let mut answer = post.body(body).send().await.map_err(|error| http_client::reason(&error))?;
        // The status alone decides, so an error in the rest of the answer is ignored.
        let mut read = 0;
        while read < ANSWER_BYTES
            && let Ok(Some(piece)) = answer.chunk().await
        {
            read += piece.len();
        }
        Ok(answer.status().as_u16())
    }
}

impl Transport for WebhookTransport {
    fn open(&self) -> BoxFuture<'_, Result<(), String>> {
        std::future::ready(self.client().map(drop)).boxed()
    }

    fn deliver(&self, event: Event) -> BoxFuture<'_, DeliveryResult> {
        async move {
            match self.post(&event.id.to_string(), self.shape.body(&event), event.trace).await {
                Ok(status @ 200..300) => DeliveryResult::Delivered(Some(status)),
                Ok(410) => DeliveryResult::Gone(410),
                Ok(status) => DeliveryResult::Failed(Some(status), format!("it answered {status}")),
                Err(why) => DeliveryResult::Failed(None, why),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::event::Listener;

    /// The owner of a host name may change its addresses at any time, so they are checked at each connection.
    #[tokio::test]
    async fn a_host_name_with_a_private_address_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://localhost:{}/token", listener.local_addr().unwrap().port());

        let transport = |url: &str, allows_private| {
            let listener = Listener { name: "a".to_owned(), events: Vec::new(), datasets: None, consumers: None };
            let secrets = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3".parse().ok();
            let (url, shape, secret_env) = (url.to_owned(), BodyShape::CloudEvents, Some(String::new()));
            WebhookTransport::new(&Webhook { listener, url, shape, secret_env, allows_private, secrets })
        };
        let refused = transport(&url, false).post("id", "{}".to_owned(), None).await.unwrap_err();
        assert!(
            refused.starts_with("its address ") && refused.ends_with(" is private: `allow_private = true` allows it"),
            "{refused}"
        );
        let allowed = transport(&url, true);
        let (post, connected) =
            tokio::join!(allowed.post("id", "{}".to_owned(), None), async { listener.accept().await.map(drop) });
        assert!(connected.is_ok() && !post.unwrap_err().contains("token"));
        drop(listener);
        assert_eq!(allowed.post("id", "{}".to_owned(), None).await.unwrap_err(), "connection refused");
        let unknown =
            transport("http://no-such-host.invalid/token", true).post("id", "{}".to_owned(), None).await.unwrap_err();
        assert!(unknown.contains("failed to lookup address information") && !unknown.contains("token"), "{unknown}");
    }
}
