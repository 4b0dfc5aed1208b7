//! HIDB, version 1: HeliosDB's native protocol. `docs/hidb.md` specifies it; this is its codec, which reads no socket.
//!
//! Both ends begin with a fixed greeting ([`Hello`]), then exchange frames, all numbers little-endian:
//! ```text
//! u32 len        bytes of the payload; checked against the limit before anything is allocated
//! u64 request    chosen by the asking end and echoed in the answer
//! payload        a HidbMessage in postcard encoding
//! ```

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::error::{HeliosError, Result};

/// A message. The order of the variants is their number on the wire: new ones are added at the end.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[non_exhaustive]
pub enum HidbMessage {
    /// Are you there? On a connection that is subscribed, the answer also says: what changed before you asked is behind you.
    Ping,
    /// I am.
    Pong,
    /// The other end can't go on with this connection, and why.
    Goodbye(String),
    /// Who the client is.
    Login(Login),
    /// A message of SCRAM-SHA-256 (RFC 5802), in either direction.
    Sasl(Bytes),
    /// The client is let in.
    Welcome(Welcome),
    /// A statement to be run.
    Query(Query),
    /// A piece of an answer: whole PostgreSQL messages, as in [`Answer::run`].
    Part(Bytes),
    /// The rest of an answer, which ends the request.
    Answer(Answer),
    /// The body of a PostgreSQL ErrorResponse, which ends the request. Pieces that came before it count for nothing.
    Failed(Bytes),
    /// Stop the request of this frame's number. It ends as it would have, or with an error.
    Cancel,
    /// The session of that number is over; what it left open is rolled back.
    CloseSession(u32),
    /// From now on tell me what changes.
    Subscribe,
    /// The subscription begins behind this place in the feed of changes.
    Subscribed(u64),
    /// Slots that changed.
    Invalidated(Invalidated),
}

/// Who a client is and which settings its sessions begin with.
#[derive(Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the form of version 1")]
pub struct Login {
    /// The role.
    pub user: String,
    /// The database; the user's name if it is empty.
    pub database: String,
    /// As in PostgreSQL's startup packet: `application_name`, `search_path`, ...
    pub settings: Vec<(String, String)>,
    /// The first message of SCRAM-SHA-256; empty without a password.
    pub scram: Bytes,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .field("database", &self.database)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// What a client is told when it is let in.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the form of version 1")]
pub struct Welcome {
    /// As PostgreSQL reports them at the start of a session: `server_version`, `TimeZone`, ...
    pub parameters: Vec<(String, String)>,
    /// Requests that may be open at a time.
    pub open_max: u32,
    /// Longest payload that the server takes, in bytes.
    pub frame_max: u32,
    /// Tells this run of the gateway from all others, and is not 0: places in the feed of changes can be compared where it
    /// is the same.
    pub instance: u64,
}

/// A statement to be run, with its parameters in the form of PostgreSQL's extended protocol.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the form of version 1")]
pub struct Query {
    /// 0: by itself, in any order. Others: in the session of that number, one after the other; it begins with its first
    /// request and ends with [`HidbMessage::CloseSession`].
    pub session: u32,
    /// Whether the answer may come from memory.
    pub cache: CacheUse,
    /// An answer computed longer ago than this, in milliseconds, does not do.
    pub max_age_ms: Option<u32>,
    /// The answer is to say what it depends on, if it may be kept ([`Facts::near`]).
    pub near: bool,
    /// One statement.
    pub text: String,
    /// As in Parse behind the text: the number of parameter types given (big-endian `i16`) and their OIDs (`i32`).
    /// Empty: none.
    pub types: Bytes,
    /// As in Bind behind the statement's name: parameter formats, parameters, result formats. Empty: no parameters, and
    /// results in text.
    pub bind: Bytes,
}

/// Whether an answer may come from memory.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the form of version 1")]
pub enum CacheUse {
    /// If it is as good as the server's.
    #[default]
    Default,
    /// No: ask the server, and keep nothing.
    Bypass,
    /// It must: what is not in memory is an error.
    Only,
}

/// The end of a request that went well.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the form of version 1")]
pub struct Answer {
    /// Whole PostgreSQL messages as the server sent them: RowDescription, DataRow, CommandComplete, ...
    pub run: Bytes,
    /// What is known of it.
    pub facts: Facts,
}

/// An [`Answer`] whose bytes are somewhere else.
#[derive(Serialize)]
struct AnswerRef<'a> {
    run: BlobRef<'a>,
    facts: &'a Facts,
}

