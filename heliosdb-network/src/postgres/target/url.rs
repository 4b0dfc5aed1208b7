//! Reading a server's URL, as libpq does.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{HeliosError, Result};
use crate::tls::{
    ChannelBindingMode, RootCertificates, SslMode, SslNegotiation, TlsOptions, TlsVersion,
};

use super::{Credential, Host, PgTarget, Place, PlaceOrder, SessionAttrs};

/// The lists that places are made of, each of which may have one item for all.
#[derive(Default)]
struct Lists {
    hosts: Vec<String>,
    addresses: Vec<String>,
    ports: Vec<String>,
}

pub(super) fn read(url: &str) -> Result<PgTarget> {
    let (_, rest) = url
        .split_once("://")
        .filter(|(scheme, _)| matches!(*scheme, "postgres" | "postgresql"))
        .ok_or_else(|| unusable("it does not begin with postgres://"))?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    // An @ in a password should be escaped. Where it is not, there is no other way to read it.
    let (login, addresses) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = match login.split_once(':') {
        Some((user, password)) => (user, Some(decode(password)?)),
        None => (login, None),
    };
    let mut lists = Lists::default();
    for address in addresses.split(',') {
        // Only an address in brackets can hold colons of its own.
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (address, ""),
        };
        lists.hosts.push(decode(host)?);
        lists.ports.push(port.to_owned());
    }
    let mut target = PgTarget::new(
        Host::Tcp(String::new()),
        0,
        &decode(user)?,
        &decode(database)?,
    );
    target.credential = password.into();
    target.tls.mode = SslMode::Prefer;
    let mut has_mode = false;
    for assignment in query.split('&').filter(|text| !text.is_empty()) {
        let (name, value) = assignment
            .split_once('=')
            .ok_or_else(|| unusable("a parameter has no value"))?;
        let (name, value) = (decode(name)?, decode(value)?);
        has_mode |= name == "sslmode";
        set(&mut target, &mut lists, &name, value)?;
    }
    if target.tls.roots == Some(RootCertificates::System) && !has_mode {
        target.tls.mode = SslMode::VerifyFull;
    }
    target
        .tls
        .check()
        .map_err(|error| unusable(&error.to_string()))?;
    if target.channel_binding == ChannelBindingMode::Require && target.tls.mode < SslMode::Require {
        return Err(unusable(
            "channel_binding=require needs sslmode=require or a stronger one",
        ));
    }
    target.places = lists.places()?;
    if target.user.is_empty() {
        "postgres".clone_into(&mut target.user);
    }
    if target.database.is_empty() {
        target.database.clone_from(&target.user);
    }
    Ok(target)
}

/// Sets what a parameter behind the question mark stands for.
fn set(target: &mut PgTarget, lists: &mut Lists, name: &str, value: String) -> Result<()> {
    let list = || value.split(',').map(str::to_owned).collect();
    match name {
        "application_name" | "client_encoding" | "options" => {
            target.params.push((name.to_owned(), value));
        }
        "connect_timeout" => {
            // To libpq, 0 means to wait for ever: nobody who shares connections can want that.
            let seconds: NonZeroU32 = number(name, &value)?;
            target.connect_timeout = Duration::from_secs(seconds.get().into());
        }
        "dbname" => target.database = value,
        "gssencmode" if matches!(&*value, "disable" | "prefer") => {}
        "host" => lists.hosts = list(),
        "hostaddr" => lists.addresses = list(),
        "load_balance_hosts" => {
            let orders = [
                ("disable", PlaceOrder::Listed),
                ("random", PlaceOrder::Random),
                ("round-robin", PlaceOrder::RoundRobin),
            ];
            target.order = one_of(name, &value, &orders)?;
        }
        "password" => target.credential = Credential::Password(value),
        "port" => lists.ports = list(),
        "target_session_attrs" => target.session_attrs = one_of(name, &value, &SESSION_ATTRS)?,
        "user" => target.user = value,
        _ if set_tls(&mut target.tls, name, &value)? => {}
        "channel_binding" => {
            let modes = [
                ("disable", ChannelBindingMode::Disable),
                ("prefer", ChannelBindingMode::Prefer),
                ("require", ChannelBindingMode::Require),
            ];
            target.channel_binding = one_of(name, &value, &modes)?;
        }
        other => return Err(unusable(&format!("parameter {other:?} is not known"))),
    }
    Ok(())
}

