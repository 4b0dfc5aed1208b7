//! Asking the server for the secrets of users.
//!
//! The question goes over connections of its own, which begin with nothing that a client has said (CVE-2025-12819), and
//! the user's name is a parameter. What the server said is kept for a few seconds; clients that come at the same time
//! wait for one question.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heliosdb_network::connection_pool::{ConnectionPoolConfig, EnhancedConnectionPool};
use heliosdb_network::error::HeliosError;
use heliosdb_network::postgres::auth::{StoredSecret, UserList};
use heliosdb_network::postgres::{Credential, PgConnector, PgTarget, QueryResult};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::config::{Asking, names};
use crate::error::{ClientError, ErrorKind};

use super::Known;

/// Names of the catalog in full, and nobody whose password is no longer valid (CVE-2025-2291).
const QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil OPERATOR(pg_catalog.<) pg_catalog.now() THEN NULL \
                     ELSE rolpassword END FROM pg_catalog.pg_authid \
                     WHERE rolname OPERATOR(pg_catalog.=) $1 AND rolcanlogin";

/// How long an answer counts.
const TTL: Duration = Duration::from_secs(10);
/// How many answers are kept, and for how many databases connections are.
const ANSWERS_MAX: usize = 10_000;
const POOLS_MAX: usize = 100;
/// Questions at the same time in a database.
const CONNECTIONS: usize = 2;

#[derive(Debug, Default)]
pub(super) struct Asker {
    /// Why a lock: a look-up per login. Nobody asks the server under it.
    answers: Mutex<HashMap<Question, Arc<Answer>>>,
    /// By target, as it prints itself.
    pools: Mutex<HashMap<String, Arc<EnhancedConnectionPool<PgConnector>>>>,
}

/// What is asked. Databases of the same name may be on different servers, and be asked in different ways.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    /// The server, the database there, and who asks, as the target prints itself.
    target: String,
    query: String,
    user: String,
}

#[derive(Debug)]
struct Answer {
    begun: Instant,
    /// Of those who wait for it, one asks; if it fails or leaves, the next does.
    said: OnceCell<Known>,
}

impl Asker {
    /// What the server says of a user. `target` is the database where it is asked, as the user of its URL.
    pub(super) async fn ask(
        &self,
        asking: &Asking<'_>,
        users: &UserList,
        target: PgTarget,
        user: &str,
    ) -> Result<Known, ClientError> {
        let target = as_asker(target, asking, users);
        let question = Question {
            target: target.to_string(),
            query: asking.query.unwrap_or(QUERY).to_owned(),
            user: user.to_owned(),
        };
        let answer = self.answer(&question);
        let said = answer
            .said
            .get_or_try_init(|| self.ask_server(&question, target));
        said.await.cloned()
    }

    pub(super) fn forget(&self, user: &str) {
        self.answers
            .lock()
            .retain(|question, _| question.user != user);
    }

    /// What is known, or the place where it will be.
    fn answer(&self, question: &Question) -> Arc<Answer> {
        let now = Instant::now();
        let is_fresh = |answer: &Answer| now.duration_since(answer.begun) < TTL;
        let mut answers = self.answers.lock();
        if let Some(answer) = answers.get(question).filter(|answer| is_fresh(answer)) {
            return Arc::clone(answer);
        }
        if answers.len() >= ANSWERS_MAX {
            answers.retain(|_, answer| is_fresh(answer));
        }
        if answers.len() >= ANSWERS_MAX {
            // Somebody goes through names: that must not cost memory.
            answers.clear();
        }
        let answer = Arc::new(Answer {
            begun: now,
            said: OnceCell::new(),
        });
        answers.insert(question.clone(), Arc::clone(&answer));
        answer
    }

    async fn ask_server(
        &self,
        question: &Question,
        target: PgTarget,
    ) -> Result<Known, ClientError> {
        let pool = self.pool(target).map_err(|error| failed(&error))?;
        let mut lease = match pool.acquire().await {
            Ok(lease) => lease,
            Err(error) => {
                // A database that there is none of has no users.
                if let Some(HeliosError::Server(fields)) = error.cause()
                    && fields.sqlstate() == "3D000"
                {
                    return Ok(Known::Nobody);
                }
                return Err(failed(&error));
            }
        };
        let user = question.user.as_str();
        let asked = lease.query(&question.query, &[Some(user)]).await;
        let known = asked.and_then(|result| known_by(&result, user));
        known.map_err(|error| match error {
            HeliosError::Server(_) | HeliosError::Unsupported(_) => {
                tracing::error!("error in {}: {error}", names::key("auth.query"));
                super::misconfigured()
            }
            error => failed(&error),
        })
    }

