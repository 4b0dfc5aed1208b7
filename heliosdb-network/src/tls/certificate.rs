//! What a certificate says: whose it is, and what a login can be bound to. No I/O.
//!
//! `x509-parser` reads what `rustls-webpki` keeps to itself: subjects and signature algorithms. Whether a certificate is
//! trusted is never decided here.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{
    OID_PKCS1_RSASSAPSS, OID_PKCS1_SHA224WITHRSA, OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA,
    OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA224, OID_SIG_ECDSA_WITH_SHA256,
    OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ECDSA_WITH_SHA512,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::signature_algorithm::SignatureAlgorithm;
use x509_parser::time::ASN1Time;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// Whose a certificate is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CertificateIdentity {
    /// The subject's common name; the last one where there are several, as PostgreSQL takes it.
    pub common_name: Option<String>,
    /// The whole subject as RFC 2253 writes it: `CN=app,OU=web,O=Example`.
    pub distinguished_name: String,
    /// Host names among the alternative names.
    pub dns_names: Vec<String>,
    /// Addresses among them.
    pub addresses: Vec<IpAddr>,
    /// Mail addresses among them.
    pub emails: Vec<String>,
}

impl CertificateIdentity {
    /// Reads a certificate; `None` if it can't be understood, or if a name in it holds a NUL byte: what others take for
    /// its end is no place to go on from.
    #[must_use]
    pub fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let mut identity = Self {
            distinguished_name: distinguished_name(parsed.subject())?,
            ..Self::default()
        };
        for name in parsed.subject().iter_common_name() {
            identity.common_name = Some(text(name)?);
        }
        let names = parsed.subject_alternative_name().ok()?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) if !name.contains('\0') => {
                    identity.dns_names.push((*name).to_owned());
                }
                GeneralName::RFC822Name(name) if !name.contains('\0') => {
                    identity.emails.push((*name).to_owned());
                }
                GeneralName::IPAddress(bytes) => identity.addresses.extend(address(bytes)),
                GeneralName::DNSName(_) | GeneralName::RFC822Name(_) => return None,
                _ => {}
            }
        }
        Some(identity)
    }

    /// True if the common name is that of a host, for certificates without alternative names: a `*` stands for the
    /// leftmost label.
    pub(super) fn is_by_common_name(&self, host: &str) -> bool {
        if !(self.dns_names.is_empty() && self.addresses.is_empty()) {
            return false;
        }
        let Some(name) = &self.common_name else {
            return false;
        };
        match name.strip_prefix("*.") {
            Some(domain) => host.split_once('.').is_some_and(|(first, rest)| {
                !first.is_empty() && rest.eq_ignore_ascii_case(domain)
            }),
            None => name.eq_ignore_ascii_case(host),
        }
    }
}

/// What a login over this certificate's connection is bound to (RFC 5929, tls-server-end-point): its digest, by the hash
/// of its signature, or SHA-256 where that is too weak. `None` where the signature has no hash of its own (Ed25519).
#[must_use]
pub fn end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let signature = &parsed.signature_algorithm;
    let mut hash = signature.algorithm.clone();
    if hash == OID_PKCS1_RSASSAPSS {
        let SignatureAlgorithm::RSASSA_PSS(params) =
            SignatureAlgorithm::try_from(signature).ok()?
        else {
            return None;
        };
        hash = params.hash_algorithm_oid().to_owned();
    }
    let is_one_of = |oids: &[x509_parser::oid_registry::Oid<'_>]| oids.contains(&hash);
    let hash_text = hash.to_id_string();
    let is_hash = |id: &str| hash_text == id;
    // MD5 and SHA-1, alone (behind PSS) and with RSA or ECDSA.
    let is_weak = is_hash("1.2.840.113549.2.5")
        || is_hash("1.2.840.113549.1.1.4")
        || is_hash("1.2.840.113549.1.1.5")
        || is_hash("1.2.840.10045.4.1")
        || is_hash("1.3.14.3.2.26")
        || is_hash("1.3.14.3.2.29");
    let der: &[u8] = certificate;
    if is_weak
        || is_one_of(&[OID_PKCS1_SHA256WITHRSA, OID_SIG_ECDSA_WITH_SHA256])
        || is_hash("2.16.840.1.101.3.4.2.1")
    {
        Some(Sha256::digest(der).to_vec())
    } else if is_one_of(&[OID_PKCS1_SHA384WITHRSA, OID_SIG_ECDSA_WITH_SHA384])
        || is_hash("2.16.840.1.101.3.4.2.2")
    {
        Some(Sha384::digest(der).to_vec())
    } else if is_one_of(&[OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA512])
        || is_hash("2.16.840.1.101.3.4.2.3")
    {
        Some(Sha512::digest(der).to_vec())
    } else if is_one_of(&[OID_PKCS1_SHA224WITHRSA, OID_SIG_ECDSA_WITH_SHA224])
        || is_hash("2.16.840.1.101.3.4.2.4")
    {
        Some(Sha224::digest(der).to_vec())
    } else {
        None
    }
}

