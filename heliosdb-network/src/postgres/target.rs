//! Where a server is and how to log in to it.

mod url;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::error::Result;
use crate::scram::ScramKeys;
use crate::tls::{ChannelBindingMode, SslMode, TlsOptions};

/// The place of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Host {
    /// A name or an address.
    Tcp(String),
    /// The folder of a Unix-domain socket.
    Unix(PathBuf),
}

/// One of the places where a server may be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// Where it listens. Its certificate has to be of this name.
    pub host: Host,
    /// Its port, also part of a Unix socket's name.
    pub port: u16,
    /// Its address, where the name is not to be looked up.
    pub address: Option<SocketAddr>,
}

/// What a login proves itself with.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credential {
    /// Nothing: the server has to let us in as we are.
    #[default]
    None,
    /// `md5` and the hash of password and user, as PostgreSQL stores it. Good for md5 authentication only.
    Md5(String),
    /// The password. Good for everything.
    Password(String),
    /// The keys of a SCRAM secret. Good for SCRAM only, and only while the server keeps that very secret.
    Scram(Box<ScramKeys>),
}

/// Which of several servers is meant, as libpq's `target_session_attrs`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "these are libpq's")]
pub enum SessionAttrs {
    /// Any.
    #[default]
    Any,
    /// A standby where there is one, else any.
    PreferStandby,
    /// One that is no standby.
    Primary,
    /// One whose transactions are read-only unless they say otherwise; a standby's always are.
    ReadOnly,
    /// One whose transactions may write.
    ReadWrite,
    /// One that is in recovery.
    Standby,
}

/// In which order several places are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlaceOrder {
    /// As they are listed, after the one where the last connection stood.
    Listed,
    /// By chance.
    Random,
    /// Each connection begins with the one behind that of the connection before, and goes on as they are listed.
    RoundRobin,
}

/// Everything needed to connect to one database as one user.
#[derive(Clone)]
#[non_exhaustive]
pub struct PgTarget {
    /// Where the server may be; never empty. They are tried one after the other.
    pub places: Vec<Place>,
    /// Which of them is meant.
    pub session_attrs: SessionAttrs,
    /// In which order they are tried.
    pub order: PlaceOrder,
    /// The role.
    pub user: String,
    /// For the methods that ask for a proof.
    pub credential: Credential,
    /// The database.
    pub database: String,
    /// Bound on connecting and logging in together. Where there are several places, each gets its share of what is left,
    /// so that one that swallows packets does not keep us from the others.
    pub connect_timeout: Duration,
    /// More for the startup packet: `application_name`, `options`, or any setting.
    pub params: Vec<(String, String)>,
    /// Encryption. Unix-domain sockets are never encrypted.
    pub tls: TlsOptions,
    /// Whether SCRAM is bound to the encrypted connection.
    pub channel_binding: ChannelBindingMode,
    /// Where the last connection stood, or how many connections were begun by turns. Shared by clones.
    last: Arc<AtomicUsize>,
}

/// Where the last connection stood is no part of what is meant.
impl PartialEq for PgTarget {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            places,
            session_attrs,
            order,
            user,
            credential,
            database,
            connect_timeout,
            params,
            tls,
            channel_binding,
            last: _,
        } = self;
        *places == other.places
            && *session_attrs == other.session_attrs
            && *order == other.order
            && *user == other.user
            && *credential == other.credential
            && *database == other.database
            && *connect_timeout == other.connect_timeout
            && *params == other.params
            && *tls == other.tls
            && *channel_binding == other.channel_binding
    }
}

impl Eq for PgTarget {}

impl PgTarget {
    /// A database as one user, without a proof and without encryption.
    #[must_use]
    pub fn new(host: Host, port: u16, user: &str, database: &str) -> Self {
        Self {
            places: vec![Place {
                host,
                port,
                address: None,
            }],
            session_attrs: SessionAttrs::Any,
            order: PlaceOrder::Listed,
            user: user.to_owned(),
            credential: Credential::None,
            database: database.to_owned(),
            connect_timeout: Duration::from_secs(5),
            params: Vec::new(),
            tls: TlsOptions::new(SslMode::Disable),
            channel_binding: ChannelBindingMode::Prefer,
            last: Arc::default(),
        }
    }

