//! Where a server is and how to log in to it.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

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
    /// More for the startup packet: `application_name`, `options`, or any setting.
    pub params: Vec<(String, String)>,
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
            params: Vec::new(),
        }
    }

    /// The same with another bound on connecting and logging in.
    #[must_use]
    pub fn with_connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// Reads `postgres://user:password@host:port/database`. The host may be a percent-encoded folder, or stand behind
    /// `?host=`, for a Unix-domain socket. User and database default to `postgres` and to the user. Of libpq's other
    /// parameters, `port`, `user`, `password`, `dbname`, `connect_timeout` (in seconds; 5 if not given),
    /// `application_name` and `options` are understood, and `sslmode` where it does not insist on TLS.
    ///
    /// # Errors
    /// [`HeliosError::Unsupported`] saying what part of the URL can't be used.
    pub fn from_url(url: &str) -> Result<Self> {
        let (_, rest) = url
            .split_once("://")
            .filter(|(scheme, _)| matches!(*scheme, "postgres" | "postgresql"))
            .ok_or_else(|| unusable("it does not begin with postgres://"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = place.split_once('/').unwrap_or((place, ""));
        // An @ in a password should be escaped. Where it is not, there is no other way to read it.
        let (login, address) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(decode(password)?)),
            None => (login, None),
        };
        // Only an address in brackets can hold colons of its own.
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (address, ""),
        };
        let port = if port.is_empty() {
            5432
        } else {
            number("port", port)?
        };
        let (user, database) = (decode(user)?, decode(database)?);
        let mut target = Self::new(place_of(&decode(host)?)?, port, &user, &database);
        target.password = password;
        for assignment in query.split('&').filter(|text| !text.is_empty()) {
            let (name, value) = assignment
                .split_once('=')
                .ok_or_else(|| unusable("a parameter has no value"))?;
            target.set(&decode(name)?, decode(value)?)?;
        }
        if target.user.is_empty() {
            "postgres".clone_into(&mut target.user);
        }
        if target.database.is_empty() {
            target.database.clone_from(&target.user);
        }
        Ok(target)
    }

    /// Sets what a parameter behind the question mark stands for.
    fn set(&mut self, name: &str, value: String) -> Result<()> {
        match name {
            "application_name" | "options" => self.params.push((name.to_owned(), value)),
            "connect_timeout" => {
                // To libpq, 0 means to wait for ever: nobody who shares connections can want that.
                let seconds: NonZeroU32 = number(name, &value)?;
                self.connect_timeout = Duration::from_secs(seconds.get().into());
            }
            "dbname" => self.database = value,
            "host" => self.host = place_of(&value)?,
            "password" => self.password = Some(value),
            "port" => self.port = number(name, &value)?,
            "sslmode" if matches!(&*value, "disable" | "allow" | "prefer") => {}
            "sslmode" => {
                return Err(unusable(&format!(
                    "sslmode={value}: TLS to the server is not available yet"
                )));
            }
            "user" => self.user = value,
            other => return Err(unusable(&format!("parameter {other:?} is not known"))),
        }
        Ok(())
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

fn place_of(host: &str) -> Result<Host> {
    if host.contains(',') {
        return Err(unusable("more than one host is not supported"));
    }
    Ok(match host {
        "" => Host::Tcp("localhost".to_owned()),
        folder if folder.starts_with('/') => Host::Unix(folder.into()),
        name => {
            let address = name
                .strip_prefix('[')
                .and_then(|name| name.strip_suffix(']'));
            Host::Tcp(address.unwrap_or(name).to_owned())
        }
    })
}

/// The value is not shown: in a URL that was written wrongly, it may be a piece of the password.
fn number<T: FromStr>(name: &str, value: &str) -> Result<T> {
    value
        .parse()
        .map_err(|_| unusable(&format!("{name} is not a number in its range")))
}

fn decode(text: &str) -> Result<String> {
    let text = percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| unusable("a part of it is not UTF-8"))?;
    if text.contains('\0') {
        return Err(unusable("a NUL byte can't be sent to a server"));
    }
    Ok(text.into_owned())
}

