//! TLS for PostgreSQL's clients.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::{HeliosError, Result};

use super::certificate::{CertificateIdentity, end_point};
use super::client::TlsVersion;
use super::{POSTGRESQL_ALPN, certificates, unusable, versions};

/// The first byte of a connection that begins with TLS, and not with a request for it.
pub const TLS_HANDSHAKE: u8 = 0x16;

/// What clients have to show of themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "nothing, may, or must")]
pub enum ClientCertificates {
    /// They are not asked for a certificate.
    #[default]
    Ignored,
    /// One that is shown must be valid.
    Optional,
    /// They must show a valid one.
    Required,
}

/// The files and rules of TLS for clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerTlsOptions {
    /// PEM file with our certificate and those that it rests on.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// PEM file with the certificates that clients' certificates rest on.
    pub ca: Option<PathBuf>,
    /// What clients have to show.
    pub clients: ClientCertificates,
    /// The oldest version spoken.
    pub min_version: TlsVersion,
}

/// Encrypts connections of clients. The certificate can be replaced while it is in use: connections that stand are not
/// touched.
#[derive(Debug)]
pub struct ServerTls {
    loaded: ArcSwap<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    end_point: Option<Vec<u8>>,
}

/// An encrypted connection of a client.
#[derive(Debug)]
#[non_exhaustive]
pub struct AcceptedTls<S> {
    /// The connection.
    pub stream: TlsStream<S>,
    /// What a login over it can be bound to; `None`: nothing.
    pub end_point: Option<Vec<u8>>,
    /// Whose certificate the client has shown; it has been verified. `None`: it has shown none.
    pub client: Option<CertificateIdentity>,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`HeliosError::Unsupported`] if one can't be read or used, naming it.
    pub fn new(options: &ServerTlsOptions) -> Result<Self> {
        Ok(Self {
            loaded: ArcSwap::from_pointee(Loaded::read(options)?),
        })
    }

    /// Reads them again, for connections that begin from now on. If they can't be used, the ones before stay in force.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn reload(&self, options: &ServerTlsOptions) -> Result<()> {
        self.loaded.store(Arc::new(Loaded::read(options)?));
        Ok(())
    }

    /// Agrees with a client on TLS. Where it began with TLS, and did not ask for it (`is_direct`), it must have named the
    /// protocol (ALPN): that keeps somebody in between from redirecting other protocols' connections here, as
    /// PostgreSQL 17 has it. Not bounded in time.
    ///
    /// # Errors
    /// [`HeliosError::Io`] if no agreement was reached, [`HeliosError::Protocol`] if the client did not name the protocol,
    /// or has shown a certificate that can't be read.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        is_direct: bool,
    ) -> Result<AcceptedTls<S>> {
        let loaded = self.loaded.load_full();
        let stream = TlsAcceptor::from(Arc::clone(&loaded.config))
            .accept(stream)
            .await
            .map_err(HeliosError::io("cannot agree on TLS with the client"))?;
        let (_, connection) = stream.get_ref();
        if is_direct && connection.alpn_protocol() != Some(POSTGRESQL_ALPN) {
            return Err(HeliosError::Protocol(
                "a direct TLS connection has to name the protocol \"postgresql\" (ALPN)".to_owned(),
            ));
        }
        let shown = connection.peer_certificates().and_then(<[_]>::first);
        let client = match shown {
            None => None,
            Some(shown) => Some(CertificateIdentity::read(shown).ok_or_else(|| {
                HeliosError::Protocol("the client's certificate cannot be read".to_owned())
            })?),
        };
        Ok(AcceptedTls {
            stream,
            end_point: loaded.end_point.clone(),
            client,
        })
    }
}

impl Loaded {
    fn read(options: &ServerTlsOptions) -> Result<Self> {
        let chain = certificates(&options.certificate)?;
        let end_point = chain.first().and_then(end_point);
        let key = PrivateKeyDer::from_pem_file(&options.key)
            .map_err(|error| unusable(&options.key, &error))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions(options.min_version))
            .map_err(|error| unusable(&options.certificate, &error))?;
        let builder = match (options.clients, &options.ca) {
            (ClientCertificates::Ignored, _) => builder.with_no_client_auth(),
            (_, None) => {
                return Err(HeliosError::Unsupported(
                    "clients' certificates can't be verified without the certificates that they rest on (ca)"
                        .to_owned(),
                ));
            }
            (asked, Some(ca)) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(ca)? {
                    roots
                        .add(certificate)
                        .map_err(|error| unusable(ca, &error))?;
                }
                let mut verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                if asked == ClientCertificates::Optional {
                    verifier = verifier.allow_unauthenticated();
                }
                let verifier = verifier.build().map_err(|error| unusable(ca, &error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| unusable(&options.certificate, &error))?;
        config.alpn_protocols = vec![POSTGRESQL_ALPN.to_vec()];
        Ok(Self {
            config: Arc::new(config),
            end_point,
        })
    }
}
