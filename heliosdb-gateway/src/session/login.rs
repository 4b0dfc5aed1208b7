//! From an accepted socket to a session: encryption requests, cancel requests, protocol version, startup parameters.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use heliosdb_cache::HashedStr;
use heliosdb_network::postgres::auth::Granted;
use heliosdb_network::postgres::message;
use heliosdb_network::postgres::startup::{self, FirstPacket, Startup};
use heliosdb_network::tls::TLS_HANDSHAKE;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::access::{Access, Caller, Claim, Role};
use crate::admin;
use crate::clients::{Admitted, ClientKind, ClientLimits, Counters, Identity, Peer};
use crate::config::{PoolMode, names};
use crate::error::{ClientError, ErrorKind};
use crate::gateway::Gateway;
use crate::upstream::connection::Baseline;
use crate::upstream::{Parameters, ServerPool};

use super::Session;
use super::authentication::authenticate;
use super::bounded::asked_level;
use super::effects::name_scope;
use super::pins::{Pin, Pins};
use super::prepared::Named;
use super::resolve::Unresolved;
use super::settings::Settings;
use super::stream::ClientStream;
use super::walsender::{self, Relay, Replication, Walsender};

/// A client that has said who it is.
pub(crate) enum Greeted {
    /// It wants the admin console.
    Console(admin::Console),
    /// It wants the server's log.
    Replication(Relay),
    /// It wants a database.
    Session(Box<Session>),
}

/// Speaks with a new client until it has a session. `None`: there is nothing more to do (a cancel request, an error
/// that it has been told, a client that left).
pub(crate) async fn greet(
    gateway: &Arc<Gateway>,
    mut stream: ClientStream,
    peer: Peer,
) -> Option<Greeted> {
    let began = Instant::now();
    let timeout = gateway.config().clients.login_timeout;
    let greeted = match tokio::time::timeout(timeout, login(gateway, &mut stream, peer)).await {
        Ok(greeted) => greeted,
        Err(_) => Err(Refused::Told(
            ClientError::new(
                ErrorKind::Client,
                "08000",
                format!("login took longer than {timeout:?}"),
            )
            .fatal(),
        )),
    };
    match greeted {
        Ok(LoggedIn::Console(admitted, role)) => Some(Greeted::Console(admin::Console::new(
            gateway, stream, admitted, role,
        ))),
        Ok(LoggedIn::Replication(admitted, input, walsender)) => Some(Greeted::Replication(
            Relay::new(admitted, stream, input, walsender),
        )),
        Ok(LoggedIn::Session(parts)) => Some(Greeted::Session(Box::new(
            parts
                .entrance
                .into_session(gateway, parts.admitted, stream, parts.input),
        ))),
        Err(Refused::Silently) => None,
        Err(Refused::Told(error)) => {
            gateway.stats.count_error(error.kind);
            let closing = error.closing(began.elapsed());
            tracing::info!(sqlstate = %error.sqlstate, "login refused: {peer} {closing}");
            let mut out = BytesMut::new();
            error.put(&mut out);
            let farewell = async {
                stream.write_all(&out).await?;
                stream.shutdown().await
            };
            let _ = tokio::time::timeout(Duration::from_secs(2), farewell).await;
            None
        }
    }
}

pub(super) enum Refused {
    /// The client left, or must not get an answer.
    Silently,
    Told(ClientError),
}

impl From<ClientError> for Refused {
    fn from(error: ClientError) -> Self {
        Self::Told(error)
    }
}

impl From<std::io::Error> for Refused {
    fn from(_: std::io::Error) -> Self {
        Self::Silently
    }
}

enum LoggedIn {
    Console(Admitted, Role),
    Replication(Admitted, BytesMut, Walsender),
    Session(Box<Parts>),
}

/// What a session is made of.
struct Parts {
    admitted: Admitted,
    entrance: Entrance,
    input: BytesMut,
}

