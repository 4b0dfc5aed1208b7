//! Where a HIDB server is and how to log in to it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use rustls::ClientConfig;
use url::Url;

use crate::error::{HeliosError, Result};
use crate::tls;

/// Everything needed to connect to a gateway as one user of one database.
#[derive(Clone)]
#[non_exhaustive]
pub struct HidbTarget {
    /// A name or an address.
    pub host: String,
    /// Default 6433.
    pub port: u16,
    /// The role. Default `postgres`.
    pub user: String,
    /// If the server asks for one.
    pub password: Option<String>,
    /// Default: the user's name.
    pub database: String,
    /// Settings that sessions begin with, as in PostgreSQL's startup packet.
    pub settings: Vec<(String, String)>,
    /// Take no server that does not prove by SCRAM that it knows the password. Default false: one that asks for no password is
    /// taken for what it says it is.
    pub require_scram: bool,
    /// Encrypt, and trust these certificates; `None`: unencrypted.
    pub tls: Option<Arc<ClientConfig>>,
    /// Bound on connecting and logging in together. Default 5 s.
    pub connect_timeout: Duration,
    /// Rows and messages of one answer take at most this much, in bytes. Default 64 MiB.
    pub answer_max: usize,
}

impl HidbTarget {
    /// A database as one user, without password and encryption.
    #[must_use]
    pub fn new(host: &str, port: u16, user: &str, database: &str) -> Self {
        Self {
            host: host.to_owned(),
            port,
            user: user.to_owned(),
            password: None,
            database: database.to_owned(),
            settings: Vec::new(),
            require_scram: false,
            tls: None,
            connect_timeout: Duration::from_secs(5),
            answer_max: 64 << 20,
        }
    }

    /// Reads `hidb://user:password@host:port/database`. Behind a question mark may stand `tls_ca` (a PEM file with the
    /// certificates to trust; without it the connection is not encrypted), `connect_timeout` (in seconds),
    /// `require_auth=scram-sha-256` ([`require_scram`](Self::require_scram)), and any setting:
    /// `hidb://app@db/shop?application_name=billing&tls_ca=/etc/helios/ca.pem`.
    ///
    /// # Errors
    /// [`HeliosError::Unsupported`] saying what part of the URL can't be used.
    pub fn from_url(text: &str) -> Result<Self> {
        let url = Url::parse(text).map_err(|error| unusable(&error.to_string()))?;
        if url.scheme() != "hidb" {
            return Err(unusable("it does not begin with hidb://"));
        }
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.unwrap_or("127.0.0.1");
        // A URL has IPv6 addresses in brackets, a socket has not.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let user = decode(url.username())?;
        let user = if user.is_empty() { "postgres" } else { &user };
        let database = decode(url.path().trim_start_matches('/'))?;
        let database = if database.is_empty() { user } else { &database };
        let mut target = Self::new(host, url.port().unwrap_or(DEFAULT_PORT), user, database);
        target.password = url.password().map(decode).transpose()?;
        for (name, value) in url.query_pairs() {
            match &*name {
                "tls_ca" => target.tls = Some(tls::client_config(Path::new(&*value))?),
                "require_auth" => match &*value {
                    "scram-sha-256" => target.require_scram = true,
                    _ => return Err(unusable("require_auth is not scram-sha-256")),
                },
                "connect_timeout" => {
                    let seconds = value.parse().ok().filter(|seconds| *seconds > 0);
                    let seconds = seconds
                        .ok_or_else(|| unusable("connect_timeout is no number of seconds"))?;
                    target.connect_timeout = Duration::from_secs(seconds);
                }
                _ => target
                    .settings
                    .push((name.into_owned(), value.into_owned())),
            }
        }
        Ok(target)
    }
}

/// The port that gateways listen on for HIDB.
const DEFAULT_PORT: u16 = 6433;

impl fmt::Debug for HidbTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HidbTarget")
            .field("url", &self.to_string())
            .field("settings", &self.settings)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

/// Without the password.
impl fmt::Display for HidbTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            port,
            user,
            database,
            ..
        } = self;
        write!(f, "hidb://{user}@{host}:{port}/{database}")
    }
}

fn decode(text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    Ok(decoded
        .map_err(|_| unusable("it is not UTF-8"))?
        .into_owned())
}

fn unusable(what: &str) -> HeliosError {
    HeliosError::Unsupported(format!("cannot use this URL: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_everything_or_leaves_it_to_the_defaults() {
        let target = HidbTarget::from_url(
            "hidb://a%40b:p%2Fw@[::1]:7/shop?application_name=x%20y&connect_timeout=2",
        )
        .expect("valid");
        assert_eq!((&*target.host, target.port), ("::1", 7));
        assert_eq!((&*target.user, &*target.database), ("a@b", "shop"));
        assert_eq!(target.password.as_deref(), Some("p/w"));
        assert_eq!(
            target.settings,
            [("application_name".to_owned(), "x y".to_owned())]
        );
        assert_eq!(target.connect_timeout, Duration::from_secs(2));
        assert!(!format!("{target} {target:?}").contains("p/w"));
        let short = HidbTarget::from_url("hidb://localhost").expect("valid");
        assert_eq!(short.to_string(), "hidb://postgres@localhost:6433/postgres");
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said() {
        for (url, what) in [
            ("postgres://a@b/c", "hidb://"),
            ("hidb", "URL"),
            ("hidb://a@b:x/c", "port"),
            ("hidb://a@b/c?connect_timeout=0", "connect_timeout"),
            ("hidb://a@b/c?require_auth=md5", "require_auth"),
            ("hidb://a@b/c?tls_ca=/nonexistent.pem", "/nonexistent.pem"),
            ("hidb://%ff@b/c", "UTF-8"),
        ] {
            let error = HidbTarget::from_url(url).expect_err(url).to_string();
            assert!(error.contains(what), "{url}: {error}");
        }
    }
}
