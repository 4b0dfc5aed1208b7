//! Rules that say what is asked of whom, in the form of `pg_hba.conf`.

pub(super) mod tokens;

use std::fmt;
use std::net::IpAddr;

use regex::Regex;

use super::LineError;
use tokens::{Field, Token};

/// The rules of a file. The first one that fits a client says what is asked of it.
#[derive(Debug, Clone, Default)]
pub struct Hba {
    rules: Vec<HbaRule>,
}

/// A client, as far as rules look at it.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "all that a rule can ask for")]
pub struct Asked<'a> {
    /// The user that it wants to be.
    pub user: &'a str,
    /// The database that it wants.
    pub database: &'a str,
    /// Where it comes from; `None` for a Unix-domain socket.
    pub address: Option<IpAddr>,
    /// Whether its connection is encrypted.
    pub is_encrypted: bool,
    /// Whether it wants the server's log as it is, which is of no database.
    pub is_replication: bool,
}

/// What is asked of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a new one must not be overlooked")]
pub enum HbaMethod {
    /// A certificate of the user's name.
    Cert,
    /// A hash of the password, or SCRAM where that is what is kept.
    Md5,
    /// The password as it is.
    Password,
    /// To be the operating system's user of that name, over a Unix-domain socket.
    Peer,
    /// It is turned away.
    Reject,
    /// SCRAM-SHA-256.
    ScramSha256,
    /// Nothing.
    Trust,
}

/// What a client has to show beside what the method asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a new one must not be overlooked")]
pub enum ClientCert {
    /// A certificate that is trusted.
    VerifyCa,
    /// One of the user's name.
    VerifyFull,
}

/// What of a certificate is the user's name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there are no others")]
pub enum CertName {
    /// The common name.
    #[default]
    Common,
    /// The whole subject.
    Distinguished,
}

/// One rule.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HbaRule {
    /// The line of the file, from 1.
    pub line: usize,
    connection: Connection,
    databases: Vec<Name>,
    users: Vec<Name>,
    addresses: Addresses,
    /// What is asked.
    pub method: HbaMethod,
    /// The map from what a client is to the users that it may be.
    pub map: Option<String>,
    /// A certificate that is asked for beside it.
    pub client_cert: Option<ClientCert>,
    /// What of a certificate counts.
    pub cert_name: CertName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    Local,
    Any,
    Encrypted,
    Plain,
}

#[derive(Debug, Clone)]
enum Name {
    All,
    Exact(String),
    Pattern(Regex),
    Replication,
    SameUser,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Addresses {
    All,
    Net { base: IpAddr, mask: u128 },
}

impl Hba {
    /// Reads the file's text. `include` returns the text of a file that is named behind an `@`.
    ///
    /// # Errors
    /// [`LineError`] naming the line that can't be used, and why. Rules that could be read but not be kept to, such as
    /// those for members of a role, are such lines: a rule that is skipped may be the one that keeps somebody out.
    pub fn parse(
        text: &str,
        include: &mut dyn FnMut(&str) -> std::io::Result<String>,
    ) -> Result<Self, LineError> {
        let mut rules = Vec::new();
        for (line, fields) in tokens::lines(text)? {
            let mut reader = RuleReader {
                line,
                fields: fields.into_iter(),
                include: &mut *include,
            };
            rules.push(reader.rule()?);
        }
        Ok(Self { rules })
    }

    /// The rule for a client. `None`: no rule fits, and it is turned away.
    #[must_use]
    pub fn find(&self, asked: &Asked<'_>) -> Option<&HbaRule> {
        self.rules.iter().find(|rule| rule.fits(asked))
    }

    /// The rules in order.
    #[must_use]
    pub fn rules(&self) -> &[HbaRule] {
        &self.rules
    }
}

impl HbaRule {
    fn fits(&self, asked: &Asked<'_>) -> bool {
        let is_its_connection = match (self.connection, asked.address) {
            (Connection::Local, None) => true,
            (Connection::Local, Some(_)) | (_, None) => false,
            (Connection::Any, Some(_)) => true,
            (Connection::Encrypted, Some(_)) => asked.is_encrypted,
            (Connection::Plain, Some(_)) => !asked.is_encrypted,
        };
        is_its_connection
            && asked
                .address
                .is_none_or(|address| self.addresses.contains(address))
            && self.databases.iter().any(|name| name.is_database(asked))
            && self.users.iter().any(|name| name.is_user(asked.user))
    }

