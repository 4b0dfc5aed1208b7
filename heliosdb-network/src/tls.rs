//! TLS by rustls: the configurations of both ends, from PEM files.

mod certificate;
mod client;
mod server;

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::error::{HeliosError, Result};

pub use certificate::{CertificateIdentity, end_point};
pub use client::{
    ChannelBindingMode, RootCertificates, SslMode, SslNegotiation, TlsOptions, TlsVersion,
};
pub use server::{AcceptedTls, ClientCertificates, ServerTls, ServerTlsOptions, TLS_HANDSHAKE};

/// The name under which PostgreSQL's protocol is negotiated (ALPN).
pub const POSTGRESQL_ALPN: &[u8] = b"postgresql";
/// The name under which HIDB is negotiated (ALPN).
pub const HIDB_ALPN: &[u8] = b"hidb/1";

/// A server's configuration, from files with its certificate chain and its private key.
///
/// # Errors
/// [`HeliosError::Unsupported`] if a file can't be read or used, naming it.
pub fn server_config(chain: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    let certificates = certificates(chain)?;
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(certificates, key_der)
        })
        .map_err(|error| unusable(chain, &error))?;
    config.alpn_protocols = vec![HIDB_ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// A client's configuration that trusts the certificates in a file, and what they signed.
///
/// # Errors
/// [`HeliosError::Unsupported`] if the file can't be read or used.
pub fn client_config(trusted: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(trusted)? {
        roots
            .add(certificate)
            .map_err(|error| unusable(trusted, &error))?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(trusted, &error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![HIDB_ALPN.to_vec()];
    Ok(Arc::new(config))
}

fn versions(oldest: TlsVersion) -> &'static [&'static rustls::SupportedProtocolVersion] {
    match oldest {
        TlsVersion::Tls12 => rustls::ALL_VERSIONS,
        TlsVersion::Tls13 => &NEWEST,
    }
}

static NEWEST: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read: std::result::Result<Vec<_>, _> = CertificateDer::pem_file_iter(file)
        .map_err(|error| unusable(file, &error))?
        .collect();
    let certificates = read.map_err(|error| unusable(file, &error))?;
    if certificates.is_empty() {
        return Err(unusable(file, &"there is no certificate in it"));
    }
    Ok(certificates)
}

fn unusable(file: &Path, error: &dyn std::fmt::Display) -> HeliosError {
    HeliosError::Unsupported(format!("cannot use {}: {error}", file.display()))
}