/// True if the certificate is in force at a time, in seconds since 1970.
pub(super) fn is_in_force(certificate: &CertificateDer<'_>, at: u64) -> bool {
    let parsed = X509Certificate::from_der(certificate).ok();
    let at = i64::try_from(at)
        .ok()
        .and_then(|at| ASN1Time::from_timestamp(at).ok());
    match (parsed, at) {
        (Some((_, parsed)), Some(at)) => parsed.validity().is_valid_at(at),
        _ => false,
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn text(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let value = attribute.as_str().ok()?;
    (!value.contains('\0')).then(|| value.to_owned())
}

/// The subject as OpenSSL prints it under its flags for RFC 2253: what stands last comes first.
fn distinguished_name(name: &X509Name<'_>) -> Option<String> {
    let mut parts = Vec::new();
    for relative in name.iter() {
        let mut values = Vec::new();
        for attribute in relative.iter() {
            let oid = attribute.attr_type().to_id_string();
            let short = short_name(&oid).map_or(oid, str::to_owned);
            values.push(format!("{short}={}", escaped(&text(attribute)?)));
        }
        parts.push(values.join("+"));
    }
    parts.reverse();
    Some(parts.join(","))
}

fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.42" => "GN",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return None,
    })
}

fn escaped(value: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(value.len());
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        let is_edge = byte == b' ' && (at == 0 || at == last) || byte == b'#' && at == 0;
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            _ if is_edge => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b' '..=b'~' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn certificate(
        names: &[&str],
        subject: &[(DnType, &str)],
        algorithm: &'static rcgen::SignatureAlgorithm,
    ) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let key = KeyPair::generate_for(algorithm).expect("a key");
        params.self_signed(&key).expect("signed").der().clone()
    }

    #[test]
    fn whose_it_is_is_read_as_postgresql_prints_it() {
        let subject = [
            (DnType::OrganizationName, "Exämple, Inc."),
            (DnType::OrganizationalUnitName, " web+db"),
            (DnType::CommonName, "app"),
        ];
        let der = certificate(
            &["db.example", "10.0.0.1"],
            &subject,
            &rcgen::PKCS_ECDSA_P256_SHA256,
        );
        let identity = CertificateIdentity::read(&der).expect("readable");
        assert_eq!(
            identity.distinguished_name,
            "CN=app,OU=\\ web\\+db,O=Ex\\C3\\A4mple\\, Inc."
        );
        assert_eq!(identity.common_name.as_deref(), Some("app"));
        assert_eq!(identity.dns_names, ["db.example"]);
        assert_eq!(identity.addresses, [IpAddr::from([10, 0, 0, 1])]);
    }

    #[test]
    fn a_name_with_a_nul_byte_is_nobodys() {
        let subject = [(DnType::CommonName, "postgres\0.example")];
        let der = certificate(&[], &subject, &rcgen::PKCS_ECDSA_P256_SHA256);
        assert_eq!(CertificateIdentity::read(&der), None);
        assert_eq!(CertificateIdentity::read(&vec![0x30, 0x03].into()), None);
    }

    #[test]
    fn the_digest_is_by_the_hash_of_the_signature() {
        let subject = [(DnType::CommonName, "h")];
        for (algorithm, len) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Some(32)),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Some(48)),
            (&rcgen::PKCS_ED25519, None),
        ] {
            let der = certificate(&[], &subject, algorithm);
            assert_eq!(end_point(&der).map(|digest| digest.len()), len);
        }
        assert_eq!(end_point(&vec![1, 2, 3].into()), None);
    }

    #[test]
    fn a_common_name_counts_only_where_there_are_no_other_names() {
        let identity = |names: &[&str], name: &str| {
            let subject = [(DnType::CommonName, name)];
            let der = certificate(names, &subject, &rcgen::PKCS_ECDSA_P256_SHA256);
            CertificateIdentity::read(&der).expect("readable")
        };
        assert!(identity(&[], "DB.example").is_by_common_name("db.example"));
        assert!(identity(&[], "*.example").is_by_common_name("db.example"));
        for (names, name, host) in [
            (&["other"][..], "db.example", "db.example"),
            (&[], "*.example", "a.db.example"),
            (&[], "*.example", ".example"),
            (&[], "*", "db"),
            (&[], "db.example", "db.example.org"),
        ] {
            assert!(!identity(names, name).is_by_common_name(host), "{name}");
        }
    }
}