struct BlobRef<'a>(&'a [u8]);

impl Serialize for BlobRef<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// What is known of an answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the form of version 1")]
pub struct Facts {
    /// Where it came from.
    pub source: AnswerSource,
    /// How long ago it was computed, in milliseconds.
    pub age_ms: u32,
    /// The session's transaction status, as in ReadyForQuery: `I`, `T` or `E`.
    pub status: u8,
    /// Everything that this answer can show of writes is among the changes up to this place in the feed.
    pub position: u64,
    /// Present if it was asked for and the answer may be kept.
    pub near: Option<Near>,
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the form of version 1")]
pub enum AnswerSource {
    /// The server.
    #[default]
    Server,
    /// The server, and the next one to ask may be answered from memory.
    Miss,
    /// The gateway's memory.
    Hit,
    /// The client's own memory. Never sent.
    Near,
}

/// What an answer depends on: it may be kept until one of `slots`, or slot 0, changes behind the place `as_of`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the form of version 1")]
pub struct Near {
    /// A place in the feed of changes.
    pub as_of: u64,
    /// Numbers of slots.
    pub slots: Vec<u32>,
}

/// Slots that changed: all that did, from the place before up to `position`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the form of version 1")]
pub struct Invalidated {
    /// A place in the feed of changes.
    pub position: u64,
    /// Their numbers, each once. Slot 0 stands for all.
    pub slots: Vec<u32>,
}

/// A message with the number of the request it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a frame is a number and a message"
)]
pub struct Frame {
    /// Chosen by the asking end, echoed by the answering one.
    pub request: u64,
    /// The message.
    pub message: HidbMessage,
}

/// The versions an end speaks, and the one byte sequence that never changes: magic, oldest and newest version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the greeting never changes")]
pub struct Hello {
    /// Oldest version spoken.
    pub oldest: u8,
    /// Newest version spoken.
    pub newest: u8,
}

impl Hello {
    /// What this crate speaks.
    pub const OURS: Self = Self {
        oldest: 1,
        newest: 1,
    };
    /// Length of a greeting, in bytes.
    pub const LEN: usize = 6;

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LEN] {
        [b'H', b'I', b'D', b'B', self.oldest, self.newest]
    }

    /// Reads a greeting.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if it is none, or if no version is spoken by both ends.
    pub fn decode(bytes: [u8; Self::LEN]) -> Result<Self> {
        let [b'H', b'I', b'D', b'B', oldest, newest] = bytes else {
            return Err(HeliosError::Protocol(
                "the peer does not speak HIDB".to_owned(),
            ));
        };
        if oldest > Self::OURS.newest || newest < Self::OURS.oldest {
            let message = format!("the peer speaks HIDB {oldest} to {newest}, this end speaks 1");
            return Err(HeliosError::Protocol(message));
        }
        Ok(Self { oldest, newest })
    }
}

/// Longest payload, in bytes.
pub const FRAME_MAX: usize = 16 << 20;
/// Longest payload before the login is over, in bytes. A [`Login`] or a [`Welcome`] is never longer.
pub const LOGIN_FRAME_MAX: usize = 64 << 10;
pub(crate) const HEADER: usize = 12;

// The numbers of variants that are looked at before a payload is decoded.
const LOGIN: u8 = 3;
const WELCOME: u8 = 5;
const QUERY: u8 = 6;
const ANSWER: u8 = 8;