/// The same for the parameters of encryption; false for any other.
fn set_tls(tls: &mut TlsOptions, name: &str, value: &str) -> Result<bool> {
    match name {
        "sslmode" => tls.mode = one_of(name, value, &SSL_MODES)?,
        "sslrootcert" if value == "system" => tls.roots = Some(RootCertificates::System),
        "sslrootcert" => tls.roots = Some(RootCertificates::File(value.into())),
        "sslcert" => tls.certificate = Some(value.into()),
        "sslkey" => tls.key = Some(value.into()),
        "sslnegotiation" => {
            let ways = [
                ("postgres", SslNegotiation::Postgres),
                ("direct", SslNegotiation::Direct),
            ];
            tls.negotiation = one_of(name, value, &ways)?;
        }
        "ssl_min_protocol_version" => {
            // Older ones are never spoken.
            let versions = [
                ("TLSv1", TlsVersion::Tls12),
                ("TLSv1.1", TlsVersion::Tls12),
                ("TLSv1.2", TlsVersion::Tls12),
                ("TLSv1.3", TlsVersion::Tls13),
            ];
            tls.min_version = one_of(name, value, &versions)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

const SSL_MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

const SESSION_ATTRS: [(&str, SessionAttrs); 6] = [
    ("any", SessionAttrs::Any),
    ("prefer-standby", SessionAttrs::PreferStandby),
    ("primary", SessionAttrs::Primary),
    ("read-only", SessionAttrs::ReadOnly),
    ("read-write", SessionAttrs::ReadWrite),
    ("standby", SessionAttrs::Standby),
];

impl Lists {
    fn places(mut self) -> Result<Vec<Place>> {
        let len = self.hosts.len().max(self.addresses.len());
        let fits = |list: &[String]| list.len() == 1 || list.len() == len;
        let has_hosts = self.hosts.iter().any(|host| !host.is_empty());
        if !has_hosts {
            // An address alone will do.
            self.hosts = self
                .addresses
                .iter()
                .cloned()
                .chain(std::iter::repeat(String::new()))
                .take(len)
                .collect();
        }
        let is_even = self.hosts.len() == len
            && (self.addresses.is_empty() || self.addresses.len() == len)
            && fits(&self.ports);
        if !is_even {
            return Err(unusable("hosts, addresses and ports differ in number"));
        }
        (0..len).map(|at| self.place(at)).collect()
    }

    fn place(&self, at: usize) -> Result<Place> {
        let port = self.ports.get(at).or_else(|| self.ports.first());
        let port = match port.map(String::as_str) {
            None | Some("") => 5432,
            Some(port) => number("port", port)?,
        };
        let address = match self.addresses.get(at).map(String::as_str) {
            None | Some("") => None,
            Some(text) => {
                let ip: IpAddr = text
                    .parse()
                    .map_err(|_| unusable("hostaddr is not an address"))?;
                Some(SocketAddr::new(ip, port))
            }
        };
        Ok(Place {
            host: host(&self.hosts[at]),
            port,
            address,
        })
    }
}

fn host(host: &str) -> Host {
    match host {
        "" => Host::Tcp("localhost".to_owned()),
        folder if folder.starts_with('/') => Host::Unix(folder.into()),
        name => {
            let address = name
                .strip_prefix('[')
                .and_then(|name| name.strip_suffix(']'));
            Host::Tcp(address.unwrap_or(name).to_owned())
        }
    }
}

fn one_of<T: Copy>(name: &str, value: &str, known: &[(&str, T)]) -> Result<T> {
    let found = known.iter().find(|(text, _)| *text == value);
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let texts: Vec<&str> = known.iter().map(|(text, _)| *text).collect();
        unusable(&format!("{name} is none of {}", texts.join(", ")))
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
    use proptest::prelude::*;

    use super::*;

    fn read(url: &str) -> (Host, u16, String, Option<String>, String) {
        let mut target = PgTarget::from_url(url).expect(url);
        let place = target.places.remove(0);
        assert!(target.places.is_empty());
        let password = match target.credential {
            Credential::None => None,
            Credential::Password(password) => Some(password),
            other => panic!("{other:?}"),
        };
        (
            place.host,
            place.port,
            target.user,
            password,
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
    fn several_places_are_read_as_libpq_reads_them() {
        let places = |url: &str| {
            let target = PgTarget::from_url(url).expect(url);
            let texts: Vec<String> = target.places.iter().map(ToString::to_string).collect();
            (texts.join(" "), target.to_string())
        };
        let url = "postgres://u@h1:1,[::1],h3:3/d?target_session_attrs=read-write";
        assert_eq!(
            places(url),
            (
                "h1:1 ::1:5432 h3:3".to_owned(),
                "u@h1:1,::1:5432,h3:3/d".to_owned()
            )
        );
        let target = PgTarget::from_url(url).expect("valid");
        assert_eq!(target.session_attrs, SessionAttrs::ReadWrite);
        for (url, expected) in [
            ("postgres:///d?host=a,b&port=7", "a:7 b:7"),
            ("postgres:///d?host=a,b&port=7,8", "a:7 b:8"),
            ("postgres://a,%2Ftmp:1/d", "a:5432 /tmp:1"),
            (
                "postgres:///d?hostaddr=127.0.0.1,::1",
                "127.0.0.1:5432 ::1:5432",
            ),
        ] {
            assert_eq!(places(url).0, expected, "{url}");
        }
        let url = "postgres://db/d?hostaddr=10.0.0.1&port=6";
        let target = PgTarget::from_url(url).expect("valid");
        let address = SocketAddr::from(([10, 0, 0, 1], 6));
        assert_eq!(target.places[0].host, tcp("db"));
        assert_eq!(target.places[0].address, Some(address));
    }

    #[test]
    fn encryption_is_as_libpq_means_it() {
        let tls = |query: &str| {
            let target = PgTarget::from_url(&format!("postgres://h/d?{query}")).expect(query);
            (target.tls.mode, target.tls.roots, target.tls.negotiation)
        };
        let file = || Some(RootCertificates::File("/r.pem".into()));
        let (postgres, direct) = (SslNegotiation::Postgres, SslNegotiation::Direct);
        assert_eq!(tls(""), (SslMode::Prefer, None, postgres));
        assert_eq!(tls("sslmode=disable").0, SslMode::Disable);
        assert_eq!(
            tls("sslmode=require&sslnegotiation=direct"),
            (SslMode::Require, None, direct)
        );
        let verified = "sslmode=verify-ca&sslrootcert=%2Fr.pem";
        assert_eq!(tls(verified), (SslMode::VerifyCa, file(), postgres));
        // The system trusts so many that only the name is left to tell them apart.
        let system = Some(RootCertificates::System);
        assert_eq!(
            tls("sslrootcert=system"),
            (SslMode::VerifyFull, system, postgres)
        );
    }

    #[test]
    fn a_key_without_a_certificate_is_of_no_use_and_does_no_harm() {
        let target = PgTarget::from_url("postgres://h/d?sslkey=%2Fk").expect("valid");
        assert_eq!(target.tls.key, Some("/k".into()));
        assert_eq!(target.tls.certificate, None);
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
            "postgres://h/d?sslmode=verify-full",
            "postgres://h/d?sslmode=verify-ca",
            "postgres://h/d?sslmode=encrypted",
            "postgres://h/d?sslmode=require&sslrootcert=system",
            "postgres://h/d?sslnegotiation=direct",
            "postgres://h/d?sslmode=require&sslcert=c",
            "postgres://h/d?channel_binding=require",
            "postgres://h/d?gssencmode=require",
            "postgres://h/d?target_session_attrs=writable",
            "postgres://h/d?load_balance_hosts=yes",
            "postgres://a,b/d?port=1,2,3",
            "postgres://a,b/d?hostaddr=127.0.0.1",
            "postgres://a/d?hostaddr=b",
            "postgres://a,b/d?host=c&port=1,2",
            "postgres://h/d?bogus=1",
            "postgres://h/d?port=x",
            "postgres://h/d?connect_timeout=0",
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

    proptest! {
        #[test]
        fn any_text_is_a_target_or_an_error(rest in "[a-z0-9:@/?&=,%\\[\\].-]{0,60}") {
            if let Ok(target) = PgTarget::from_url(&format!("postgres://{rest}")) {
                prop_assert!(!target.places.is_empty());
                prop_assert!(!target.user.is_empty() && !target.database.is_empty());
            }
        }
    }
}
