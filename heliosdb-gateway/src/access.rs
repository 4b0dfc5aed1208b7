//! Who is let in: what a client has to prove, against what, and what it may do on the console.
//!
//! [`Access`] is made of the configuration and the files that it names, and replaced as a whole by a reload: a login
//! under way goes by the one that it began with. [`ask`] asks the server for the secrets of users that no file has.

mod ask;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use heliosdb_network::postgres::auth::{
    Asked, CertName, ClientCert, Granted, Hba, HbaMethod, HbaRule, IdentMap, Proof, StoredSecret,
    UserList,
};
use heliosdb_network::postgres::{Credential, PgTarget};
use heliosdb_network::tls::{CertificateIdentity, ServerTls, ServerTlsOptions};

use crate::admin;
use crate::clients::Peer;
use crate::config::names::{self, Dialect};
use crate::config::{
    Asking, AuthConfig, AuthType, Config, Databases, TlsConfig, TlsMode, asks_for_user,
};
use crate::error::{ClientError, ErrorKind};
use crate::upstream::Upstream;

use ask::Asker;

/// The rules and secrets in force.
#[derive(Debug)]
pub(crate) struct Access {
    config: AuthConfig,
    /// Those that have ways of their own to ask for users, by name.
    databases: Databases,
    allows_remote_trust: bool,
    users: UserList,
    hba: Hba,
    ident: IdentMap,
    /// What is in force, which may be older than what is configured.
    tls_config: TlsConfig,
    pub(crate) tls: Option<Arc<ServerTls>>,
    asker: Asker,
    /// For users that there are none of: nobody else knows it. They must not look different after a reload, nor, where
    /// there is a private key to go by, after a restart. (What can be guessed, such as passwords, is no seed: a client sees
    /// what is made of it.)
    seed: Vec<u8>,
}

/// Where a client is and what it has shown so far.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) peer: Peer,
    pub(crate) is_encrypted: bool,
    /// What its login can be bound to.
    pub(crate) end_point: Option<Vec<u8>>,
    pub(crate) certificate: Option<CertificateIdentity>,
}

/// Who a client says it is, and what it wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim<'a> {
    pub(crate) user: &'a str,
    pub(crate) database: &'a str,
    /// It wants the server's log as it is, which is of no database.
    pub(crate) is_replication: bool,
}

/// What becomes of files for TLS with clients that do not fit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    IsRefused,
    /// What was in force stays until they fit.
    Waits,
}

/// What a client still has to prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Nothing, by this method, as PostgreSQL's messages call it.
    Nothing(&'static str),
    Proof(Proof),
}

/// What the file or the server says of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Known {
    /// There is no such user.
    Nobody,
    /// There is, with a secret or without one.
    User(Option<StoredSecret>),
}

const TRUST: &str = "\"trust\"";

/// What a client may do on the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Everything.
    Admin,
    /// Look.
    Stats,
}

impl Access {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    /// A file that can't be read or used, naming it and the line.
    pub(crate) fn open(config: &Config) -> anyhow::Result<Self> {
        let tls = open_tls(&config.tls)?;
        let seed = match &tls {
            Some((options, _)) => read(&options.key)?.into_bytes(),
            None => rand::random::<[u8; 32]>().to_vec(),
        };
        let tls = tls.map(|(_, tls)| tls);
        Self::with(config, (config.tls.clone(), tls), seed)
    }