    /// True for a rule of which anybody may be who says so from elsewhere than this machine.
    #[must_use]
    pub fn trusts_others(&self) -> bool {
        self.method == HbaMethod::Trust
            && self.connection != Connection::Local
            && match self.addresses {
                Addresses::All => true,
                Addresses::Net { base, mask } => !is_within_loopback(base, mask),
            }
    }
}

/// 127.0.0.0/8, a part of it, or ::1.
fn is_within_loopback(base: IpAddr, mask: u128) -> bool {
    let is_narrow = match base {
        IpAddr::V4(_) => (mask >> 24) & 0xff == 0xff,
        IpAddr::V6(_) => mask == u128::MAX,
    };
    base.is_loopback() && is_narrow
}

impl Name {
    fn is_database(&self, asked: &Asked<'_>) -> bool {
        match self {
            Self::Replication => asked.is_replication,
            _ if asked.is_replication => false,
            Self::All => true,
            Self::SameUser => asked.user == asked.database,
            Self::Exact(name) => name == asked.database,
            Self::Pattern(pattern) => pattern.is_match(asked.database),
        }
    }

    fn is_user(&self, user: &str) -> bool {
        match self {
            Self::All => true,
            Self::Exact(name) => name == user,
            Self::Pattern(pattern) => pattern.is_match(user),
            Self::Replication | Self::SameUser => false,
        }
    }
}

impl Addresses {
    fn contains(self, address: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::Net { base, mask } => {
                // A client of an IPv6 socket may come from an IPv4 address.
                let address = address.to_canonical();
                base.is_ipv4() == address.is_ipv4() && bits(base) & mask == bits(address) & mask
            }
        }
    }
}

impl fmt::Display for HbaMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = METHODS.iter().find(|(_, method)| method == self);
        f.write_str(found.map_or("", |(name, _)| name))
    }
}

const METHODS: [(&str, HbaMethod); 7] = [
    ("cert", HbaMethod::Cert),
    ("md5", HbaMethod::Md5),
    ("password", HbaMethod::Password),
    ("peer", HbaMethod::Peer),
    ("reject", HbaMethod::Reject),
    ("scram-sha-256", HbaMethod::ScramSha256),
    ("trust", HbaMethod::Trust),
];

struct RuleReader<'a> {
    line: usize,
    fields: std::vec::IntoIter<Field>,
    include: &'a mut dyn FnMut(&str) -> std::io::Result<String>,
}

