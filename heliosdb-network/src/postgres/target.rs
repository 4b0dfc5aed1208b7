//! Where a server is and how to log in to it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use crate::error::{HeliosError, Result};

/// The place of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Host {
    /// A name or an address.
    Tcp(String),
    /// The folder of a Unix-domain socket.
    Unix(PathBuf),
}

/// Everything needed to connect to one database as one user.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PgTarget {
    /// Where the server listens.
    pub host: Host,
    /// Its port, also part of a Unix socket's name.
    pub port: u16,
    /// The role.
    pub user: String,
    /// For the methods that ask for one.
    pub password: Option<String>,
    /// The database.
    pub database: String,
    /// Bound on connecting and logging in together.
    pub connect_timeout: Duration,
}

impl PgTarget {
    /// A database as one user, without a password.
    #[must_use]
    pub fn new(host: Host, port: u16, user: &str, database: &str) -> Self {
        Self {
            host,
            port,
            user: user.to_owned(),
            password: None,
            database: database.to_owned(),
            connect_timeout: Duration::from_secs(5),
        }
    }

    /// The same with another bound on connecting and logging in.
    #[must_use]
    pub fn with_connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// Reads `postgres://user:password@host:port/database`. The host may be a percent-encoded folder, or stand behind
    /// `?host=`, for a Unix-domain socket. User and database default to `postgres` and to the user.
    ///
    /// # Errors
    /// [`HeliosError::Unsupported`] saying what part of the URL can't be used.
    pub fn from_url(url: &str) -> Result<Self> {
        let parsed = Url::parse(url).map_err(|error| unusable(&format!("{error}")))?;
        if !matches!(parsed.scheme(), "postgres" | "postgresql") {
            return Err(unusable(&format!(
                "scheme {:?} is not postgres://",
                parsed.scheme()
            )));
        }
        let mut host = decode(parsed.host_str().unwrap_or_default())?;
        let mut port = parsed.port();
        let (mut user, mut password) = (
            decode(parsed.username())?,
            parsed.password().map(decode).transpose()?,
        );
        let mut database = decode(parsed.path().trim_start_matches('/'))?;
        let mut connect_timeout = Duration::from_secs(5);
        for (name, value) in parsed.query_pairs() {
            match &*name {
                "host" => host = value.into_owned(),
                "port" => {
                    port = Some(
                        value
                            .parse()
                            .map_err(|_| unusable(&format!("port {value:?}")))?,
                    )
                }
                "user" => user = value.into_owned(),
                "password" => password = Some(value.into_owned()),
                "dbname" => database = value.into_owned(),
                "connect_timeout" => {
                    let seconds = value
                        .parse()
                        .map_err(|_| unusable(&format!("connect_timeout {value:?}")))?;
                    connect_timeout = Duration::from_secs(seconds);
                }
                "sslmode" if matches!(&*value, "disable" | "allow" | "prefer") => {}
                "sslmode" => {
                    return Err(unusable(&format!(
                        "sslmode={value}: TLS to the server is not available yet"
                    )));
                }
                "application_name" => {}
                other => return Err(unusable(&format!("parameter {other:?} is not known"))),
            }
        }
        if user.is_empty() {
            "postgres".clone_into(&mut user);
        }
        if database.is_empty() {
            database.clone_from(&user);
        }
        let host = match host.as_str() {
            "" => Host::Tcp("localhost".to_owned()),
            folder if folder.starts_with('/') => Host::Unix(folder.into()),
            name => Host::Tcp(
                name.trim_start_matches('[')
                    .trim_end_matches(']')
                    .to_owned(),
            ),
        };
        Ok(Self {
            host,
            port: port.unwrap_or(5432),
            user,
            password,
            database,
            connect_timeout,
        })
    }
}

/// Without the password.
impl fmt::Display for PgTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp(host) => write!(f, "{}@{host}:{}/{}", self.user, self.port, self.database),
            Host::Unix(folder) => write!(
                f,
                "{}@{}:{}/{}",
                self.user,
                folder.display(),
                self.port,
                self.database
            ),
        }
    }
}

/// Without the password.
impl fmt::Debug for PgTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PgTarget({self})")
    }
}

fn decode(text: &str) -> Result<String> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| unusable("a part of it is not valid UTF-8"))
}

fn unusable(why: &str) -> HeliosError {
    HeliosError::Unsupported(format!("the server's URL cannot be used: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_with_defaults() {
        let target =
            PgTarget::from_url("postgres://a%40b:s%2Fcret@db.example:6000/app").expect("valid");
        assert_eq!(
            (target.user.as_str(), target.password.as_deref()),
            ("a@b", Some("s/cret"))
        );
        assert_eq!(
            (target.host, target.port, target.database.as_str()),
            (Host::Tcp("db.example".into()), 6000, "app")
        );
        let target = PgTarget::from_url("postgresql://h").expect("valid");
        assert_eq!(
            (target.user.as_str(), target.database.as_str(), target.port),
            ("postgres", "postgres", 5432)
        );
        let target =
            PgTarget::from_url("postgres://u@/d?host=/run/postgresql&port=1").expect("valid");
        assert_eq!(
            (target.host, target.port),
            (Host::Unix("/run/postgresql".into()), 1)
        );
        let target = PgTarget::from_url("postgres://u@%2Ftmp%2Fx/d").expect("valid");
        assert_eq!(target.host, Host::Unix("/tmp/x".into()));
        let target = PgTarget::from_url("postgres://u@[::1]:5/d").expect("valid");
        assert_eq!(target.host, Host::Tcp("::1".into()));
    }

    #[test]
    fn what_is_not_understood_is_refused_and_passwords_are_not_shown() {
        for url in [
            "mysql://h/d",
            "postgres://h/d?sslmode=require",
            "postgres://h/d?bogus=1",
            "h",
        ] {
            assert!(PgTarget::from_url(url).is_err(), "{url}");
        }
        let target = PgTarget::from_url("postgres://u:geheim@h/d").expect("valid");
        assert!(!format!("{target} {target:?}").contains("geheim"));
    }
}