    /// Reads them anew, where `before` is what was in force. Returns what is wrong with the files for TLS, if those before
    /// stay in force for it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn reopen(
        config: &Config,
        before: &Self,
        unfit: Unfit,
    ) -> anyhow::Result<(Self, Option<anyhow::Error>)> {
        let (tls, waits) = match open_tls(&config.tls) {
            Ok(tls) => ((config.tls.clone(), tls.map(|(_, tls)| tls)), None),
            Err(error) if unfit == Unfit::Waits => {
                ((before.tls_config.clone(), before.tls.clone()), Some(error))
            }
            Err(error) => return Err(error),
        };
        Ok((Self::with(config, tls, before.seed.clone())?, waits))
    }

    fn with(
        config: &Config,
        (tls_config, tls): (TlsConfig, Option<Arc<ServerTls>>),
        seed: Vec<u8>,
    ) -> anyhow::Result<Self> {
        let auth = &config.auth;
        let users = match &auth.file {
            None => UserList::default(),
            Some(file) => UserList::parse(&read(file)?).with_context(|| in_file(file))?,
        };
        let hba = match &auth.hba_file {
            Some(file) if auth.kind == AuthType::Hba => {
                let folder = file.parent().unwrap_or_else(|| Path::new(""));
                let mut include = |name: &str| std::fs::read_to_string(folder.join(name));
                Hba::parse(&read(file)?, &mut include).with_context(|| in_file(file))?
            }
            _ => Hba::default(),
        };
        let allows_remote_trust = config.clients.allow_remote_trust;
        for rule in hba.rules() {
            if rule.trusts_others() && !allows_remote_trust {
                tracing::warn!(
                    line = rule.line,
                    "a rule trusts clients from elsewhere: they are turned away unless clients.allow_remote_trust is true"
                );
            }
        }
        let ident = match &auth.ident_file {
            None => IdentMap::default(),
            Some(file) => IdentMap::parse(&read(file)?).with_context(|| in_file(file))?,
        };
        warn_of_queries(config);
        Ok(Self {
            config: auth.clone(),
            databases: config.databases.clone(),
            allows_remote_trust,
            users,
            hba,
            ident,
            tls_config,
            tls,
            asker: Asker::default(),
            seed,
        })
    }

    /// Whether a connection may begin with TLS.
    pub(crate) fn allows_direct_tls(&self) -> bool {
        self.tls_config.direct && self.tls.is_some()
    }

    /// The key of what is shown to users that there are none of.
    pub(crate) fn seed(&self) -> &[u8] {
        &self.seed
    }

    /// What a client has to prove for what it wants to be; what it has shown counts already.
    ///
    /// # Errors
    /// It is turned away, whatever it could prove.
    pub(crate) fn demand(&self, caller: &Caller, claim: &Claim<'_>) -> Result<Demand, ClientError> {
        let user = claim.user;
        let address = caller.peer.ip();
        if self.tls_config.mode >= TlsMode::Require && address.is_some() && !caller.is_encrypted {
            return Err(no("SSL connection is required")
                .hint("Connect with sslmode=require or a stronger one."));
        }
        match self.config.kind {
            AuthType::Any | AuthType::Trust => self.trust(address),
            AuthType::Plain => Ok(Demand::Proof(Proof::Cleartext)),
            AuthType::Md5 => Ok(Demand::Proof(Proof::Md5)),
            AuthType::ScramSha256 => Ok(Demand::Proof(Proof::Scram)),
            AuthType::Cert => {
                self.check_certificate(caller, user, None, CertName::Common)?;
                Ok(Demand::Nothing("certificate"))
            }
            AuthType::Hba => {
                let asked = Asked {
                    user,
                    database: claim.database,
                    address,
                    is_encrypted: caller.is_encrypted,
                    is_replication: claim.is_replication,
                };
                match self.hba.find(&asked) {
                    Some(rule) => self.by_rule(rule, caller, &asked),
                    None => Err(turned_away("no pg_hba.conf entry for", &asked)),
                }
            }
        }
    }

    fn by_rule(
        &self,
        rule: &HbaRule,
        caller: &Caller,
        asked: &Asked<'_>,
    ) -> Result<Demand, ClientError> {
        let map = rule.map.as_deref();
        match rule.client_cert {
            None => {}
            Some(ClientCert::VerifyFull) => {
                self.check_certificate(caller, asked.user, map, rule.cert_name)?;
            }
            Some(ClientCert::VerifyCa) if caller.certificate.is_some() => {}
            Some(ClientCert::VerifyCa) => {
                return Err(no("connection requires a valid client certificate"));
            }
        }
        match rule.method {
            HbaMethod::Reject => Err(turned_away("pg_hba.conf rejects connection for", asked)),
            HbaMethod::Trust => self.trust(asked.address),
            HbaMethod::Password => Ok(Demand::Proof(Proof::Cleartext)),
            HbaMethod::Md5 => Ok(Demand::Proof(Proof::Md5)),
            HbaMethod::ScramSha256 => Ok(Demand::Proof(Proof::Scram)),
            HbaMethod::Cert => {
                self.check_certificate(caller, asked.user, map, rule.cert_name)?;
                Ok(Demand::Nothing("certificate"))
            }
            HbaMethod::Peer => {
                let name = caller.peer.user_name();
                let is_allowed = name.is_some_and(|name| self.ident.allows(map, &name, asked.user));
                if is_allowed {
                    Ok(Demand::Nothing("Peer"))
                } else {
                    let message = format!("Peer authentication failed for user \"{}\"", asked.user);
                    Err(no(&message))
                }
            }
        }
    }

    /// Whoever comes from elsewhere is not trusted unless that was asked for.
    fn trust(&self, address: Option<IpAddr>) -> Result<Demand, ClientError> {
        let is_near = address.is_none_or(|address| address.to_canonical().is_loopback());
        if is_near || self.allows_remote_trust {
            return Ok(Demand::Nothing(TRUST));
        }
        Err(
            no("clients from other machines are not trusted without a password").hint(format!(
                "Set {} in {}.",
                names::key("auth.type"),
                names::place()
            )),
        )
    }

    fn check_certificate(
        &self,
        caller: &Caller,
        user: &str,
        map: Option<&str>,
        by: CertName,
    ) -> Result<(), ClientError> {
        let Some(certificate) = &caller.certificate else {
            return Err(no("connection requires a valid client certificate"));
        };
        let name = match by {
            CertName::Common => certificate.common_name.as_deref(),
            CertName::Distinguished => Some(&*certificate.distinguished_name),
        };
        let is_allowed = name.is_some_and(|name| self.ident.allows(map, name, user));
        if is_allowed {
            return Ok(());
        }
        let message = format!("certificate authentication failed for user \"{user}\"");
        Err(no(&message))
    }

    /// What is known of a user of a database: by the file, or by the server.
    ///
    /// # Errors
    /// The server can't be asked.
    pub(crate) async fn known(
        &self,
        upstream: &Upstream,
        user: &str,
        database: &str,
    ) -> Result<Known, ClientError> {
        if let Some(known) = self.users.get(user) {
            return Ok(Known::User(Some(known.clone())));
        }
        let Some(asking) = self.asking(database) else {
            return Ok(Known::Nobody);
        };
        match self.asked_database(&asking, upstream, database)? {
            Some(target) => self.asker.ask(&asking, &self.users, target, user).await,
            None => Ok(Known::Nobody),
        }
    }

    /// What is kept of the password of a user who has nothing to prove, if it is a user at all.
    ///
    /// # Errors
    /// There is no such user, and that counts; or the server can't be asked.
    pub(crate) async fn let_in(
        &self,
        upstream: &Upstream,
        user: &str,
        database: &str,
        method: &str,
    ) -> Result<Option<StoredSecret>, ClientError> {
        if !self.config.known_users_only || self.config.kind == AuthType::Any {
            return Ok(None);
        }
        match self.known(upstream, user, database).await? {
            Known::User(secret) => Ok(secret),
            Known::Nobody => {
                let refused = no(&format!(
                    "{method} authentication failed for user \"{user}\""
                ));
                // Nothing was to be proved, so that who is let in can be seen anyway.
                let told = refused.hint(format!("There is no such user: {user}."));
                Err(match self.asking(database) {
                    Some(_) => told.known_as("no such user"),
                    None => told,
                })
            }
        }
    }

    /// True where users are asked by SCRAM even under md5: then those that there are none of are, too.
    pub(crate) fn mostly_scram(&self, database: &str) -> bool {
        let mut kept = self.users.iter().map(|(_, secret)| secret);
        self.asking(database).is_some()
            || kept.any(|secret| matches!(secret, StoredSecret::Scram(_)))
    }

    /// A proof was wrong: what the server said of the user may be out of date by now.
    pub(crate) fn doubt(&self, user: &str) {
        self.asker.forget(user);
    }

    fn asking(&self, database: &str) -> Option<Asking<'_>> {
        let own = (!admin::is_console(database)).then(|| {
            let own = self.databases.get(database);
            own.or_else(|| self.databases.get("*"))
        });
        self.config.asking(own.flatten())
    }

    /// Where the server is asked for the users of a database. `None`: there is no such database.
    fn asked_database(
        &self,
        asking: &Asking<'_>,
        upstream: &Upstream,
        database: &str,
    ) -> Result<Option<PgTarget>, ClientError> {
        let Some(fixed) = asking.database else {
            if !admin::is_console(database) {
                return Ok(upstream.routes().asking(database));
            }
            // The console has no users of its own.
            let main = upstream.asked_for_consoles();
            return main.map(Some).ok_or_else(|| reserved(database));
        };
        if admin::is_console(fixed) {
            return Err(reserved(fixed));
        }
        let Some(target) = upstream.routes().asking(fixed) else {
            tracing::error!("authentication database \"{fixed}\" is not configured");
            return Err(misconfigured());
        };
        if upstream.asked_for(fixed).is_disabled {
            let message = format!("authentication database \"{fixed}\" is disabled");
            return Err(ClientError::new(ErrorKind::Config, "55000", message).fatal());
        }
        Ok(Some(target))
    }

    /// What a client is to the server: by what it has proved here, or by what is kept of its password.
    pub(crate) fn credential(
        &self,
        user: &str,
        granted: Granted,
        kept: Option<&StoredSecret>,
    ) -> Credential {
        if let Some(password) = granted.password {
            return Credential::Password(password.reveal().to_owned());
        }
        if let Some(keys) = granted.keys {
            return Credential::Scram(Box::new(keys));
        }
        match kept.or_else(|| self.users.get(user)) {
            Some(StoredSecret::Password(password)) => {
                Credential::Password(password.text().to_owned())
            }
            Some(StoredSecret::Md5(hash)) => Credential::Md5(hash.clone()),
            // Nobody can be it to the server with that: a client has to prove it first.
            _ => Credential::None,
        }
    }

    /// What a client may do on the console; `None`: nothing.
    pub(crate) fn role(&self, caller: &Caller, user: &str) -> Option<Role> {
        let is_one_of = |users: &[String]| users.iter().any(|known| known == user);
        let names_nobody = self.config.admin_users.is_empty() && self.config.stats_users.is_empty();
        if is_one_of(&self.config.admin_users)
            || self.is_owner(caller, user)
            || self.trusts_with_the_console() && names_nobody
        {
            return Some(Role::Admin);
        }
        is_one_of(&self.config.stats_users).then_some(Role::Stats)
    }

    /// True where a user need be none that anybody knows.
    fn trusts_with_the_console(&self) -> bool {
        match self.config.kind {
            AuthType::Any => true,
            AuthType::Trust => !self.config.known_users_only,
            _ => false,
        }
    }

    /// True for the operating system's user that this program runs as, who could do anything to it anyway.
    pub(crate) fn is_owner(&self, caller: &Caller, user: &str) -> bool {
        let own = rustix::process::geteuid().as_raw();
        matches!(caller.peer, Peer::Unix(Some(uid)) if uid == own)
            && matches!(user, "helios" | "pgbouncer")
    }
}