impl RuleReader<'_> {
    fn rule(&mut self) -> Result<HbaRule, LineError> {
        let connection = match self.single("a connection type")?.as_str() {
            "local" => Connection::Local,
            "host" => Connection::Any,
            "hostssl" => Connection::Encrypted,
            "hostnossl" | "hostnogssenc" => Connection::Plain,
            other => {
                return self.fail(format!(
                    "connection type {other:?} is none of local, host, hostssl, hostnossl"
                ));
            }
        };
        let databases = self.names("a database", true)?;
        let users = self.names("a user", false)?;
        let addresses = match connection {
            Connection::Local => Addresses::All,
            _ => self.addresses()?,
        };
        let method = self.single("a method")?;
        let Some((_, method)) = METHODS.iter().find(|(name, _)| *name == method) else {
            return self.fail(format!("method {method:?} is not supported"));
        };
        let mut rule = HbaRule {
            line: self.line,
            connection,
            databases,
            users,
            addresses,
            method: *method,
            map: None,
            client_cert: None,
            cert_name: CertName::Common,
        };
        while let Some(field) = self.fields.next() {
            for option in field {
                self.option(&mut rule, &option)?;
            }
        }
        self.check(&rule)?;
        Ok(rule)
    }

    fn option(&self, rule: &mut HbaRule, option: &Token) -> Result<(), LineError> {
        let Some((name, value)) = option.text.split_once('=') else {
            return self.fail(format!("option {:?} is not name=value", option.text));
        };
        match (name, value) {
            ("map", map) => rule.map = Some(map.to_owned()),
            ("clientcert", "verify-ca") => rule.client_cert = Some(ClientCert::VerifyCa),
            ("clientcert", "verify-full") => rule.client_cert = Some(ClientCert::VerifyFull),
            ("clientname", "CN") => rule.cert_name = CertName::Common,
            ("clientname", "DN") => rule.cert_name = CertName::Distinguished,
            _ => return self.fail(format!("option {:?} is not supported", option.text)),
        }
        Ok(())
    }

    fn check(&self, rule: &HbaRule) -> Result<(), LineError> {
        let can_have_certificate = match rule.connection {
            Connection::Encrypted => true,
            // As in PgBouncer's files: who comes without encryption has no certificate, and is turned away.
            Connection::Any => rule.client_cert.is_none(),
            Connection::Local | Connection::Plain => false,
        };
        let asks_for_certificate = rule.method == HbaMethod::Cert || rule.client_cert.is_some();
        if asks_for_certificate && !can_have_certificate {
            return self.fail(
                "a certificate can be asked for in hostssl lines only, or by cert in host lines"
                    .to_owned(),
            );
        }
        if rule.method == HbaMethod::Peer && rule.connection != Connection::Local {
            return self.fail("peer is possible in local lines only".to_owned());
        }
        let uses_map = matches!(rule.method, HbaMethod::Cert | HbaMethod::Peer)
            || rule.client_cert == Some(ClientCert::VerifyFull);
        if rule.map.is_some() && !uses_map {
            return self
                .fail("map is of use with cert, peer and clientcert=verify-full".to_owned());
        }
        Ok(())
    }

    fn single(&mut self, what: &str) -> Result<String, LineError> {
        let field = self.fields.next().unwrap_or_default();
        let mut tokens = field.into_iter();
        match (tokens.next(), tokens.next()) {
            (Some(token), None) => Ok(token.text),
            (None, _) => self.fail(format!("{what} is missing")),
            (Some(_), Some(_)) => self.fail(format!("{what} is a list")),
        }
    }

    fn names(&mut self, what: &str, is_database: bool) -> Result<Vec<Name>, LineError> {
        let Some(field) = self.fields.next() else {
            return self.fail(format!("{what} is missing"));
        };
        let mut names = Vec::new();
        for token in field {
            self.name(token, is_database, &mut names, 0)?;
        }
        Ok(names)
    }

    fn name(
        &mut self,
        token: Token,
        is_database: bool,
        names: &mut Vec<Name>,
        depth: usize,
    ) -> Result<(), LineError> {
        if token.is_quoted {
            names.push(Name::Exact(token.text));
            return Ok(());
        }
        match token.text.as_str() {
            "all" => names.push(Name::All),
            "sameuser" if is_database => names.push(Name::SameUser),
            "replication" if is_database => names.push(Name::Replication),
            "samerole" | "samegroup" if is_database => {
                return self.fail("the members of a role are not known here (samerole)".to_owned());
            }
            text if text.starts_with('+') => {
                return self.fail(format!("the members of a role are not known here ({text})"));
            }
            text if text.starts_with('/') => match Regex::new(&text[1..]) {
                Ok(pattern) => names.push(Name::Pattern(pattern)),
                Err(error) => {
                    return self.fail(format!("{text:?} is no regular expression: {error}"));
                }
            },
            text if text.starts_with('@') => {
                if depth >= INCLUDES_MAX {
                    return self.fail(format!("files include each other ({text})"));
                }
                let included = match (self.include)(&text[1..]) {
                    Ok(included) => included,
                    Err(error) => {
                        return self.fail(format!("cannot read {:?}: {error}", &text[1..]));
                    }
                };
                let lines = tokens::lines(&included)
                    .map_err(|error| LineError::new(self.line, format!("in {text:?}: {error}")))?;
                for token in lines.into_iter().flat_map(|(_, fields)| fields).flatten() {
                    self.name(token, is_database, names, depth + 1)?;
                }
            }
            text => names.push(Name::Exact(text.to_owned())),
        }
        Ok(())
    }

    fn addresses(&mut self) -> Result<Addresses, LineError> {
        let text = self.single("an address")?;
        if text == "all" {
            return Ok(Addresses::All);
        }
        if let Some((base, len)) = text.split_once('/') {
            let net = base.parse().ok().and_then(|base: IpAddr| {
                let width = if base.is_ipv4() { 32 } else { 128 };
                let len: u32 = len.parse().ok().filter(|len| *len <= width)?;
                let all = if base.is_ipv4() {
                    u128::from(u32::MAX)
                } else {
                    u128::MAX
                };
                let host_bits = all.checked_shr(len).filter(|_| len < 128).unwrap_or(0);
                Some(Addresses::Net {
                    base,
                    mask: all & !host_bits,
                })
            });
            return match net {
                Some(net) => Ok(net),
                None => self.fail(format!("{text:?} is no range of addresses")),
            };
        }
        let Ok(base) = text.parse::<IpAddr>() else {
            return self.fail(format!(
                "{text:?} is no address; names of hosts, samehost and samenet are not supported"
            ));
        };
        let mask = self.single("a netmask")?;
        match mask.parse::<IpAddr>() {
            Ok(mask) if mask.is_ipv4() == base.is_ipv4() => Ok(Addresses::Net {
                base,
                mask: bits(mask),
            }),
            _ => self.fail(format!("{mask:?} is no netmask")),
        }
    }

    fn fail<T>(&self, message: String) -> Result<T, LineError> {
        Err(LineError::new(self.line, message))
    }
}