fn unusable(why: &str) -> HeliosError {
    HeliosError::Unsupported(format!("the server's URL cannot be used: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> (Host, u16, String, Option<String>, String) {
        let target = PgTarget::from_url(url).expect(url);
        (
            target.host,
            target.port,
            target.user,
            target.password,
            target.database,
        )
    }

    fn tcp(name: &str) -> Host {
        Host::Tcp(name.to_owned())
    }

    #[test]
    fn urls_are_read_with_defaults() {
        let expect = |url, host, port, user: &str, password: Option<&str>, database: &str| {
            let expected = (
                host,
                port,
                user.into(),
                password.map(str::to_owned),
                database.into(),
            );
            assert_eq!(read(url), expected, "{url}");
        };
        let full = "postgres://a%40b:s%2Fcret@db.example:6000/app";
        expect(full, tcp("db.example"), 6000, "a@b", Some("s/cret"), "app");
        expect(
            "postgresql://h",
            tcp("h"),
            5432,
            "postgres",
            None,
            "postgres",
        );
        expect(
            "postgres://",
            tcp("localhost"),
            5432,
            "postgres",
            None,
            "postgres",
        );
        expect("postgres://u@h:/", tcp("h"), 5432, "u", None, "u");
        expect(
            "postgres://u:p@w@h/d",
            tcp("h"),
            5432,
            "u",
            Some("p@w"),
            "d",
        );
        expect("postgres://u@[::1]:5/d", tcp("::1"), 5, "u", None, "d");
        expect("postgres://u@[::1]/d", tcp("::1"), 5432, "u", None, "d");
        // A plus is a plus, as in libpq.
        let query = "postgres:///?user=u&password=a+b%26&dbname=d&host=h&port=7";
        expect(query, tcp("h"), 7, "u", Some("a+b&"), "d");
    }

    #[test]
    fn a_host_with_a_slash_is_the_folder_of_a_socket() {
        for (url, folder, port) in [
            (
                "postgres://u@/d?host=/run/postgresql&port=1",
                "/run/postgresql",
                1,
            ),
            ("postgres:///d?host=%2Ftmp%2Fx", "/tmp/x", 5432),
            ("postgres://u@%2Ftmp%2Fx:6/d", "/tmp/x", 6),
        ] {
            let (host, read_port, ..) = read(url);
            assert_eq!(
                (host, read_port),
                (Host::Unix(folder.into()), port),
                "{url}"
            );
        }
    }

    #[test]
    fn parameters_for_the_server_are_kept() {
        let url = "postgres://h/d?application_name=a%20b&options=-c%20x%3D1&sslmode=prefer&connect_timeout=9";
        let target = PgTarget::from_url(url).expect("valid");
        let expected = [("application_name", "a b"), ("options", "-c x=1")];
        assert_eq!(
            target.params,
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        assert_eq!(target.connect_timeout, Duration::from_secs(9));
    }

    #[test]
    fn what_is_not_understood_is_refused_and_passwords_are_not_shown() {
        for url in [
            "mysql://h/d",
            "postgres://h/d?sslmode=require",
            "postgres://h/d?sslmode=verify-full",
            "postgres://h/d?bogus=1",
            "postgres://h/d?port=x",
            "postgres://h/d?connect_timeout=0",
            "postgres://h1,h2/d",
            "postgres://a%00options%00@h/d",
            "postgres://a%ff@h/d",
            "h",
        ] {
            assert!(PgTarget::from_url(url).is_err(), "{url}");
        }
        let target = PgTarget::from_url("postgres://u:geheim@h/d").expect("valid");
        assert!(!format!("{target} {target:?}").contains("geheim"));
        for url in [
            "postgres://u:geheim/x@h/d",
            "postgres://u:1?geheim@h/d",
            "postgres://u:%ffgeheim@h/d",
        ] {
            let error = PgTarget::from_url(url).expect_err("not a URL").to_string();
            assert!(!error.contains("geheim"), "{error}");
        }
    }
}