/// `what` and who it is, in PostgreSQL's words.
fn turned_away(what: &str, asked: &Asked<'_>) -> ClientError {
    let host = match asked.address {
        Some(address) => address.to_canonical().to_string(),
        None => "[local]".to_owned(),
    };
    let encryption = if asked.is_encrypted {
        "SSL encryption"
    } else {
        "no encryption"
    };
    no(&format!(
        "{what} host \"{host}\", user \"{}\", database \"{}\", {encryption}",
        asked.user, asked.database
    ))
}

/// The one answer to a wrong password and to a user that there is none of.
pub(crate) fn wrong_password(user: &str) -> ClientError {
    ClientError::new(
        ErrorKind::Client,
        "28P01",
        format!("password authentication failed for user \"{user}\""),
    )
    .fatal()
}

/// What connections are encrypted with; `None` where none is.
fn open_tls(config: &TlsConfig) -> anyhow::Result<Option<(ServerTlsOptions, Arc<ServerTls>)>> {
    let Some(options) = config.options() else {
        return Ok(None);
    };
    match ServerTls::new(&options) {
        Ok(tls) => Ok(Some((options, Arc::new(tls)))),
        Err(error) => {
            tracing::error!("TLS setup failed: {error}");
            Err(error).context("`[tls]`")
        }
    }
}

