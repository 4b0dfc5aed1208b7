//! Certificates for one test, in a folder that goes with it.

#![expect(
    clippy::missing_panics_doc,
    reason = "what can't be made here fails the test that wants it"
)]

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Somebody who signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    folder: tempfile::TempDir,
}

/// A certificate and its key.
#[derive(Debug)]
#[non_exhaustive]
pub struct Signed {
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub key: String,
}

impl Authority {
    /// One of this name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut params = params(&[], Some(name));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        let folder = tempfile::tempdir().expect("a folder");
        Self {
            issuer: Issuer::new(params, key),
            pem,
            folder,
        }
    }

    /// Its own certificate.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for these names of hosts or addresses, of a subject with this common name.
    #[must_use]
    pub fn sign(&self, names: &[&str], common_name: Option<&str>) -> Signed {
        let key = KeyPair::generate().expect("a key");
        let certificate = params(names, common_name)
            .signed_by(&key, &self.issuer)
            .expect("signed");
        Signed {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    /// Writes a file and returns its path.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    /// The file of this authority's own certificate.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.file("root.pem", &self.pem)
    }
}

/// One that signed itself, and says that it may sign others, as `openssl req -x509` makes it.
#[must_use]
pub fn self_signed(names: &[&str], common_name: Option<&str>) -> Signed {
    let mut params = params(names, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    Signed {
        certificate: params.self_signed(&key).expect("signed").pem(),
        key: key.serialize_pem(),
    }
}

fn params(names: &[&str], common_name: Option<&str>) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(name) = common_name {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    params
}