async fn login(
    gateway: &Arc<Gateway>,
    stream: &mut ClientStream,
    peer: Peer,
) -> Result<LoggedIn, Refused> {
    let access = gateway.access.load_full();
    let mut input = BytesMut::new();
    let mut caller = Caller {
        peer,
        is_encrypted: false,
        end_point: None,
        certificate: None,
    };
    if access.allows_direct_tls() && begins_with_tls(stream).await? {
        encrypt(&access, stream, &mut caller, true).await?;
    }
    let startup = loop {
        match read_first_packet(stream, &mut input).await? {
            request @ (FirstPacket::Ssl | FirstPacket::GssEnc) => {
                // Bytes sent ahead of the answer would be read as if they had come encrypted (CVE-2021-23222).
                if !input.is_empty() {
                    return Err(ClientError::protocol(
                        "received unencrypted data after an encryption request",
                    )
                    .into());
                }
                let is_possible = request == FirstPacket::Ssl
                    && !caller.is_encrypted
                    && access.tls.is_some()
                    && matches!(stream, ClientStream::Tcp(_));
                if is_possible {
                    stream.write_all(b"S").await?;
                    encrypt(&access, stream, &mut caller, false).await?;
                } else {
                    // The client decides whether to go on without.
                    stream.write_all(b"N").await?;
                    stream.flush().await?;
                }
            }
            FirstPacket::Cancel { pid, secret } => {
                gateway.stats.count_cancel();
                gateway.clients.cancel(pid, &secret).await;
                return Err(Refused::Silently);
            }
            FirstPacket::Startup(startup) => break startup,
            _ => return Err(ClientError::protocol("unsupported startup packet").into()),
        }
    };
    let mut out = BytesMut::new();
    if let Some(negotiation) = startup.negotiation() {
        message::put_negotiate_protocol_version(
            &mut out,
            negotiation.minor,
            &negotiation.unrecognized,
        );
    }
    let user = startup.param("user").filter(|user| !user.is_empty());
    let user = user
        .ok_or_else(|| {
            no(
                "28000",
                "no PostgreSQL user name specified in startup packet",
            )
        })?
        .to_owned();
    let database = startup
        .param("database")
        .filter(|name| !name.is_empty())
        .unwrap_or(&user)
        .to_owned();
    let replication = Replication::asked(&startup)?;
    let who = Claim {
        user: &user,
        database: &database,
        is_replication: replication == Replication::Physical,
    };
    let wire = (&mut *stream, &mut input, &mut out);
    let credential = authenticate(&access, &gateway.upstream, &caller, &who, wire).await?;
    let role = match access.role(&caller, &user) {
        _ if !admin::is_console(&database) => None,
        None => return Err(no_console(&user).into()),
        role => role,
    };
    let kind = role.map_or(ClientKind::Client, |_| ClientKind::Console);
    let identity = Identity {
        kind,
        user,
        database: database.clone(),
        application_name: startup
            .param("application_name")
            .unwrap_or_default()
            .to_owned(),
        peer: caller.peer,
        secret_len: if startup.minor >= 2 { 32 } else { 4 },
    };
    let admitted = admit(gateway, identity, role)?;
    if gateway.config().log.connections {
        let info = &admitted.info;
        tracing::info!(
            client = info.id,
            "{database}/{user}@{} login attempt: db={database} user={user} tls={} replication={}",
            info.peer,
            stream.tls(),
            replication.name(),
            user = info.user,
        );
    }
    if let Some(role) = role {
        message::put_authentication_ok(&mut out);
        admin::put_parameters(&mut out);
        finish(stream, out, &admitted).await?;
        return Ok(LoggedIn::Console(admitted, role));
    }
    if gateway.course.borrow().is_awaiting() {
        return Err(no("57P03", "helios is shutting down").into());
    }
    gateway.upstream.let_in(&database)?;
    // Held until the session has it: what is unused is dropped.
    let _pool = gateway
        .upstream
        .learn(&admitted.info.user, &database, credential, |other| {
            access.credential(other, Granted::default(), None)
        })?;
    if replication != Replication::No {
        let mut walsender = Walsender::open(gateway, &admitted, &startup, replication).await?;
        walsender::put_greeting(&mut out, &walsender.parameters());
        finish(stream, out, &admitted).await?;
        return Ok(LoggedIn::Replication(admitted, input, walsender));
    }
    let wishes = startup_settings(&startup, &gateway.config().clients.ignored_settings)?;
    let entrance = enter(gateway, &admitted, wishes).await?;
    message::put_authentication_ok(&mut out);
    for (name, value) in &entrance.parameters {
        message::put_parameter_status(&mut out, name, value);
    }
    put_welcome(&gateway.config().clients.login_notice, &mut out);
    finish(stream, out, &admitted).await?;
    Ok(LoggedIn::Session(Box::new(Parts {
        admitted,
        entrance,
        input,
    })))
}

/// True if the client begins with TLS, and not with a request for it. Nothing is taken from the socket.
async fn begins_with_tls(stream: &ClientStream) -> std::io::Result<bool> {
    let ClientStream::Tcp(stream) = stream else {
        return Ok(false);
    };
    let mut first = [0];
    Ok(stream.peek(&mut first).await? == 1 && first == [TLS_HANDSHAKE])
}

