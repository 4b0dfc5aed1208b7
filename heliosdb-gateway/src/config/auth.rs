//! `[auth]` and `[tls]`: what clients have to prove, and how their connections are encrypted.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use heliosdb_network::tls::{ClientCertificates, ServerTlsOptions, TlsVersion};
use serde::Deserialize;

use crate::admin;

use super::{ConfigError, DatabaseConfig, Databases};

/// What clients have to prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AuthType {
    /// Nothing, and whoever they say they are is of no importance.
    Any,
    /// A certificate of the user's name.
    Cert,
    /// What the rules of `hba_file` say.
    Hba,
    /// The password by a hash, or by SCRAM where a SCRAM secret is kept.
    Md5,
    /// The password as it is.
    Plain,
    /// The password by SCRAM-SHA-256.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// Nothing.
    Trust,
}

/// What clients have to prove, and against what.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct AuthConfig {
    /// What clients have to prove. Default `trust`.
    #[serde(rename = "type")]
    pub kind: AuthType,
    /// Users and their secrets, a line each: `"user" "secret"`, where the secret is a password, `md5...` or
    /// `SCRAM-SHA-256$...`. Default: none.
    pub file: Option<PathBuf>,
    /// Rules in the form of `pg_hba.conf`. Needed by `type = "hba"`.
    pub hba_file: Option<PathBuf>,
    /// Maps in the form of `pg_ident.conf`, for the rules. Default: none.
    pub ident_file: Option<PathBuf>,
    /// How the server is asked for the secret of a user that `file` does not have: a query with `$1` for the user that
    /// returns name and secret. Default: by `pg_authid`, if `query_user` is there.
    pub query: Option<String>,
    /// As whom the server is asked. Default: the user of the server's URL, if `query` is there; its password is that of
    /// the URL, or in `file`. `off`: it is not asked, but for databases that name somebody.
    pub query_user: Option<String>,
    /// In which database, by the name that clients use. Default: the one that the client wants.
    pub query_database: Option<String>,
    /// Whether users whom neither `file` nor the server knows are refused even where they have to prove nothing (but with
    /// `type = "any"`). Default false.
    pub known_users_only: bool,
    /// Users who may do everything on the admin console. Default: with `trust` everybody, else nobody.
    pub admin_users: Vec<String>,
    /// Users who may look at everything there. Default: none.
    pub stats_users: Vec<String>,
}

/// Whether clients' connections are encrypted, as PgBouncer's `client_tls_sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TlsMode {
    /// None can be.
    Disable,
    /// Those are whose clients ask for it.
    Allow,
    /// As `allow`.
    Prefer,
    /// All over TCP have to be.
    Require,
    /// All have to be, and clients have to show a certificate that `ca` signed.
    VerifyCa,
    /// As `verify-ca`.
    VerifyFull,
}

/// The oldest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub enum MinVersion {
    /// TLS 1.2.
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    Tls13,
}

/// Encryption of clients' connections.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TlsConfig {
    /// Whether connections are encrypted. Default `disable`.
    pub mode: TlsMode,
    /// PEM file with the certificate and those that it rests on. Needed unless `mode` is `disable`.
    pub certificate: Option<PathBuf>,
    /// PEM file with its private key. Needed unless `mode` is `disable`.
    pub key: Option<PathBuf>,
    /// PEM file with what clients' certificates rest on. Where it is there, clients may show one, and it must be valid.
    pub ca: Option<PathBuf>,
    /// The oldest version spoken. Default `1.2`.
    pub min_version: MinVersion,
    /// Whether a connection may begin with TLS at once, without a request for it. Default true.
    pub direct: bool,
}

/// How the server is asked for users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asking<'c> {
    /// `None`: as helios does.
    pub(crate) query: Option<&'c str>,
    /// `None`: as the user of the server's URL.
    pub(crate) user: Option<&'c str>,
    /// `None`: in the one that the client wants.
    pub(crate) database: Option<&'c str>,
}

/// In the place of a user: the server is not asked.
pub(super) const NOBODY: &str = "off";

/// True if a query has a place for the user's name. Without one it finds nobody.
pub(crate) fn asks_for_user(query: &str) -> bool {
    query.contains("$1")
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            kind: AuthType::Trust,
            file: None,
            hba_file: None,
            ident_file: None,
            query: None,
            query_user: None,
            query_database: None,
            known_users_only: false,
            admin_users: Vec::new(),
            stats_users: Vec::new(),
        }
    }
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            mode: TlsMode::Disable,
            certificate: None,
            key: None,
            ca: None,
            min_version: MinVersion::Tls12,
            direct: true,
        }
    }
}