/// Appends a frame.
///
/// # Errors
/// [`HeliosError::Protocol`] if the message is longer than [`FRAME_MAX`]. Nothing is appended then.
pub fn encode(frame: &Frame, out: &mut BytesMut) -> Result<()> {
    put_frame(frame.request, out, |sink| {
        postcard::serialize_with_flavor(&frame.message, sink).map(|_| ())
    })
}

/// Appends a frame with an [`Answer`] whose bytes are copied from `run`.
///
/// # Errors
/// As [`encode`].
pub fn encode_answer(request: u64, run: &[u8], facts: &Facts, out: &mut BytesMut) -> Result<()> {
    let answer = AnswerRef {
        run: BlobRef(run),
        facts,
    };
    out.reserve(HEADER + run.len() + 64);
    put_frame(request, out, |sink| {
        sink.0.put_u8(ANSWER);
        postcard::serialize_with_flavor(&answer, sink).map(|_| ())
    })
}

fn put_frame(
    request: u64,
    out: &mut BytesMut,
    put: impl FnOnce(Sink<'_>) -> postcard::Result<()>,
) -> Result<()> {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u64_le(request);
    let body = put(Sink(out));
    let len = out.len() - start - HEADER;
    let checked = match body {
        Ok(()) => u32::try_from(len)
            .ok()
            .filter(|_| len <= FRAME_MAX)
            .ok_or_else(|| format!("a message of {len} bytes is too long")),
        Err(error) => Err(format!("cannot encode a message: {error}")),
    };
    match checked {
        Ok(len) => {
            out[start..start + 4].copy_from_slice(&len.to_le_bytes());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(HeliosError::Protocol(error))
        }
    }
}

/// Lets postcard write into a buffer that has something in it already.
struct Sink<'a>(&'a mut BytesMut);

impl postcard::ser_flavors::Flavor for Sink<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.put_u8(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.put_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Takes a frame from the front of `input`, or nothing until one is complete. What was read is never lost: the caller
/// may stop at any byte and go on later.
///
/// # Errors
/// [`HeliosError::Protocol`] if what stands there is no frame; the connection is unusable then.
pub fn decode(input: &mut BytesMut) -> Result<Option<Frame>> {
    decode_within(input, FRAME_MAX)
}

/// As [`decode`], for frames of at most `frame_max` bytes.
///
/// # Errors
/// As [`decode`].
pub fn decode_within(input: &mut BytesMut, frame_max: usize) -> Result<Option<Frame>> {
    let Some((request, payload, len)) = peek(input, frame_max)? else {
        return Ok(None);
    };
    let message = decode_message(payload)?;
    input.advance(len);
    Ok(Some(Frame { request, message }))
}

/// The frame at the front of `input`: the number of its request, its payload, and its length as a whole.
///
/// # Errors
/// [`HeliosError::Protocol`] if its payload is longer than `frame_max` bytes.
pub fn peek(input: &[u8], frame_max: usize) -> Result<Option<(u64, &[u8], usize)>> {
    let Some((head, rest)) = input.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let mut head = &head[..];
    let len = head.get_u32_le() as usize;
    let request = head.get_u64_le();
    if len > frame_max {
        return Err(HeliosError::Protocol(format!(
            "a frame of {len} bytes is too long"
        )));
    }
    Ok(rest
        .get(..len)
        .map(|payload| (request, payload, HEADER + len)))
}

/// Reads a payload. What is read takes at most sixteen times the payload's memory, and 4 MiB for the messages with lists
/// of pairs.
///
/// # Errors
/// [`HeliosError::Protocol`] if it is no message, or has something behind it.
pub fn decode_message(payload: &[u8]) -> Result<HidbMessage> {
    match payload.first() {
        // A pair of empty strings takes two bytes here and 48 in memory.
        Some(&(LOGIN | WELCOME)) if payload.len() > LOGIN_FRAME_MAX => Err(HeliosError::Protocol(
            format!("a login of {} bytes is too long", payload.len()),
        )),
        // A number in more bytes than it needs would pass by the line above.
        Some(0x80..) => Err(HeliosError::Protocol(
            "cannot decode a message of an unknown number".to_owned(),
        )),
        _ => exactly(postcard::take_from_bytes(payload)),
    }
}

fn exactly<T>(taken: postcard::Result<(T, &[u8])>) -> Result<T> {
    match taken {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(HeliosError::Protocol(
            "a frame is longer than its message".to_owned(),
        )),
        Err(error) => Err(HeliosError::Protocol(format!(
            "cannot decode a message: {error}"
        ))),
    }
}

/// A [`Query`] in the buffer it came in.
#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the form of version 1")]
#[expect(missing_docs, reason = "as those of `Query`")]
pub struct QueryRef<'a> {
    pub session: u32,
    pub cache: CacheUse,
    pub max_age_ms: Option<u32>,
    pub near: bool,
    pub text: &'a str,
    pub types: &'a [u8],
    pub bind: &'a [u8],
}