/// Agrees with the client on TLS.
async fn encrypt(
    access: &Access,
    stream: &mut ClientStream,
    caller: &mut Caller,
    is_direct: bool,
) -> Result<(), Refused> {
    let (Some(tls), Some(socket)) = (&access.tls, stream.take_tcp()) else {
        return Err(Refused::Silently);
    };
    match tls.accept(socket, is_direct).await {
        Ok(accepted) => {
            caller.is_encrypted = true;
            caller.end_point = accepted.end_point;
            caller.certificate = accepted.client;
            *stream = ClientStream::Tls(Box::new(accepted.stream));
            Ok(())
        }
        Err(error) => {
            // It has been told by TLS, as far as it can be.
            tracing::info!(peer = %caller.peer, "{}", with_cause(&error));
            Err(Refused::Silently)
        }
    }
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn no_console(user: &str) -> ClientError {
    no(
        "28000",
        &format!("user \"{user}\" may not use the admin console"),
    )
    .hint(format!(
        "Add it to {} or {} in {}.",
        names::key("auth.admin_users"),
        names::key("auth.stats_users"),
        names::place()
    ))
}

/// Gives a client a place in the registry; one of the console as what it may do there.
pub(crate) fn admit(
    gateway: &Gateway,
    identity: Identity,
    console: Option<Role>,
) -> Result<Admitted, ClientError> {
    let (config, user) = (gateway.config(), &identity.user);
    let limits = match console {
        None => ClientLimits::of(&config, user, &identity.database),
        Some(role) => ClientLimits::of_console(&config, user, role == Role::Admin),
    };
    drop(config);
    gateway.clients.admit(identity, &limits)
}

/// What an admitted client finds behind its database's name.
#[derive(Debug, Clone)]
pub(crate) struct Entrance {
    pub(crate) pool: Arc<ServerPool>,
    pub(crate) baseline: Arc<Baseline>,
    /// What the client is told of the server.
    pub(crate) parameters: Parameters,
    settings: Settings,
}

/// Opens the way to a client's database, under the settings that it begins with.
pub(crate) async fn enter(
    gateway: &Gateway,
    admitted: &Admitted,
    settings: Vec<(String, String)>,
) -> Result<Entrance, ClientError> {
    let settings = Settings::new(settings);
    let info = &admitted.info;
    gateway.upstream.let_in(&info.database)?;
    let pool = gateway.upstream.pool(&info.user, &info.database)?;
    match server_parameters(&pool, &settings).await {
        Ok((baseline, parameters)) => {
            if gateway.cache_enabled() && pool.caches() {
                gateway.upstream.follow_decided(&pool.database).await;
            }
            info.is_let_in.store(true, Ordering::Relaxed);
            Counters::add(&info.counters.logins, 1);
            Ok(Entrance {
                pool,
                baseline,
                parameters,
                settings,
            })
        }
        Err(error) => {
            gateway.upstream.forget(&pool);
            Err(error.fatal())
        }
    }
}

/// What the client is told of the server: with its own wishes applied, as the server prints them.
async fn server_parameters(
    pool: &Arc<ServerPool>,
    settings: &Settings,
) -> Result<(Arc<Baseline>, Parameters), ClientError> {
    let effective = settings.effective();
    if let Some(known) = pool.known_parameters(effective) {
        return Ok(known);
    }
    let mut lease = pool
        .acquire(effective.label(), None)
        .await
        .map_err(|error| pool.acquire_error(&error))?;
    let sql = lease.applied.transition(effective);
    if !sql.is_empty() {
        lease.broken = true;
        match lease.simple_query(&sql).await {
            Ok(_) => lease.broken = false,
            Err(heliosdb_network::error::HeliosError::Server(fields)) => {
                lease.broken = false;
                lease.dirty = true;
                return Err(ClientError::from_server(&fields));
            }
            Err(error) => return Err(ClientError::connection_lost(&error.to_string())),
        }
        lease.applied = Arc::clone(effective);
    }
    let parameters = lease.pg.parameters().to_vec();
    let baseline = Arc::clone(&lease.baseline);
    pool.remember_parameters(effective, &baseline, parameters.clone());
    Ok((baseline, parameters))
}

/// The settings that the startup packet asks for, but those that are to be left out.
fn startup_settings(
    startup: &Startup,
    ignored: &[String],
) -> Result<Vec<(String, String)>, ClientError> {
    let is_ignored = |name: &str| ignored.iter().any(|known| known.eq_ignore_ascii_case(name));
    let mut settings = Vec::new();
    if let Some(options) = startup.param("options") {
        match startup::parse_options(options) {
            Ok(parsed) => settings.extend(parsed),
            Err(_) if is_ignored("options") => {}
            Err(error) => return Err(no("22023", &error.to_string())),
        }
    }
    for (name, value) in &startup.params {
        let is_setting = !matches!(
            name.as_str(),
            "user" | "database" | "options" | "replication"
        ) && !name.starts_with("_pq_.");
        if is_setting {
            settings.push((name.clone(), value.clone()));
        }
    }
    settings.retain(|(name, _)| !is_ignored(name));
    Ok(settings)
}

/// What an administrator has everybody told.
fn put_welcome(text: &str, out: &mut BytesMut) {
    if !text.is_empty() {
        ClientError::new(ErrorKind::Config, "00000", text).put_notice(out);
    }
}

async fn finish(
    stream: &mut ClientStream,
    mut out: BytesMut,
    admitted: &Admitted,
) -> Result<(), Refused> {
    message::put_backend_key_data(&mut out, admitted.info.pid, admitted.secret());
    message::put_ready_for_query(&mut out, b'I');
    stream.write_all(&out).await?;
    stream.flush().await?;
    Ok(())
}

async fn read_first_packet(
    stream: &mut ClientStream,
    input: &mut BytesMut,
) -> Result<FirstPacket, Refused> {
    loop {
        if !startup::begins_plausibly(input) {
            // PostgreSQL says nothing either: a client that gives up before it has logged in begins with its goodbye.
            tracing::info!("login refused: invalid length of startup packet");
            return Err(Refused::Silently);
        }
        match startup::parse(input) {
            Ok(Some((packet, len))) => {
                input.advance(len);
                return Ok(packet);
            }
            Ok(None) => {}
            Err(error) => return Err(ClientError::protocol(error.to_string()).into()),
        }
        if stream.read_buf(input).await? == 0 {
            return Err(Refused::Silently);
        }
    }
}

fn no(sqlstate: &'static str, message: &str) -> ClientError {
    ClientError::new(ErrorKind::Client, sqlstate, message).fatal()
}

impl Entrance {
    /// What sessions that begin here put into every cache key.
    pub(crate) fn scope(&self) -> HashedStr {
        let prefix = self.pool.key_prefix(&self.baseline);
        self.settings.scope(&prefix, &self.pool.user)
    }

    pub(crate) fn into_session(
        self,
        gateway: &Arc<Gateway>,
        admitted: Admitted,
        stream: ClientStream,
        input: BytesMut,
    ) -> Session {
        let scope = self.scope();
        let Self {
            pool,
            baseline,
            settings,
            ..
        } = self;
        let mut pins = Pins::default();
        if pool.limits.load().mode == PoolMode::Session {
            pins.add(Pin::SessionMode);
        }
        admitted.info.set_pins(pins.bits());
        admitted.info.is_let_in.store(true, Ordering::Relaxed);
        let names = name_scope(&settings, &baseline, &pool.user);
        let mut out = BytesMut::new();
        let level = asked_level(&settings, &mut out);
        Session {
            gateway: Arc::clone(gateway),
            stream,
            admitted,
            pool,
            baseline,
            link: None,
            input_waits: !input.is_empty(),
            input,
            input_held: false,
            out,
            settings,
            names,
            parse_scope: scope.clone(),
            scope,
            names_in_doubt: false,
            doubtful_scope: None,
            to_restore: std::collections::BTreeSet::new(),
            is_ending: false,
            patience: None,
            statements: Named::default(),
            portals: Named::default(),
            is_second_attempt: false,
            reads_sequences: false,
            alters_defaults: false,
            translation: None,
            sql_uses: super::sql_prepare::SqlUses::default(),
            bound: super::Bound::default(),
            status: b'I',
            level,
            is_fenced: false,
            deferred: None,
            sees_committed: false,
            unnamed_portal_is_here: false,
            pins,
            intent: None,
            intends_unparsed: false,
            capture: None,
            running: super::Running::default(),
            linked_at: None,
            asked_at: None,
            begun_at: None,
            ready_at: None,
            class: None,
            skip_to_sync: false,
            reply_buffer: Vec::new(),
            key_buffer: Vec::new(),
            text_buffer: Vec::new(),
            unresolved: Unresolved::default(),
            was_reset: false,
            listening: None,
        }
    }
}