/// The same for every user that no file has. What is wrong is in the log.
fn misconfigured() -> ClientError {
    let hint = match Dialect::current() {
        Dialect::Helios => "The log of helios says more.",
        Dialect::PgBouncer => "bouncer config error: the log says more.",
    };
    ClientError::new(
        ErrorKind::Config,
        "F0000",
        "users cannot be looked up: the configuration is wrong",
    )
    .hint(hint)
    .known_as("bouncer config error")
    .fatal()
}

fn reserved(database: &str) -> ClientError {
    tracing::error!(
        "cannot use the reserved \"{database}\" database as an auth_dbname: name another in {}",
        names::key("auth.query_database")
    );
    misconfigured()
}

/// Such a query may be in the way of others that are of use.
fn warn_of_queries(config: &Config) {
    let named = config.databases.iter().map(|(name, database)| {
        let key = format!("databases.{name}.auth_query");
        (key, database.auth_query.as_deref())
    });
    let general = ("auth.query".to_owned(), config.auth.query.as_deref());
    for (key, query) in std::iter::once(general).chain(named) {
        if query.is_some_and(|query| !asks_for_user(query)) {
            let key = names::key(&key);
            tracing::warn!(
                "{key} has no $1 in the place of the user's name: nobody is found by it"
            );
        }
    }
}

