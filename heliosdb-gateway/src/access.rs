//! Who is let in: what a client has to prove, against what, and what it may do on the console.
//!
//! [`Access`] is made of the configuration and the files that it names, and replaced as a whole by a reload: a login
//! under way goes by the one that it began with. [`ask`] asks the server for the secrets of users that no file has.

mod ask;

use std::net::IpAddr;
use std::path::Path;

use anyhow::Context as _;
use heliosdb_network::postgres::Credential;
use heliosdb_network::postgres::auth::{
    Asked, CertName, ClientCert, Granted, Hba, HbaMethod, HbaRule, IdentMap, Proof, StoredSecret,
    UserList,
};
use heliosdb_network::tls::{CertificateIdentity, ServerTls};

use crate::admin;
use crate::clients::Peer;
use crate::config::{AuthConfig, AuthType, Config, TlsMode};
use crate::error::{ClientError, ErrorKind};
use crate::upstream::Upstream;

use ask::Asker;

/// The rules and secrets in force.
#[derive(Debug)]
pub(crate) struct Access {
    config: AuthConfig,
    allows_remote_trust: bool,
    users: UserList,
    hba: Hba,
    ident: IdentMap,
    pub(crate) tls_mode: TlsMode,
    /// Whether a connection may begin with TLS.
    pub(crate) allows_direct_tls: bool,
    pub(crate) tls: Option<ServerTls>,
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

/// What a client still has to prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    Nothing,
    Proof(Proof),
}

/// What a client may do on the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Everything.
    Admin,
    /// Look.
    Stats,
}

impl Access {
    /// Reads the files that the configuration names. `before` is what was in force.
    ///
    /// # Errors
    /// A file that can't be read or used, naming it and the line.
    pub(crate) fn open(config: &Config, before: Option<&Self>) -> anyhow::Result<Self> {
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
        let options = config.tls.options();
        let tls = options.as_ref().map(ServerTls::new);
        let seed = match (before, options) {
            (Some(before), _) => before.seed.clone(),
            (None, Some(options)) => read(&options.key)?.into_bytes(),
            (None, None) => rand::random::<[u8; 32]>().to_vec(),
        };
        Ok(Self {
            config: auth.clone(),
            allows_remote_trust,
            users,
            hba,
            ident,
            tls_mode: config.tls.mode,
            allows_direct_tls: config.tls.direct,
            tls: tls.transpose().context("`[tls]`")?,
            asker: Asker::default(),
            seed,
        })
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
        if self.tls_mode >= TlsMode::Require && address.is_some() && !caller.is_encrypted {
            return Err(no("SSL connection is required")
                .hint("Connect with sslmode=require or a stronger one."));
        }
        match self.config.kind {
            AuthType::Any | AuthType::Trust => self.trust(address).map(|()| Demand::Nothing),
            AuthType::Plain => Ok(Demand::Proof(Proof::Cleartext)),
            AuthType::Md5 => Ok(Demand::Proof(Proof::Md5)),
            AuthType::ScramSha256 => Ok(Demand::Proof(Proof::Scram)),
            AuthType::Cert => {
                self.check_certificate(caller, user, None, CertName::Common)?;
                Ok(Demand::Nothing)
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
            HbaMethod::Trust => self.trust(asked.address).map(|()| Demand::Nothing),
            HbaMethod::Password => Ok(Demand::Proof(Proof::Cleartext)),
            HbaMethod::Md5 => Ok(Demand::Proof(Proof::Md5)),
            HbaMethod::ScramSha256 => Ok(Demand::Proof(Proof::Scram)),
            HbaMethod::Cert => {
                self.check_certificate(caller, asked.user, map, rule.cert_name)?;
                Ok(Demand::Nothing)
            }
            HbaMethod::Peer => {
                let name = caller.peer.user_name();
                let is_allowed = name.is_some_and(|name| self.ident.allows(map, &name, asked.user));
                if is_allowed {
                    Ok(Demand::Nothing)
                } else {
                    let message = format!("Peer authentication failed for user \"{}\"", asked.user);
                    Err(no(&message))
                }
            }
        }
    }

    /// Whoever comes from elsewhere is not trusted unless that was asked for.
    fn trust(&self, address: Option<IpAddr>) -> Result<(), ClientError> {
        let is_near = address.is_none_or(|address| address.to_canonical().is_loopback());
        if is_near || self.allows_remote_trust {
            return Ok(());
        }
        Err(
            no("clients from other machines are not trusted without a password")
                .hint("Set auth.type in the configuration of helios."),
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

    /// What is kept of a user's password: by the file, or by the server. `None`: there is no such user, or nothing is kept.
    ///
    /// # Errors
    /// The server can't be asked.
    pub(crate) async fn secret(
        &self,
        upstream: &Upstream,
        user: &str,
        database: &str,
    ) -> Result<Option<StoredSecret>, ClientError> {
        if let Some(known) = self.users.get(user) {
            return Ok(Some(known.clone()));
        }
        if !self.config.asks() {
            return Ok(None);
        }
        let database = self.asked_database(upstream, database);
        self.asker
            .secret(
                &self.config,
                &self.users,
                upstream,
                user,
                database.as_deref(),
            )
            .await
    }

    /// True where users are asked by SCRAM even under md5: then those that there are none of are, too.
    pub(crate) fn mostly_scram(&self) -> bool {
        let mut kept = self.users.iter().map(|(_, secret)| secret);
        self.config.asks() || kept.any(|secret| matches!(secret, StoredSecret::Scram(_)))
    }

    /// A proof was wrong: what the server said of the user may be out of date by now.
    pub(crate) fn doubt(&self, upstream: &Upstream, user: &str, database: &str) {
        let database = self.asked_database(upstream, database);
        self.asker.forget(user, database.as_deref());
    }

    /// The database in which the server is asked; `None`: there is none.
    fn asked_database(&self, upstream: &Upstream, database: &str) -> Option<String> {
        if let Some(fixed) = &self.config.query_database {
            return Some(fixed.clone());
        }
        if admin::is_console(database) {
            return upstream.main_target().map(|target| target.database);
        }
        Some(database.to_owned())
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
            || self.config.trusts() && names_nobody
        {
            return Some(Role::Admin);
        }
        is_one_of(&self.config.stats_users).then_some(Role::Stats)
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
        Access::open(&config, None).expect("usable")
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
            Ok(demand) => demand == Demand::Nothing,
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
        let second = Access::open(&config, Some(&first)).expect("usable");
        assert_eq!(first.seed(), second.seed());
        assert_ne!(first.seed(), access("").seed());
    }
}
