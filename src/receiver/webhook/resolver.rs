//! DNS resolver that refuses addresses to which no event may be posted.
//!
//! A host name's owner decides which addresses it has, and may point it into the network of the service. So the
//! resolver checks each address at each connection, and the client connects to a checked address.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;

use crate::receiver::webhook::address::refusal;

/// Resolves a receiver's host name, and refuses the name if one of its addresses is not allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct CheckedResolver {
    pub(super) allows_private: bool,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let CheckedResolver { allows_private } = *self;
        Box::pin(async move {
            // The client replaces port 0.
            let found: Vec<_> = lookup_host((name.as_str(), 0)).await?.collect();
            let refused = |ip| Some(format!("its address {ip} {}", refusal(ip, allows_private)?));
            match found.iter().find_map(|address| refused(address.ip())) {
                Some(why) => Err(why.into()),
                None => Ok(Box::new(found.into_iter()) as Addrs),
            }
        })
    }
}