const INCLUDES_MAX: usize = 10;

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Hba, LineError> {
        Hba::parse(text, &mut |file| match file {
            "admins" => Ok("ada, bob\n\"carl lee\" # and no more\n@more".to_owned()),
            "more" => Ok("dora".to_owned()),
            "loop" => Ok("@loop".to_owned()),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        })
    }

    fn asked<'a>(user: &'a str, database: &'a str, address: Option<&str>) -> Asked<'a> {
        Asked {
            user,
            database,
            address: address.map(|text| text.parse().expect("an address")),
            is_encrypted: false,
            is_replication: false,
        }
    }

    fn line_for(text: &str, asked: &Asked<'_>) -> Option<usize> {
        let hba = parse(text).expect("valid");
        hba.find(asked).map(|rule| rule.line)
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        let text = "# who may do what\n\
                    local all all peer map=os\n\
                    host  shop,\"all\" ada 10.0.0.0/8 scram-sha-256\n\
                    host  sameuser all 192.168.1.0 255.255.255.0 md5\n\
                    hostssl all all ::1/128 cert map=certs clientname=DN\n\
                    hostnossl all all all reject\n\
                    host replication all 0.0.0.0/0 trust\n\
                    host /^db\\d+$ @admins 0.0.0.0/0 password\n";
        let find = |user, database, address| line_for(text, &asked(user, database, address));
        assert_eq!(find("x", "y", None), Some(2));
        assert_eq!(find("ada", "shop", Some("10.255.0.1")), Some(3));
        assert_eq!(find("ada", "all", Some("10.0.0.1")), Some(3));
        assert_eq!(find("ada", "other", Some("10.0.0.1")), Some(6));
        assert_eq!(find("Ada", "shop", Some("11.0.0.1")), Some(6));
        assert_eq!(find("bob", "bob", Some("192.168.1.77")), Some(4));
        assert_eq!(find("bob", "bob", Some("::ffff:192.168.1.77")), Some(4));
        assert_eq!(find("bob", "shop", Some("192.168.1.77")), Some(6));
        let encrypted = |user, database, address| {
            let mut asked = asked(user, database, Some(address));
            asked.is_encrypted = true;
            line_for(text, &asked)
        };
        assert_eq!(encrypted("bob", "shop", "::1"), Some(5));
        assert_eq!(encrypted("bob", "db7", "1.2.3.4"), Some(8));
        assert_eq!(encrypted("carl lee", "db7", "1.2.3.4"), Some(8));
        assert_eq!(encrypted("dora", "db7", "1.2.3.4"), Some(8));
        assert_eq!(encrypted("eve", "db7", "1.2.3.4"), None);
        assert_eq!(encrypted("bob", "db7", "::2"), None);
        let mut walsender = asked("bob", "", Some("1.2.3.4"));
        (walsender.is_replication, walsender.is_encrypted) = (true, true);
        assert_eq!(line_for(text, &walsender), Some(7));
        let rule = parse(text).expect("valid").rules()[3].clone();
        assert_eq!(
            (rule.method, rule.map.as_deref(), rule.cert_name),
            (HbaMethod::Cert, Some("certs"), CertName::Distinguished)
        );
    }

    #[test]
    fn cert_in_a_host_line_is_for_those_without_encryption_too() {
        let text = "host all all 19.0.0.0/8 cert map=certs\nhost all all all trust";
        let mut asked = asked("u", "d", Some("19.1.2.3"));
        assert_eq!(line_for(text, &asked), Some(1), "to be turned away by it");
        asked.is_encrypted = true;
        assert_eq!(line_for(text, &asked), Some(1));
        assert_eq!(
            parse(text).expect("valid").rules()[0].method,
            HbaMethod::Cert
        );
    }

    #[test]
    fn lists_go_on_behind_a_comma_and_lines_behind_a_backslash() {
        let text = "host a, b , c \\\n all 0.0.0.0/0 trust\nhost d all all reject";
        let address = Some("1.2.3.4");
        assert_eq!(line_for(text, &asked("u", "c", address)), Some(1));
        assert_eq!(line_for(text, &asked("u", "d", address)), Some(3));
    }

    #[test]
    fn a_line_that_cannot_be_kept_to_is_named() {
        for (line, what) in [
            ("hots all all all trust", "connection type"),
            ("host all", "a user is missing"),
            ("host all all", "an address is missing"),
            ("host all all all", "a method is missing"),
            ("host all all all ldap", "method \"ldap\""),
            ("host all +admins all trust", "members"),
            ("host samerole all all trust", "members"),
            ("host all all db.example trust", "no address"),
            ("host all all samenet trust", "no address"),
            ("host all all 10.0.0.0/33 trust", "no range"),
            ("host all all 10.0.0.0 trust", "no netmask"),
            ("host all all 10.0.0.0 ffff:: trust", "no netmask"),
            ("local all all cert", "hostssl"),
            ("hostnossl all all all cert", "hostssl"),
            ("host all all all md5 clientcert=verify-ca", "hostssl"),
            ("host all all all peer", "local"),
            ("host all all all trust map=x", "map"),
            ("host all all all trust please", "name=value"),
            ("host all all all trust ldapserver=x", "not supported"),
            ("host /( all all trust", "regular expression"),
            ("host @none all all trust", "cannot read"),
            ("host @loop all all trust", "include each other"),
            ("host \"all all all trust", "quote"),
        ] {
            let error = parse(&format!("# first\n{line}\n")).expect_err(line);
            assert_eq!(error.line, 2, "{line}");
            assert!(error.message.contains(what), "{line}: {error}");
        }
    }

    #[test]
    fn trust_for_others_is_recognised() {
        for (line, is_open) in [
            ("local all all trust", false),
            ("host all all 127.0.0.1/32 trust", false),
            ("host all all 127.0.0.0/8 trust", false),
            ("host all all ::1/128 trust", false),
            ("host all all 127.0.0.1/1 trust", true),
            ("host all all ::1/64 trust", true),
            ("host all all 10.0.0.0/8 trust", true),
            ("host all all all trust", true),
            ("host all all all md5", false),
        ] {
            let hba = parse(line).expect(line);
            assert_eq!(hba.rules()[0].trusts_others(), is_open, "{line}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_rules_or_an_error(text in "([a-z]{0,8}|host|all|[0-9./:]{1,9}|[ ,\"#@/+=\\\\\n]){0,20}") {
            let _ = parse(&text);
        }

        #[test]
        fn an_address_is_in_a_range_by_its_leading_bits(base: u32, other: u32, len in 0_u32..=32) {
            let (base, other) = (std::net::Ipv4Addr::from(base), std::net::Ipv4Addr::from(other));
            let text = format!("host all all {base}/{len} trust");
            let is_in = len == 0 || (base.to_bits() ^ other.to_bits()).leading_zeros() >= len;
            let found = line_for(&text, &asked("u", "d", Some(&other.to_string())));
            prop_assert_eq!(found.is_some(), is_in);
        }

        #[test]
        fn so_are_longer_ones(base: u128, other: u128, len in 0_u32..=128) {
            let (base, other) = (std::net::Ipv6Addr::from(base), std::net::Ipv6Addr::from(other));
            prop_assume!(other.to_ipv4_mapped().is_none());
            let text = format!("host all all {base}/{len} trust");
            let is_in = len == 0 || (base.to_bits() ^ other.to_bits()).leading_zeros() >= len;
            let found = line_for(&text, &asked("u", "d", Some(&other.to_string())));
            prop_assert_eq!(found.is_some(), is_in);
        }
    }
}
