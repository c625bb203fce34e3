//! Receivers over HTTP: each event is posted to a URL, signed as Standard Webhooks specifies.
//!
//! Knows no schedule of attempts: `delivery` decides when an event is posted.

mod address;
mod block;
mod body_shape;
mod resolver;
mod signature;
mod transport;

use crate::catalog::block::Block;
use crate::catalog::listener::KnownNames;
use crate::delivery::Transport;
use crate::event::Listener;
use crate::receiver::webhook::body_shape::BodyShape;
use crate::receiver::webhook::signature::SigningSecrets;
use crate::receiver::webhook::transport::WebhookTransport;
use crate::receiver::{Receiver, SecretVariables};

pub(super) fn parse(block: &mut Block<'_, '_>, known: &KnownNames<'_>) -> Option<Box<dyn Receiver>> {
    Some(Box::new(block::webhook(block, known)?))
}

#[derive(Clone, Debug)]
struct Webhook {
    listener: Listener,
    /// The address that events are posted to: `https://…`, or `http://…` if the operator allows it.
    url: String,
    shape: BodyShape,
    /// The variable of the environment that has the secret which signs the events. `None`: the posts are not signed,
    /// because a chat checks no signature.
    secret_env: Option<String>,
    /// True if the address may be on a private network or on this machine.
    allows_private: bool,
    /// The secrets. `None`: they have not been read, or are missing.
    secrets: Option<SigningSecrets>,
}

impl Receiver for Webhook {
    fn listener(&self) -> &Listener {
        &self.listener
    }

    fn read_secret(&mut self, variables: &SecretVariables<'_>) -> Result<(), String> {
        let Some(secret_env) = &self.secret_env else { return Ok(()) };
        self.secrets = Some(variables.parse(&format!("webhook {}", self.listener.name), secret_env, "secret")?);
        Ok(())
    }

    fn transport(&self) -> Option<Box<dyn Transport>> {
        let has_secrets = self.secret_env.is_none() || self.secrets.is_some();
        has_secrets.then(|| Box::new(WebhookTransport::new(self)) as Box<dyn Transport>)
    }
}
