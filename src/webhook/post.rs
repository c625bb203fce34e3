//! One post of an event: its headers, and what the receiver may do with it.

use std::io::Read;
use std::time::Duration;

use ureq::Agent;
use ureq::unversioned::transport::DefaultConnector;

use crate::telemetry::chain;
use crate::tls;
use crate::trace::TraceParent;
use crate::webhook::Receiver;
use crate::webhook::address::CheckedResolver;

/// How long a post may take, from the look-up of the receiver's name to the end of its answer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How much of an answer is read. It is of no use; but a connection whose answer was read to its end can be used again.
const ANSWER_BYTES: u64 = 4 << 10;

/// Posts to one receiver.
pub(super) struct Poster {
    agent: Agent,
    receiver: Receiver,
}

impl Poster {
    pub(super) fn new(receiver: Receiver) -> Poster {
        let config = tls::agent()
            .http_status_as_error(false)
            // A receiver that moves has to be named anew: whoever could answer in its place could send the events anywhere. A redirect is an
            // answer like any other that isn't 2xx.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Behind a proxy nobody checks which address is connected to.
            .proxy(None)
            .timeout_global(Some(TIMEOUT))
            .user_agent(concat!("cdc-export/", env!("CARGO_PKG_VERSION")))
            .build();
        let resolver = CheckedResolver::new(receiver.webhook.allows_private);
        Poster { agent: Agent::with_parts(config, DefaultConnector::default(), resolver), receiver }
    }

    /// Posts an event, and returns the answer's status. Blocks.
    ///
    /// # Errors
    /// With the reason why there was no answer.
    pub(super) fn post(&self, id: &str, body: &str, trace: Option<TraceParent>) -> Result<u16, String> {
        let timestamp = chrono::Utc::now().timestamp();
        let post = self
            .agent
            .post(&self.receiver.webhook.url)
            .header("content-type", "application/cloudevents+json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp.to_string())
            .header("webhook-signature", self.receiver.secrets.sign(id, timestamp, body));
        let post = match trace {
            Some(place) => post.header("traceparent", place.to_string()),
            None => post,
        };
        let mut answer = post.send(body).map_err(|why| reason(&why))?;
        // The status is what counts, however the rest of the answer ends.
        let _ = answer.body_mut().as_reader().take(ANSWER_BYTES).read_to_end(&mut Vec::new());
        Ok(answer.status().as_u16())
    }
}

/// Why there was no answer. An address may hold a token in its path, so no reason names it.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::HostNotFound => "the host is not known".to_owned(),
        ureq::Error::Io(cause) if cause.kind() == std::io::ErrorKind::ConnectionRefused => {
            "connection refused".to_owned()
        }
        // Of the address.
        ureq::Error::Other(why) => why.to_string(),
        ureq::Error::BadUri(_) => "its url can't be used".to_owned(),
        other => chain(other),
    }
}