impl AuthConfig {
    /// True where clients prove nothing.
    pub(crate) fn trusts(&self) -> bool {
        matches!(self.kind, AuthType::Any | AuthType::Trust)
    }

    /// How the server is asked for the users of a database, which may have ways of its own. `None`: it is not.
    pub(crate) fn asking<'c>(&'c self, own: Option<&'c DatabaseConfig>) -> Option<Asking<'c>> {
        let query = own.and_then(|own| own.auth_query.as_deref());
        let query = query.or(self.query.as_deref());
        let user = own.and_then(|own| own.auth_query_user.as_deref());
        let user = user.or(self.query_user.as_deref());
        let database = own.and_then(|own| own.auth_query_database.as_deref());
        let is_asked = match user {
            Some(user) => user != NOBODY,
            None => query.is_some(),
        };
        is_asked.then_some(Asking {
            query,
            user,
            database: database.or(self.query_database.as_deref()),
        })
    }

    /// The addresses that others can reach and where they would have to prove nothing.
    pub(super) fn check_open(
        &self,
        listen: &[SocketAddr],
        allows_remote_trust: bool,
    ) -> Result<(), ConfigError> {
        let open = listen.iter().find(|address| !address.ip().is_loopback());
        match open {
            Some(open) if self.trusts() && !allows_remote_trust => refuse(
                "listen",
                &open.to_string(),
                "others can reach this address, and clients are trusted. Set auth.type, listen on 127.0.0.1, or set \
                 clients.allow_remote_trust = true if the network keeps strangers out",
            ),
            _ => Ok(()),
        }
    }

    pub(super) fn validate(
        &self,
        tls: &TlsConfig,
        databases: &Databases,
    ) -> Result<(), ConfigError> {
        let shown = shown(self.kind);
        let asks = self.asking(None).is_some()
            || databases
                .values()
                .any(|database| self.asking(Some(database)).is_some());
        let needs_secrets = matches!(
            self.kind,
            AuthType::Md5 | AuthType::Plain | AuthType::ScramSha256
        );
        if needs_secrets && self.file.is_none() && !asks {
            return refuse(
                "auth.type",
                shown,
                "needs auth.file, auth.query_user or auth.query: something to check passwords against",
            );
        }
        if self.kind == AuthType::Hba && self.hba_file.is_none() {
            return refuse("auth.type", shown, "needs auth.hba_file");
        }
        if self.kind == AuthType::Cert && (tls.mode < TlsMode::VerifyCa) {
            return refuse("auth.type", shown, "needs tls.mode = \"verify-full\"");
        }
        let is_ours = |name: &Option<String>| name.as_deref().is_some_and(admin::is_console);
        if is_ours(&self.query_database) {
            let name = self.query_database.as_deref().unwrap_or_default();
            let reason = format!(
                "cannot use the reserved \"{name}\" database as an auth_dbname: the admin console has no users to ask for"
            );
            return refuse("auth.query_database", name, &reason);
        }
        // One that is in the way of no database's own may be left as it is.
        let is_overridden = databases
            .values()
            .any(|database| database.auth_query.is_some());
        if asks
            && !is_overridden
            && self
                .query
                .as_deref()
                .is_some_and(|query| !asks_for_user(query))
        {
            return refuse(
                "auth.query",
                "...",
                "must have $1 in the place of the user's name",
            );
        }
        Ok(())
    }

    pub(super) fn values(&self) -> Vec<(&'static str, String)> {
        let Self {
            kind,
            file,
            hba_file,
            ident_file,
            query,
            query_user,
            query_database,
            known_users_only,
            admin_users,
            stats_users,
        } = self;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        vec![
            ("auth.type", shown(*kind).to_owned()),
            ("auth.file", path(file)),
            ("auth.hba_file", path(hba_file)),
            ("auth.ident_file", path(ident_file)),
            ("auth.query", text(query)),
            ("auth.query_user", text(query_user)),
            ("auth.query_database", text(query_database)),
            ("auth.known_users_only", known_users_only.to_string()),
            ("auth.admin_users", admin_users.join(", ")),
            ("auth.stats_users", stats_users.join(", ")),
        ]
    }
}

