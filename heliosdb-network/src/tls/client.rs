//! TLS to a PostgreSQL server, as libpq's `ssl*` parameters ask for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

use crate::error::{HeliosError, Result};

use super::certificate::{CertificateIdentity, is_in_force};
use super::{POSTGRESQL_ALPN, certificates, unusable, versions};

/// Whether a connection to a server is encrypted, and what the server has to prove: libpq's `sslmode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[expect(clippy::exhaustive_enums, reason = "these are libpq's")]
pub enum SslMode {
    /// It is not.
    Disable,
    /// Only where the server does not let us in without.
    Allow,
    /// Where the server can. The server proves nothing, and whoever is in between can have it off.
    #[default]
    Prefer,
    /// It is. Without a root certificate the server proves nothing.
    Require,
    /// It is, and the server's certificate was signed by somebody who is trusted.
    VerifyCa,
    /// It is, and the certificate is that of the host.
    VerifyFull,
}

/// How TLS begins: libpq's `sslnegotiation`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "these are libpq's")]
pub enum SslNegotiation {
    /// Asked for in PostgreSQL's protocol first.
    #[default]
    Postgres,
    /// At once, which saves a round trip. Needs PostgreSQL 17.
    Direct,
}

/// Whether a login by SCRAM is bound to the TLS connection: libpq's `channel_binding`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "these are libpq's")]
pub enum ChannelBindingMode {
    /// Never.
    Disable,
    /// Where the server offers it.
    #[default]
    Prefer,
    /// Always: a server that does not offer it gets no proof of anything.
    Require,
}

/// Who is trusted to have signed a server's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a file or the system's")]
pub enum RootCertificates {
    /// Those in a PEM file.
    File(PathBuf),
    /// Those whom the operating system trusts.
    System,
}

/// The oldest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[expect(clippy::exhaustive_enums, reason = "older ones are not safe")]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// All that is to be known about encryption to a server. Files are read when a connection needs them, and again when
/// they have changed.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TlsOptions {
    /// Whether, and what the server has to prove.
    pub mode: SslMode,
    /// Who is trusted. `None`: nobody is asked for, unless the mode verifies.
    pub roots: Option<RootCertificates>,
    /// PEM file with our certificate and those that it rests on, where the server asks for one.
    pub certificate: Option<PathBuf>,
    /// PEM file with its private key.
    pub key: Option<PathBuf>,
    /// How it begins.
    pub negotiation: SslNegotiation,
    /// The oldest version spoken.
    pub min_version: TlsVersion,
    /// What was made of the files. Shared by clones: sessions are resumed across connections.
    loaded: Arc<Mutex<Option<Loaded>>>,
}

#[derive(Debug)]
struct Loaded {
    /// What it was made of: without these it is out of date.
    from: Box<TlsOptions>,
    stamps: Vec<Option<SystemTime>>,
    config: Arc<ClientConfig>,
}

/// What was loaded is no part of what was asked for.
impl PartialEq for TlsOptions {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            mode,
            roots,
            certificate,
            key,
            negotiation,
            min_version,
            loaded: _,
        } = self;
        *mode == other.mode
            && *roots == other.roots
            && *certificate == other.certificate
            && *key == other.key
            && *negotiation == other.negotiation
            && *min_version == other.min_version
    }
}

impl Eq for TlsOptions {}

