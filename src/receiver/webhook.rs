//! Receivers over HTTP: each event is posted to a URL, signed as Standard Webhooks specifies.
//!
//! Knows no schedule of attempts: `delivery` decides when an event is posted.

mod address;
mod block;
mod body_shape;
mod resolver;
mod signature;
mod transport;

use crate::dataset::block::Block;
use crate::dataset::listener::Known;
use crate::delivery::Transport;
use crate::event::Listener;
use crate::receiver::webhook::body_shape::BodyShape;
use crate::receiver::webhook::signature::SigningSecrets;
use crate::receiver::webhook::transport::WebhookTransport;
use crate::receiver::{ReceiverKind, SecretVariables};

/// The webhooks of the operator's file.
#[derive(Debug, Default)]
pub(super) struct Webhooks(Vec<Webhook>);

/// A webhook, as its block describes it.
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

impl ReceiverKind for Webhooks {
    fn block(&self) -> &'static str {
        "webhook"
    }

    fn plural(&self) -> &'static str {
        "webhooks"
    }

    fn parse(&mut self, block: &mut Block<'_, '_>, known: &Known<'_>) {
        self.0.extend(block::webhook(block, known));
    }

    fn listeners(&self) -> Vec<Listener> {
        self.0.iter().map(|webhook| webhook.listener.clone()).collect()
    }

    fn read_secrets(&mut self, variables: &SecretVariables<'_>) -> Vec<String> {
        let mut missing = Vec::new();
        for webhook in &mut self.0 {
            let block = format!("webhook {}", webhook.listener.name);
            let Some(secret_env) = &webhook.secret_env else { continue };
            match variables.parse(&block, secret_env, "secret") {
                Ok(secrets) => webhook.secrets = Some(secrets),
                Err(why) => missing.push(why),
            }
        }
        missing
    }

    fn build(&self) -> Vec<(Listener, Box<dyn Transport>)> {
        let transport = |webhook: &Webhook| {
            if webhook.secret_env.is_some() && webhook.secrets.is_none() {
                return None;
            }
            let transport = WebhookTransport::new(webhook);
            Some((webhook.listener.clone(), Box::new(transport) as Box<dyn Transport>))
        };
        self.0.iter().filter_map(transport).collect()
    }
}