impl TlsConfig {
    /// What the library is told; `None` where nothing is encrypted.
    pub(crate) fn options(&self) -> Option<ServerTlsOptions> {
        if self.mode == TlsMode::Disable {
            return None;
        }
        let mut options = ServerTlsOptions::default();
        options.certificate = self.certificate.clone()?;
        options.key = self.key.clone()?;
        options.ca.clone_from(&self.ca);
        options.clients = match self.mode {
            TlsMode::VerifyCa | TlsMode::VerifyFull => ClientCertificates::Required,
            _ if self.ca.is_some() => ClientCertificates::Optional,
            _ => ClientCertificates::Ignored,
        };
        options.min_version = match self.min_version {
            MinVersion::Tls12 => TlsVersion::Tls12,
            MinVersion::Tls13 => TlsVersion::Tls13,
        };
        Some(options)
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.mode == TlsMode::Disable {
            return Ok(());
        }
        for (key, file) in [
            ("tls.certificate", &self.certificate),
            ("tls.key", &self.key),
        ] {
            if file.is_none() {
                return refuse(key, "\"\"", "is needed by tls.mode");
            }
        }
        if self.mode >= TlsMode::VerifyCa && self.ca.is_none() {
            return refuse(
                "tls.ca",
                "\"\"",
                "is needed by tls.mode = \"verify-ca\" and \"verify-full\"",
            );
        }
        Ok(())
    }

    pub(super) fn values(&self) -> Vec<(&'static str, String)> {
        let Self {
            mode,
            certificate,
            key,
            ca,
            min_version,
            direct,
        } = self;
        let mode = match mode {
            TlsMode::Disable => "disable",
            TlsMode::Allow => "allow",
            TlsMode::Prefer => "prefer",
            TlsMode::Require => "require",
            TlsMode::VerifyCa => "verify-ca",
            TlsMode::VerifyFull => "verify-full",
        };
        let version = match min_version {
            MinVersion::Tls12 => "1.2",
            MinVersion::Tls13 => "1.3",
        };
        vec![
            ("tls.mode", mode.to_owned()),
            ("tls.certificate", path(certificate)),
            ("tls.key", path(key)),
            ("tls.ca", path(ca)),
            ("tls.min_version", version.to_owned()),
            ("tls.direct", direct.to_string()),
        ]
    }
}

fn shown(kind: AuthType) -> &'static str {
    match kind {
        AuthType::Any => "any",
        AuthType::Cert => "cert",
        AuthType::Hba => "hba",
        AuthType::Md5 => "md5",
        AuthType::Plain => "plain",
        AuthType::ScramSha256 => "scram-sha-256",
        AuthType::Trust => "trust",
    }
}

fn path(path: &Option<PathBuf>) -> String {
    let path = path.as_deref().map(Path::display);
    path.map(|path| path.to_string()).unwrap_or_default()
}

fn refuse(key: &'static str, value: &str, reason: &str) -> Result<(), ConfigError> {
    Err(ConfigError::Value {
        key,
        value: value.to_owned(),
        reason: reason.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    #[test]
    fn what_cannot_be_kept_to_is_refused() {
        let file = "auth.file = \"/f\"\n";
        let files = "tls.certificate = \"/c\"\ntls.key = \"/k\"\n";
        for (text, error) in [
            (
                "auth.type = \"scram-sha-256\"",
                "auth.type = scram-sha-256: needs auth.file",
            ),
            ("auth.type = \"md5\"", "auth.type = md5: needs auth.file"),
            (
                "auth.type = \"hba\"",
                "auth.type = hba: needs auth.hba_file",
            ),
            ("auth.type = \"cert\"", "auth.type = cert: needs tls.mode"),
            (
                "auth.query = \"SELECT 1\"",
                "auth.query = ...: must have $1",
            ),
            ("tls.mode = \"require\"", "tls.certificate = "),
            (&format!("{files}tls.mode = \"verify-ca\""), "tls.ca = "),
            (
                &format!("{file}auth.type = \"any\"\nlisten = [\"0.0.0.0:1\"]"),
                "listen = 0.0.0.0:1: others can reach",
            ),
        ] {
            let config = Config::parse(text, "f").expect(text);
            let refused = config.validate().expect_err(text).to_string();
            assert!(refused.starts_with(error), "{text}: {refused}");
        }
        for text in [
            &format!("{file}auth.type = \"scram-sha-256\"\nlisten = [\"0.0.0.0:1\"]"),
            "auth.type = \"plain\"\nauth.query_user = \"asker\"",
            &format!("{files}tls.ca = \"/a\"\ntls.mode = \"verify-full\"\nauth.type = \"cert\""),
        ] {
            let config = Config::parse(text, "f").expect(text);
            config.validate().expect(text);
        }
    }
}
