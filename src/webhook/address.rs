//! Which addresses events are posted to. A name leads wherever its owner says, also into the network of the service; so each address is
//! checked, and the one that was checked is the one that is connected to.

use hyper::http::Uri;
use ureq::config::Config;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::event::address::refusal;

/// Looks a receiver's name up, and refuses it if one of its addresses is not allowed.
#[derive(Debug)]
pub(super) struct CheckedResolver {
    inner: DefaultResolver,
    allows_private: bool,
}

impl CheckedResolver {
    pub(super) fn new(allows_private: bool) -> CheckedResolver {
        CheckedResolver { inner: DefaultResolver::default(), allows_private }
    }
}

impl Resolver for CheckedResolver {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        let refused = |ip| Some(format!("its address {ip} {}", refusal(ip, self.allows_private)?));
        match found.iter().find_map(|address| refused(address.ip())) {
            Some(why) => Err(ureq::Error::Other(why.into())),
            None => Ok(found),
        }
    }
}
