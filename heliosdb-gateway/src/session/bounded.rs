//! Answers that may be so old, whatever has been written: asked for by the client, or by an administrator for it.
//!
//! They are kept apart from the others, under their bound, and depend on nothing but time. So any statement that only
//! reads can have one, also where nobody could say what it depends on. While an answer past its time may still be
//! served, the first client that asks for it has it computed anew on a connection of its own, and nobody waits.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, BytesMut};
use heliosdb_cache::{Answer, Fill, Flight, Lookup};
use heliosdb_network::connection_pool::ConnectionHint;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::clients::Origin;
use crate::error::{ClientError, ErrorKind};
use crate::level::{AgeBound, Level, NAME_OF_DEFAULT, SETTING, hinted};
use crate::sql::{Class, FunctionRefusal, Read, Refusal, Write, value_items};
use crate::upstream::ServerPool;

use super::io::Step;
use super::link::put_frame;
use super::request::{Decided, is_taken, refusal_label};
use super::settings::{Effective, Settings};
use super::unit::{Front, Protocol, ReadUnit, put_reply, recognise};
use super::{Capture, End, Session};

impl Session {
    /// `SHOW helios.cache` where it was not set: the server does not know it then.
    pub(super) fn answer_show_level(&mut self, input: &[u8]) -> Option<usize> {
        const SHOWN_MAX: usize = 160;
        let name = SETTING.as_bytes();
        let start = &input[..input.len().min(SHOWN_MAX)];
        memchr::memmem::find(&start.to_ascii_lowercase(), name)?;
        let unit = match recognise(input, &self.statements, &self.scope) {
            Front::Read(unit) if !unit.is_prepare() && !is_taken(&unit, &self.statements) => unit,
            _ => return None,
        };
        let text = unit.text.as_str().trim_ascii();
        let text = text.strip_suffix(';').unwrap_or(text);
        let is_show = text
            .split_ascii_whitespace()
            .map(str::to_ascii_lowercase)
            .eq(["show", SETTING]);
        if !is_show || self.settings.get(SETTING).is_some() || self.status == b'E' {
            return None;
        }
        let value = NAME_OF_DEFAULT;
        let mut reply = BytesMut::with_capacity(96);
        let is_described = match &unit.protocol {
            Protocol::Extended { describe, .. } => *describe,
            _ => true,
        };
        if is_described {
            put_frame(&mut reply, b'T', |out| {
                out.put_slice(b"\0\x01");
                out.put_slice(name);
                // No column of a table; a text of any length, in text form.
                out.put_slice(b"\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
            });
        }
        put_frame(&mut reply, b'D', |out| {
            out.put_slice(b"\0\x01\0\0\0");
            out.put_u8(u8::try_from(value.len()).unwrap_or_default());
            out.put_slice(value.as_bytes());
        });
        put_frame(&mut reply, b'C', |out| out.put_slice(b"SHOW\0"));
        put_reply(&mut self.out, &unit.protocol, &reply, Some(self.status));
        let (len, is_simple) = (unit.len, unit.is_simple());
        if let Some((name, statement)) = self.statement_to_remember(&unit) {
            self.statements.insert(&name, statement);
        }
        if is_simple {
            self.statements.remove(b"");
        }
        self.note_portal();
        self.count_query();
        Some(len)
    }

    /// What this client asks of an answer to the statement.
    pub(super) fn level_of(&self, text: &str) -> Level {
        if let Some(level) = hinted(text) {
            return level;
        }
        match self.level {
            Level::Session => self
                .gateway
                .policies
                .of(text)
                .map_or(Level::Session, Level::Bounded),
            level => level,
        }
    }

    /// Answers the request at the front from what is kept under a bound, or sees to it that there is something.
    pub(super) fn try_bounded(
        &mut self,
        bytes: &[u8],
        bound: AgeBound,
        may_wait: bool,
    ) -> Result<Option<Step>, End> {
        let Front::Read(unit) = recognise(bytes, &self.statements, &self.scope) else {
            return Ok(None);
        };
        unit.put_params(&mut self.key_buffer);
        self.key_buffer.splice(..0, bound.key_prefix());
        let key = unit.key(&self.key_buffer, &self.scope);
        let (answer, is_old) = match self.gateway.cache.find(&key) {
            Lookup::Hit(answer) => (Some(answer), false),
            Lookup::Refresh(answer) => (Some(answer), true),
            _ => (None, false),
        };
        if let Some(answer) = answer {
            if is_old && let Flight::Leader(fill) = self.gateway.cache.join(&key, &[]) {
                self.refresh(&unit, fill, bound);
            }
            return Ok(Some(self.put_bounded(bytes, &answer)));
        }
        let database = &self.pool.database;
        let catalog = database.catalog_now();
        if may_wait && catalog.is_none() && database.can_load() && self.is_at_rest() {
            return Ok(Some(Step::Request(Decided::No)));
        }
        let text = unit.text.as_str();
        let class =
            self.gateway
                .classify(text, catalog.as_deref(), &self.names, &mut self.text_buffer);
        let mut capture = None;
        let mut follower = None;
        if only_reads(&class) {
            match self.gateway.cache.join(&key, &[]) {
                Flight::Leader(fill) => {
                    self.gateway.statements.of(text).record_miss();
                    capture = Some(Capture {
                        fill,
                        bound: Some(bound),
                        reply: std::mem::take(&mut self.reply_buffer),
                        has_rows: false,
                        reply_max: self.gateway.max_entry(),
                    });
                }
                Flight::Follower(found) if self.is_at_rest() => follower = Some(found),
                Flight::Follower(_) => self.gateway.stats.count_bypass("asked in a transaction"),
                Flight::Uncached | Flight::Overload => self.gateway.stats.count_bypass("overload"),
            }
        } else {
            let reason = refusal_label(&class);
            self.gateway.stats.count_bypass(reason);
            self.gateway.statements.of(text).record_refusal(reason);
        }
        let len = unit.len;
        if let Some(follower) = follower {
            return Ok(Some(Step::Request(Decided::Follow(follower))));
        }
        self.capture = capture;
        self.class = Some(class);
        if may_wait {
            self.ask_now(bytes, len).map(Some)
        } else {
            Ok(Some(Step::Request(Decided::Ask)))
        }
    }

    fn put_bounded(&mut self, bytes: &[u8], answer: &Answer) -> Step {
        let age_ms = self.age_ms(answer);
        let step = self.answer_with(bytes, answer);
        self.info().set_origin(Origin::Memory { age_ms });
        // It was recognised just now.
        step.map_or(Step::Incomplete, Step::Done)
    }

    /// Has an answer computed anew, on any connection that can be had.
    fn refresh(&self, unit: &ReadUnit<'_>, fill: Fill, bound: AgeBound) {
        let refresh = Refresh {
            pool: Arc::clone(&self.pool),
            settings: Arc::clone(self.settings.effective()),
            request: alone(unit),
            reply_max: self.gateway.max_entry(),
        };
        tokio::spawn(async move {
            match tokio::time::timeout(REFRESH_TIMEOUT, refresh.run()).await {
                Ok(Ok(reply)) => {
                    let took = fill.elapsed();
                    fill.with_lifetime(bound.lifetime(took))
                        .complete_with(&reply, took);
                }
                Ok(Err(why)) => tracing::debug!("an answer was not refreshed: {why}"),
                Err(_) => tracing::debug!("an answer was not refreshed in time"),
            }
        });
    }
}

/// The level that the settings ask for. A value that can't be understood switches memory off, and the client is told.
pub(super) fn asked_level(settings: &Settings, out: &mut BytesMut) -> Level {
    let Some(value) = settings.get(SETTING) else {
        return Level::default();
    };
    let value = value_items(value).unwrap_or_default().join(",");
    value.parse().unwrap_or_else(|error| {
        let warning = format!("invalid value for {SETTING}: {error}");
        ClientError::new(ErrorKind::Client, "22023", warning)
            .hint("Nothing is answered from memory in this session until it is set to a valid one.")
            .put_warning(out);
        Level::Off
    })
}

/// Whether a statement can be run without anybody noticing. Then its answer may be kept for a time, whatever it depends on.
fn only_reads(class: &Class) -> bool {
    let [statement] = class.statements.as_slice() else {
        return false;
    };
    let is_read = match &statement.read {
        Read::Cacheable(_) => true,
        Read::Refused(refusal) => may_be_bounded(refusal),
    };
    is_read && statement.write == Write::None && statement.effects.is_empty()
}

fn may_be_bounded(refusal: &Refusal) -> bool {
    match refusal {
        // What they read changes by itself, and the client has said how far that may go.
        Refusal::ColumnType(_)
        | Refusal::ForeignTable(_)
        | Refusal::Operator(_)
        | Refusal::RowSecurity(_)
        | Refusal::SystemCatalog(_)
        | Refusal::TableSample
        | Refusal::TextToTime
        | Refusal::TimeWord(_)
        | Refusal::Type(_)
        | Refusal::UserCast
        | Refusal::ValueFunction(_) => true,
        Refusal::Function { why, .. } => {
            matches!(why, FunctionRefusal::Impure | FunctionRefusal::Stable)
        }
        Refusal::View { reason, .. } => may_be_bounded(reason),
        // They may do something, or nobody knows what they do.
        _ => false,
    }
}

/// The request with nothing of the client's session in it.
fn alone(unit: &ReadUnit<'_>) -> BytesMut {
    let mut out = BytesMut::new();
    let text = unit.text.as_str().as_bytes();
    let Protocol::Extended {
        bind,
        describe,
        rows_max,
        ..
    } = &unit.protocol
    else {
        put_frame(&mut out, b'Q', |out| {
            out.put_slice(text);
            out.put_u8(0);
        });
        return out;
    };
    put_frame(&mut out, b'P', |out| {
        out.put_u8(0);
        out.put_slice(text);
        out.put_u8(0);
        match unit.types() {
            [] => out.put_u16(0),
            types => out.put_slice(types),
        }
    });
    put_frame(&mut out, b'B', |out| {
        out.put_slice(&[0, 0]);
        out.put_slice(bind);
    });
    if *describe {
        put_frame(&mut out, b'D', |out| out.put_slice(b"P\0"));
    }
    put_frame(&mut out, b'E', |out| {
        out.put_u8(0);
        out.put_u32(*rows_max);
    });
    put_frame(&mut out, b'S', |_| {});
    out
}

/// A request that is asked once more.
struct Refresh {
    pool: Arc<ServerPool>,
    settings: Arc<Effective>,
    request: BytesMut,
    reply_max: usize,
}

impl Refresh {
    /// The reply as it is kept.
    async fn run(self) -> Result<Vec<u8>, String> {
        let mut lease = self
            .pool
            .acquire(self.settings.label(), Some(&ConnectionHint::default()))
            .await
            .map_err(|error| error.to_string())?;
        // Given up in the middle, it owes replies that nobody reads.
        lease.broken = true;
        let sql = lease.applied.transition(&self.settings);
        if !sql.is_empty() {
            lease
                .simple_query(&sql)
                .await
                .map_err(|error| error.to_string())?;
        }
        lease.applied = Arc::clone(&self.settings);
        lease.statements.unnamed = None;
        let (stream, buffer) = lease.pg.parts();
        stream
            .write_all(&self.request)
            .await
            .map_err(|error| error.to_string())?;
        let mut reply = Vec::new();
        let mut refused = None;
        loop {
            let head = buffer.first_chunk::<5>();
            let len = head.map_or(5, |head| {
                u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize + 1
            });
            if head.is_none() || buffer.len() < len {
                if len > MESSAGE_MAX {
                    return Err("a message of the server is too long".to_owned());
                }
                let read = stream.read_buf(buffer).await;
                if read.map_err(|error| error.to_string())? == 0 {
                    return Err("the server closed the connection".to_owned());
                }
                continue;
            }
            let message = &buffer[..len];
            match message[0] {
                b'D' | b'T' | b'C' | b's' | b'n' => {
                    if reply.len() + len <= self.reply_max {
                        reply.extend_from_slice(message);
                    } else {
                        refused = Some("it is too large now");
                    }
                }
                b'1' | b'2' | b'3' => {}
                b'Z' => {
                    if message.get(5) != Some(&b'I') {
                        refused = Some("it left a transaction open");
                    }
                    buffer.advance(len);
                    break;
                }
                _ => refused = Some("it came with an error or a notice"),
            }
            buffer.advance(len);
        }
        lease.broken = false;
        refused.map_or(Ok(reply), |why| Err(why.to_owned()))
    }
}

const REFRESH_TIMEOUT: Duration = Duration::from_secs(60);
/// No row that is kept is longer.
const MESSAGE_MAX: usize = 256 << 20;