    fn pool(
        &self,
        target: PgTarget,
    ) -> Result<Arc<EnhancedConnectionPool<PgConnector>>, impl std::fmt::Display + use<>> {
        let mut pools = self.pools.lock();
        let key = target.to_string();
        if let Some(pool) = pools.get(&key) {
            return Ok(Arc::clone(pool));
        }
        if pools.len() >= POOLS_MAX {
            pools.clear();
        }
        let mut config = ConnectionPoolConfig::default();
        config.max_connections = CONNECTIONS;
        config.min_idle = 0;
        config.connect_timeout = target.connect_timeout;
        config.idle_timeout = Some(Duration::from_secs(60));
        let pool = EnhancedConnectionPool::with_connector(PgConnector::new(target), config);
        if let Ok(pool) = &pool {
            pools.insert(key, Arc::clone(pool));
        }
        pool
    }
}

/// The target, as who asks; nothing of it comes from a client but the database's name.
fn as_asker(mut target: PgTarget, asking: &Asking<'_>, users: &UserList) -> PgTarget {
    if let Some(user) = asking.user
        && *user != target.user
    {
        user.clone_into(&mut target.user);
        target.credential = Credential::None;
    }
    if target.credential == Credential::None {
        target.credential = match users.get(&target.user) {
            Some(StoredSecret::Password(password)) => {
                Credential::Password(password.text().to_owned())
            }
            Some(StoredSecret::Md5(hash)) => Credential::Md5(hash.clone()),
            _ => Credential::None,
        };
    }
    target
}

/// What the first row says. Its first column has to be the user, or it is another's.
fn known_by(result: &QueryResult, user: &str) -> Result<Known, HeliosError> {
    let Some(row) = result.rows.first() else {
        return Ok(Known::Nobody);
    };
    let [name, secret, ..] = row.as_slice() else {
        return Err(HeliosError::Unsupported(
            "the query has to return a name and a secret".to_owned(),
        ));
    };
    if name.as_deref() != Some(user) {
        return Ok(Known::Nobody);
    }
    let secret = secret.as_deref().map(StoredSecret::parse).transpose()?;
    Ok(Known::User(secret))
}

/// What a client hears of it is nothing that tells users apart; the rest is for whoever runs this.
fn failed(error: &impl std::fmt::Display) -> ClientError {
    tracing::warn!("the server cannot be asked for users (auth.query): {error}");
    ClientError::new(
        ErrorKind::Backend,
        "08006",
        "users cannot be looked up: the database server does not answer",
    )
    .fatal()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(row: Option<&[Option<&str>]>) -> Result<Known, HeliosError> {
        let mut result = QueryResult::default();
        let texts =
            |row: &[Option<&str>]| row.iter().map(|value| value.map(str::to_owned)).collect();
        result.rows = row.into_iter().map(texts).collect();
        known_by(&result, "ada")
    }

    #[test]
    fn a_secret_is_the_users_own_or_none() {
        let password = Known::User(Some(StoredSecret::password("pw")));
        assert_eq!(of(Some(&[Some("ada"), Some("pw")])).expect("ada"), password);
        assert_eq!(
            of(Some(&[Some("ada"), None])).expect("ada"),
            Known::User(None)
        );
        for row in [[Some("bob"), Some("pw")], [None, Some("pw")]] {
            assert_eq!(of(Some(&row)).expect("nobody"), Known::Nobody);
        }
        assert_eq!(of(None).expect("nobody"), Known::Nobody);
        assert!(of(Some(&[Some("pw")])).is_err());
        assert!(of(Some(&[Some("ada"), Some("SCRAM-SHA-256$x")])).is_err());
    }

    #[test]
    fn answers_are_bounded_and_forgotten() {
        let asker = Asker::default();
        let question = |target: &str, user: &str| Question {
            target: target.to_owned(),
            query: String::new(),
            user: user.to_owned(),
        };
        let first = asker.answer(&question("a@h/d", "ada"));
        assert!(Arc::ptr_eq(
            &first,
            &asker.answer(&question("a@h/d", "ada"))
        ));
        assert!(!Arc::ptr_eq(
            &first,
            &asker.answer(&question("a@i/d", "ada"))
        ));
        asker.forget("bob");
        assert!(Arc::ptr_eq(
            &first,
            &asker.answer(&question("a@h/d", "ada"))
        ));
        asker.forget("ada");
        assert!(!Arc::ptr_eq(
            &first,
            &asker.answer(&question("a@h/d", "ada"))
        ));
        for user in 0..ANSWERS_MAX + 10 {
            asker.answer(&question("a@h/d", &user.to_string()));
        }
        assert!(asker.answers.lock().len() <= ANSWERS_MAX);
    }
}