    /// The same with another bound on connecting and logging in.
    #[must_use]
    pub fn with_connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// The same server and nothing else of it: for a request that has to go where a connection went.
    #[must_use]
    pub(super) fn at(&self, place: Place, mode: SslMode) -> Self {
        let mut target = self.clone();
        target.places = vec![place];
        target.session_attrs = SessionAttrs::Any;
        target.order = PlaceOrder::Listed;
        target.tls.mode = mode;
        target.last = Arc::default();
        target
    }

    /// Reads `postgres://user:password@host:port/database`, with several `host:port` separated by commas where the server
    /// may be in several places. A host may be a percent-encoded folder, or stand behind `?host=`, for a Unix-domain
    /// socket. User and database default to `postgres` and to the user.
    ///
    /// Of libpq's parameters these are understood: `application_name`, `channel_binding`, `client_encoding`,
    /// `connect_timeout` (in seconds; 5 if not given), `dbname`, `gssencmode` unless it insists, `host`, `hostaddr`,
    /// `load_balance_hosts` (also `round-robin`), `options`, `password`, `port`, `ssl_min_protocol_version`, `sslcert`, `sslkey`, `sslmode`
    /// (`prefer` if not given), `sslnegotiation`, `sslrootcert`, `target_session_attrs`, `user`. No file is read.
    ///
    /// # Errors
    /// [`HeliosError::Unsupported`](crate::HeliosError::Unsupported) saying what part of the URL can't be used.
    pub fn from_url(url: &str) -> Result<Self> {
        url::read(url)
    }

    /// The places in the order in which they are to be tried.
    pub(super) fn next_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.places.len()).collect();
        match self.order {
            PlaceOrder::Listed => {
                let first = self.last.load(Ordering::Relaxed);
                if first < order.len() {
                    order[..=first].rotate_right(1);
                }
            }
            PlaceOrder::Random => {
                for at in (1..order.len()).rev() {
                    order.swap(at, rand::random_range(0..=at));
                }
            }
            PlaceOrder::RoundRobin => {
                let turn = self.last.fetch_add(1, Ordering::Relaxed);
                let len = order.len().max(1);
                order.rotate_left(turn % len);
            }
        }
        order
    }

    pub(super) fn note_good(&self, place: usize) {
        if self.order == PlaceOrder::Listed {
            self.last.store(place, Ordering::Relaxed);
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp(host) => write!(f, "{host}:{}", self.port),
            Host::Unix(folder) => write!(f, "{}:{}", folder.display(), self.port),
        }
    }
}

/// Without the proof.
impl fmt::Display for PgTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.user)?;
        for (at, place) in self.places.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{place}")?;
        }
        write!(f, "/{}", self.database)
    }
}

/// Without the proof.
impl fmt::Debug for PgTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PgTarget({self})")
    }
}

/// What kind it is, and nothing else.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Md5(_) => "Md5",
            Self::Password(_) => "Password",
            Self::Scram(_) => "Scram",
        })
    }
}

impl From<Option<String>> for Credential {
    fn from(password: Option<String>) -> Self {
        password.map_or(Self::None, Self::Password)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_good_place_is_tried_first_and_the_others_in_order() {
        let target = PgTarget::from_url("postgres://a,b,c/d").expect("valid");
        assert_eq!(target.next_order(), [0, 1, 2]);
        let clone = target.clone();
        clone.note_good(2);
        assert_eq!(target.next_order(), [2, 0, 1]);
        clone.note_good(1);
        assert_eq!(target.next_order(), [1, 0, 2]);
        let single = target.at(target.places[0].clone(), SslMode::Require);
        assert_eq!(single.next_order(), [0]);
    }

    #[test]
    fn by_turns_each_place_is_first_as_often_as_the_others() {
        let url = "postgres://a,b,c/d?load_balance_hosts=round-robin";
        let target = PgTarget::from_url(url).expect("valid");
        let clone = target.clone();
        for _ in 0..2 {
            assert_eq!(target.next_order(), [0, 1, 2]);
            clone.note_good(2);
            assert_eq!(clone.next_order(), [1, 2, 0]);
            assert_eq!(target.next_order(), [2, 0, 1]);
        }
    }

    #[test]
    fn chance_puts_each_place_first() {
        let url = "postgres://a,b,c/d?load_balance_hosts=random";
        let target = PgTarget::from_url(url).expect("valid");
        let mut first = [false; 3];
        for _ in 0..1000 {
            let mut order = target.next_order();
            first[order[0]] = true;
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2]);
        }
        assert_eq!(first, [true; 3]);
    }
}