fn no(message: &str) -> ClientError {
    ClientError::new(ErrorKind::Client, "28000", message).fatal()
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn in_file(file: &Path) -> String {
    format!("in {}", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(text: &str) -> Access {
        let config = Config::parse(text, "f").expect("readable");
        Access::open(&config).expect("usable")
    }

    fn caller(address: &str) -> Caller {
        Caller {
            peer: Peer::Tcp(address.parse().expect("an address")),
            is_encrypted: false,
            end_point: None,
            certificate: None,
        }
    }

    fn is_let_in(access: &Access, address: &str) -> bool {
        let claim = Claim {
            user: "u",
            database: "d",
            is_replication: false,
        };
        match access.demand(&caller(address), &claim) {
            Ok(demand) => demand == Demand::Nothing(TRUST),
            Err(error) => {
                assert_eq!(error.sqlstate, "28000");
                false
            }
        }
    }

    #[test]
    fn nobody_from_elsewhere_is_trusted_unless_that_was_asked_for() {
        let folder = std::env::temp_dir().join(format!("helios-hba-{}", std::process::id()));
        std::fs::write(&folder, "host all all all trust").expect("written");
        let hba = format!(
            "auth.type = \"hba\"\nauth.hba_file = \"{}\"\n",
            folder.display()
        );
        let open = "clients.allow_remote_trust = true\n";
        for text in ["", "auth.type = \"any\"\n", &hba] {
            let careful = access(text);
            assert!(is_let_in(&careful, "127.0.0.1:9"), "{text}");
            assert!(is_let_in(&careful, "[::1]:9"), "{text}");
            assert!(is_let_in(&careful, "[::ffff:127.0.0.1]:9"), "{text}");
            assert!(!is_let_in(&careful, "10.0.0.1:9"), "{text}");
            assert!(
                is_let_in(&access(&format!("{text}{open}")), "10.0.0.1:9"),
                "{text}"
            );
        }
        std::fs::remove_file(&folder).expect("removed");
        assert!(!is_let_in(&access("auth.type = \"md5\""), "127.0.0.1:9"));
    }

    #[test]
    fn users_that_there_are_none_of_look_the_same_after_a_reload() {
        let first = access("");
        let config = Config::default();
        let (second, _) = Access::reopen(&config, &first, Unfit::IsRefused).expect("usable");
        assert_eq!(first.seed(), second.seed());
        assert_ne!(first.seed(), access("").seed());
    }
}