impl TlsOptions {
    /// Encryption by a mode, everything else by default.
    #[must_use]
    pub fn new(mode: SslMode) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }

    /// Refuses what can't work or would promise more than it holds.
    ///
    /// # Errors
    /// [`HeliosError::Unsupported`] saying what contradicts what.
    pub fn check(&self) -> Result<()> {
        let is_weak = self.mode < SslMode::VerifyCa;
        if self.roots.is_none() && !is_weak {
            return Err(contradiction(
                "this sslmode verifies the server: name the certificates that are trusted by sslrootcert=FILE, or \
                 sslrootcert=system",
            ));
        }
        if self.roots == Some(RootCertificates::System) && self.mode != SslMode::VerifyFull {
            return Err(contradiction(
                "sslrootcert=system needs sslmode=verify-full: anybody can have a certificate that the system trusts",
            ));
        }
        if self.negotiation == SslNegotiation::Direct && self.mode < SslMode::Require {
            return Err(contradiction(
                "sslnegotiation=direct needs sslmode=require or a stronger one",
            ));
        }
        // A key alone is of no use and does no harm, as with libpq.
        if self.certificate.is_some() && self.key.is_none() {
            return Err(contradiction("sslcert needs sslkey, its private key"));
        }
        Ok(())
    }

    /// The configuration of a connection, from the files as they are now.
    ///
    /// # Errors
    /// [`HeliosError::Unsupported`] if a file can't be read or used, naming it.
    pub fn config(&self) -> Result<Arc<ClientConfig>> {
        let stamps = self.stamps();
        // Read outside of the lock; two that do so at the same time come to the same.
        let known = self.loaded.lock().as_ref().and_then(|loaded| {
            (loaded.stamps == stamps && *loaded.from == *self).then(|| Arc::clone(&loaded.config))
        });
        if let Some(config) = known {
            return Ok(config);
        }
        let config = Arc::new(self.load()?);
        let mut from = self.clone();
        from.loaded = Arc::default();
        *self.loaded.lock() = Some(Loaded {
            from: Box::new(from),
            stamps,
            config: Arc::clone(&config),
        });
        Ok(config)
    }

    /// When the files were changed.
    fn stamps(&self) -> Vec<Option<SystemTime>> {
        let root = match &self.roots {
            Some(RootCertificates::File(file)) => Some(file.as_path()),
            _ => None,
        };
        let stamp = |file: Option<&Path>| std::fs::metadata(file?).ok()?.modified().ok();
        [root, self.certificate.as_deref(), self.key.as_deref()]
            .map(stamp)
            .into()
    }

    fn load(&self) -> Result<ClientConfig> {
        self.check()?;
        let provider = Arc::new(ring::default_provider());
        let verifier = ServerVerifier {
            trust: self.trust()?,
            checks_name: self.mode == SslMode::VerifyFull,
            provider: Arc::clone(&provider),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions(self.min_version))
            .map_err(|error| HeliosError::Unsupported(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let chain = certificates(certificate)?;
                let key_der =
                    PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error))?;
                builder
                    .with_client_auth_cert(chain, key_der)
                    .map_err(|error| unusable(certificate, &error))?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![POSTGRESQL_ALPN.to_vec()];
        Ok(config)
    }

    fn trust(&self) -> Result<Option<Trust>> {
        let (pinned, place) = match &self.roots {
            None => return Ok(None),
            Some(RootCertificates::File(file)) => (certificates(file)?, file.display().to_string()),
            Some(RootCertificates::System) => {
                let found = rustls_native_certs::load_native_certs();
                (found.certs, "the system's certificates".to_owned())
            }
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(pinned.iter().cloned());
        if pinned.is_empty() {
            return Err(HeliosError::Unsupported(format!(
                "cannot use {place}: there is no certificate"
            )));
        }
        let pinned = match &self.roots {
            // Nobody put a server's own certificate there.
            Some(RootCertificates::System) => Vec::new(),
            _ => pinned,
        };
        Ok(Some(Trust { roots, pinned }))
    }
}

#[derive(Debug)]
struct Trust {
    roots: RootCertStore,
    /// As they are in the file: a server's own certificate in it is trusted for what it is, as by OpenSSL.
    pinned: Vec<CertificateDer<'static>>,
}

/// Verifies as much as the mode asks for. That the server has the certificate's key is verified always: channel binding
/// rests on it.
#[derive(Debug)]
struct ServerVerifier {
    trust: Option<Trust>,
    checks_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerVerifier {
    fn check_name(
        certificate: &CertificateDer<'_>,
        host: &ServerName<'_>,
    ) -> std::result::Result<(), rustls::Error> {
        let by_names = ParsedCertificate::try_from(certificate)
            .and_then(|parsed| verify_server_name(&parsed, host));
        let Err(error) = by_names else { return Ok(()) };
        let by_common_name = CertificateIdentity::read(certificate)
            .is_some_and(|identity| identity.is_by_common_name(&host.to_str()));
        if by_common_name { Ok(()) } else { Err(error) }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let Some(trust) = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        if trust.pinned.contains(end_entity) {
            if !is_in_force(end_entity, now.as_secs()) {
                return Err(CertificateError::Expired.into());
            }
        } else {
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                &trust.roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        if self.checks_name {
            Self::check_name(end_entity, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

fn contradiction(what: &str) -> HeliosError {
    HeliosError::Unsupported(what.to_owned())
}