impl<'a> QueryRef<'a> {
    /// The query in a payload; `None` if another message is.
    ///
    /// # Errors
    /// As [`decode_message`].
    pub fn decode(payload: &'a [u8]) -> Result<Option<Self>> {
        match payload.split_first() {
            Some((&QUERY, fields)) => exactly(postcard::take_from_bytes(fields)).map(Some),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn bytes() -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), 0..20).prop_map(Bytes::from)
    }

    fn query() -> impl Strategy<Value = Query> {
        let cache = prop_oneof![
            Just(CacheUse::Default),
            Just(CacheUse::Bypass),
            Just(CacheUse::Only)
        ];
        let controls = (any::<u32>(), cache, any::<Option<u32>>(), any::<bool>());
        (controls, ".*", bytes(), bytes()).prop_map(|(controls, text, types, bind)| {
            let (session, cache, max_age_ms, near) = controls;
            Query {
                session,
                cache,
                max_age_ms,
                near,
                text,
                types,
                bind,
            }
        })
    }

    fn facts() -> impl Strategy<Value = Facts> {
        let source = prop_oneof![
            Just(AnswerSource::Server),
            Just(AnswerSource::Miss),
            Just(AnswerSource::Hit),
            Just(AnswerSource::Near)
        ];
        let near = (any::<u64>(), vec(any::<u32>(), 0..5))
            .prop_map(|(as_of, slots)| Near { as_of, slots });
        (
            source,
            any::<u32>(),
            any::<u8>(),
            any::<u64>(),
            proptest::option::of(near),
        )
            .prop_map(|(source, age_ms, status, position, near)| Facts {
                source,
                age_ms,
                status,
                position,
                near,
            })
    }

    fn message() -> impl Strategy<Value = HidbMessage> {
        let pairs = || vec((".*", ".*"), 0..3);
        let login = (".*", ".*", pairs(), bytes()).prop_map(|(user, database, settings, scram)| {
            HidbMessage::Login(Login {
                user,
                database,
                settings,
                scram,
            })
        });
        let numbers = (any::<u32>(), any::<u32>(), any::<u64>());
        let welcome =
            (pairs(), numbers).prop_map(|(parameters, (open_max, frame_max, instance))| {
                HidbMessage::Welcome(Welcome {
                    parameters,
                    open_max,
                    frame_max,
                    instance,
                })
            });
        let answer =
            (bytes(), facts()).prop_map(|(run, facts)| HidbMessage::Answer(Answer { run, facts }));
        let invalidated = (any::<u64>(), vec(any::<u32>(), 0..9)).prop_map(|(position, slots)| {
            HidbMessage::Invalidated(Invalidated { position, slots })
        });
        prop_oneof![
            Just(HidbMessage::Ping),
            Just(HidbMessage::Pong),
            ".*".prop_map(HidbMessage::Goodbye),
            login,
            bytes().prop_map(HidbMessage::Sasl),
            welcome,
            query().prop_map(HidbMessage::Query),
            bytes().prop_map(HidbMessage::Part),
            answer,
            bytes().prop_map(HidbMessage::Failed),
            Just(HidbMessage::Cancel),
            any::<u32>().prop_map(HidbMessage::CloseSession),
            Just(HidbMessage::Subscribe),
            any::<u64>().prop_map(HidbMessage::Subscribed),
            invalidated,
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_every_split(request: u64, message in message()) {
            let frame = Frame { request, message };
            let mut wire = BytesMut::new();
            encode(&frame, &mut wire).expect("short");
            for cut in 0..wire.len() {
                let mut input = BytesMut::from(&wire[..cut]);
                prop_assert_eq!(decode(&mut input).expect("a beginning is no error"), None);
                input.extend_from_slice(&wire[cut..]);
                prop_assert_eq!(decode(&mut input).expect("whole"), Some(frame.clone()));
                prop_assert!(input.is_empty());
            }
        }

        #[test]
        fn garbage_is_an_error_or_a_beginning_never_a_panic(bytes: Vec<u8>) {
            let mut input = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode(&mut input) {}
            let _ = QueryRef::decode(&bytes);
        }

        #[test]
        fn a_message_that_was_tampered_with_is_an_error_or_another_message(
            message in message(),
            at: proptest::sample::Index,
            byte: u8,
        ) {
            let mut payload = postcard::to_stdvec(&message).expect("encoded");
            let at = at.index(payload.len());
            payload[at] = byte;
            if let Ok(read) = decode_message(&payload) {
                // What is read takes no more room than what was sent, give or take the size of a field.
                let printed = format!("{read:?}").len();
                prop_assert!(printed <= 12 * payload.len() + 300);
            }
            let _ = QueryRef::decode(&payload);
        }

        #[test]
        fn an_answer_is_the_same_from_borrowed_bytes(request: u64, run in bytes(), facts in facts()) {
            let (mut owned, mut borrowed) = (BytesMut::from(&b"before"[..]), BytesMut::from(&b"before"[..]));
            encode_answer(request, &run, &facts, &mut borrowed).expect("short");
            let message = HidbMessage::Answer(Answer { run, facts });
            encode(&Frame { request, message }, &mut owned).expect("short");
            prop_assert_eq!(owned, borrowed);
        }

        #[test]
        fn a_query_is_the_same_in_its_buffer(query in query()) {
            let payload = postcard::to_stdvec(&HidbMessage::Query(query.clone())).expect("encoded");
            let read = QueryRef::decode(&payload).expect("whole").expect("a query");
            prop_assert_eq!(read.text, &query.text);
            prop_assert_eq!((read.types, read.bind), (&query.types[..], &query.bind[..]));
            prop_assert_eq!(
                (read.session, read.cache, read.max_age_ms, read.near),
                (query.session, query.cache, query.max_age_ms, query.near)
            );
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_waited_for() {
        let mut input = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0][..]);
        assert!(decode(&mut input).is_err());
        let mut long = BytesMut::new();
        let message = HidbMessage::Goodbye("x".repeat(LOGIN_FRAME_MAX));
        encode(
            &Frame {
                request: 1,
                message,
            },
            &mut long,
        )
        .expect("below the larger limit");
        assert!(decode_within(&mut long.clone(), LOGIN_FRAME_MAX).is_err());
        assert!(decode(&mut long).expect("below the larger limit").is_some());
    }

    #[test]
    fn a_login_is_never_long_and_has_its_number_in_one_byte() {
        let login = Login {
            settings: vec![(String::new(), String::new()); LOGIN_FRAME_MAX / 2],
            ..Login::default()
        };
        let mut payload = postcard::to_stdvec(&HidbMessage::Login(login)).expect("encoded");
        assert!(decode_message(&payload).is_err());
        payload.splice(..1, [LOGIN | 0x80, 0]);
        assert!(decode_message(&payload).is_err());
        assert!(decode_message(&[0x80, 0]).is_err(), "a ping in two bytes");
    }

    #[test]
    fn a_message_that_is_too_long_is_not_sent_in_part() {
        let mut out = BytesMut::from(&b"before"[..]);
        let message = HidbMessage::Part(Bytes::from(vec![0; FRAME_MAX]));
        assert!(
            encode(
                &Frame {
                    request: 1,
                    message
                },
                &mut out
            )
            .is_err()
        );
        assert_eq!(&out[..], b"before");
    }

    #[test]
    fn strangers_and_foreign_versions_are_told_apart_from_friends() {
        assert!(Hello::decode(*b"HIDB\x01\x05").is_ok());
        assert!(Hello::decode(*b"HIDB\x02\x05").is_err());
        assert!(Hello::decode(*b"HTTP/1").is_err());
    }

    /// The blocks of bytes in `docs/hidb.md`, by the names they have there. Behind a semicolon stands a comment.
    fn examples_of_the_specification() -> HashMap<String, Vec<u8>> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/hidb.md");
        let text = std::fs::read_to_string(file).expect("the specification");
        let mut examples = HashMap::new();
        let mut current: Option<(String, Vec<u8>)> = None;
        for line in text.lines() {
            match (&mut current, line.strip_prefix("```")) {
                (None, Some(fence)) => {
                    let name = fence.strip_prefix("hex ").expect("all blocks are of bytes");
                    current = Some((name.to_owned(), Vec::new()));
                }
                (Some(_), Some(_)) => {
                    let (name, bytes) = current.take().expect("matched");
                    assert_eq!(examples.insert(name, bytes), None, "a name twice");
                }
                (Some((_, bytes)), None) => {
                    let shown = line.split(';').next().unwrap_or_default();
                    let byte = |hex| u8::from_str_radix(hex, 16).expect(line);
                    bytes.extend(shown.split_whitespace().map(byte));
                }
                (None, None) => {}
            }
        }
        examples
    }

    /// What a part of the specification shows: names, numbers of requests, and messages.
    type Shown = Vec<(&'static str, u64, HidbMessage)>;

    fn single_frames() -> Shown {
        let query = Query {
            text: "select 1".to_owned(),
            ..Query::default()
        };
        let answer = Answer {
            run: Bytes::from_static(b"C\0\0\0\x0dSELECT 0\0"),
            facts: Facts {
                source: AnswerSource::Hit,
                age_ms: 300,
                status: b'I',
                position: 5,
                near: Some(Near {
                    as_of: 4,
                    slots: vec![1, 300],
                }),
            },
        };
        vec![
            ("ping", 7, HidbMessage::Ping),
            ("pong", 7, HidbMessage::Pong),
            ("query-short", 1, HidbMessage::Query(query)),
            ("answer-short", 1, HidbMessage::Answer(answer)),
        ]
    }

    fn a_session() -> Shown {
        let pair = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        let login = Login {
            user: "app".to_owned(),
            database: "shop".to_owned(),
            settings: pair("application_name", "demo"),
            scram: Bytes::new(),
        };
        let welcome = Welcome {
            parameters: pair("server_version", "18.0"),
            open_max: 1024,
            frame_max: u32::try_from(FRAME_MAX).expect("fits"),
            instance: 300,
        };
        let begin = Query {
            session: 1,
            text: "begin".to_owned(),
            ..Query::default()
        };
        let begun = Answer {
            run: Bytes::from_static(b"n\0\0\0\x04C\0\0\0\x0aBEGIN\0"),
            facts: Facts {
                status: b'T',
                position: 42,
                ..Facts::default()
            },
        };
        let invalidated = Invalidated {
            position: 42,
            slots: vec![1177],
        };
        let cancelled = "canceling statement due to user request";
        let failed = crate::server::error_body("ERROR", "57014", cancelled);
        let (query, part, answer) = a_read();
        vec![
            ("login", 0, HidbMessage::Login(login)),
            ("welcome", 0, HidbMessage::Welcome(welcome)),
            ("subscribe", 1, HidbMessage::Subscribe),
            ("subscribed", 1, HidbMessage::Subscribed(40)),
            ("query", 2, HidbMessage::Query(query)),
            ("part", 2, HidbMessage::Part(part)),
            ("answer", 2, HidbMessage::Answer(answer)),
            ("invalidated", 0, HidbMessage::Invalidated(invalidated)),
            ("begin", 3, HidbMessage::Query(begin)),
            ("begun", 3, HidbMessage::Answer(begun)),
            ("cancel", 4, HidbMessage::Cancel),
            ("failed", 4, HidbMessage::Failed(failed)),
            ("close", 5, HidbMessage::CloseSession(1)),
            ("goodbye", 0, HidbMessage::Goodbye("done".to_owned())),
        ]
    }

    /// As a client asks it, and with an answer that a client can read.
    fn a_read() -> (Query, Bytes, Answer) {
        let param = crate::Param {
            oid: 23,
            ..crate::Param::from(7)
        };
        let statement = crate::Statement::new("select name from t where id = $1").bind(param);
        let query = Query {
            max_age_ms: Some(60_000),
            near: true,
            ..statement.to_query()
        };
        let column = b"name\0\0\0\x40\0\0\x02\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";
        let part = [&b"T\0\0\0\x1d\0\x01"[..], column].concat();
        let answer = Answer {
            run: Bytes::from_static(b"D\0\0\0\x0d\0\x01\0\0\0\x03AdaC\0\0\0\x0dSELECT 1\0"),
            facts: Facts {
                source: AnswerSource::Hit,
                age_ms: 1500,
                status: b'I',
                position: 40,
                near: Some(Near {
                    as_of: 40,
                    slots: vec![1177],
                }),
            },
        };
        let whole = [&part[..], &answer.run].concat();
        let reply = crate::Reply::new(whole.into(), Facts::default()).expect("whole");
        assert_eq!((reply.len(), reply.tag()), (1, "SELECT 1"));
        let row = reply.row(0).expect("a row");
        assert_eq!(row.text("name").expect("there"), Some("Ada"));
        (query, part.into(), answer)
    }

    /// The messages are checked in `scram`.
    fn a_login_by_scram() -> Shown {
        let login = Login {
            user: "user".to_owned(),
            scram: Bytes::from_static(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"),
            ..Login::default()
        };
        let sasl = |text: &'static str| HidbMessage::Sasl(Bytes::from(text));
        vec![
            ("scram-login", 0, HidbMessage::Login(login)),
            (
                "scram-first",
                0,
                sasl(
                    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,\
                     i=4096",
                ),
            ),
            (
                "scram-final",
                0,
                sasl(
                    "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                     p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
                ),
            ),
            (
                "scram-proof",
                0,
                sasl("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="),
            ),
        ]
    }

    #[test]
    fn the_examples_of_the_specification_are_right() {
        let mut examples = examples_of_the_specification();
        let mut shown = |name: &str| examples.remove(name).expect(name);
        assert_eq!(shown("greeting"), Hello::OURS.encode());
        for (name, request, message) in [single_frames(), a_session(), a_login_by_scram()].concat()
        {
            let frame = Frame { request, message };
            let mut wire = BytesMut::new();
            encode(&frame, &mut wire).expect("short");
            let bytes = shown(name);
            assert_eq!(bytes, wire, "{name}");
            let read = decode(&mut BytesMut::from(&bytes[..])).expect("a frame");
            assert_eq!(read, Some(frame), "{name}");
        }
        assert!(examples.is_empty(), "shown, and not checked: {examples:?}");
    }

    #[test]
    fn the_limits_of_the_specification_are_those_here() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/hidb.md");
        let text = std::fs::read_to_string(file).expect("the specification");
        assert!(text.contains("64 KiB (65,536 bytes)") && LOGIN_FRAME_MAX == 65_536);
        assert!(text.contains("16 MiB (16,777,216 bytes)") && FRAME_MAX == 16_777_216);
    }
}
