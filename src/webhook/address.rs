//! Which addresses events are posted to. A name leads wherever its owner says, also into the network of the service; so each address is
//! checked, and the one that was checked is the one that is connected to.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;

use crate::event::address::refusal;

/// Looks a receiver's name up, and refuses it if one of its addresses is not allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct CheckedResolver {
    pub(super) allows_private: bool,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let CheckedResolver { allows_private } = *self;
        Box::pin(async move {
            // The client puts the port in place of 0.
            let found: Vec<_> = lookup_host((name.as_str(), 0)).await?.collect();
            let refused = |ip| Some(format!("its address {ip} {}", refusal(ip, allows_private)?));
            match found.iter().find_map(|address| refused(address.ip())) {
                Some(why) => Err(why.into()),
                None => Ok(Box::new(found.into_iter()) as Addrs),
            }
        })
    }
}
