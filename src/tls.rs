//! TLS: whose code does it, and whose certificates count, for all who speak HTTP or AMQP to others.

use ureq::Agent;
use ureq::config::ConfigBuilder;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::typestate::AgentScope;

/// Has `ring` do what TLS needs, unless the process has somebody for that already.
pub fn provide() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The beginnings of an HTTP client that trusts whom the system trusts.
pub fn agent() -> ConfigBuilder<AgentScope> {
    provide();
    Agent::config_builder().tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
}
