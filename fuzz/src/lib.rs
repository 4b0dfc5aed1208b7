//! What the fuzz targets do with their input. Each panics if something does not hold.
//!
//! The test `corpus` of `heliosdb-network` includes this file: what a fuzzer found once is checked without one ever after.

use bytes::{Bytes, BytesMut};
use heliosdb_network::postgres::message::{self, Named};
use heliosdb_network::postgres::startup::{self, FirstPacket};
use heliosdb_network::postgres::{ErrorFields, frame, parse};
use heliosdb_network::protocol::{
    self, Answer, FRAME_MAX, Facts, Frame, Hello, HidbMessage, LOGIN_FRAME_MAX, QueryRef,
};
use heliosdb_network::scram::{ScramExchange, ScramSecret};
use heliosdb_network::{HeliosError, Reply};
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

/// HIDB as a server reads it. The first byte says how long the pieces are in which the others arrive.
pub fn hidb_frames(data: &[u8]) {
    let Some((piece, wire)) = data.split_first() else {
        return;
    };
    let whole = read_frames([wire]);
    let pieces = read_frames(wire.chunks(usize::from(*piece) + 1));
    assert_eq!(whole, pieces, "where the input is split makes a difference");
    whole.frames.iter().for_each(comes_back);
    let mut rest = wire.get(Hello::LEN..).unwrap_or_default();
    while let Ok(Some((_, payload, len))) = protocol::peek(rest, FRAME_MAX) {
        is_the_same_in_its_buffer(payload);
        rest = &rest[len..];
    }
}

/// What a server made of its input.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The client's greeting.
    pub hello: Option<Result<Hello, String>>,
    /// Everything up to the error.
    pub frames: Vec<Frame>,
    /// Why it stopped reading.
    pub error: Option<String>,
    /// What is incomplete; not said where it stopped before the end.
    pub rest: Vec<u8>,
}

/// Reads a greeting and frames: short ones up to a login, long ones behind it.
pub fn read_frames<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Received {
    let mut received = Received::default();
    let mut input = BytesMut::new();
    let mut frame_max = LOGIN_FRAME_MAX;
    for piece in pieces {
        input.extend_from_slice(piece);
        if received.hello.is_none() {
            let Some(hello) = input.first_chunk().copied() else {
                continue;
            };
            // Whatever it says: what is behind it is to be read too.
            received.hello = Some(Hello::decode(hello).map_err(|error| error.to_string()));
            let _ = input.split_to(Hello::LEN);
        }
        loop {
            match protocol::decode_within(&mut input, frame_max) {
                Ok(Some(frame)) => {
                    if matches!(frame.message, HidbMessage::Login(_)) {
                        frame_max = FRAME_MAX;
                    }
                    received.frames.push(frame);
                }
                Ok(None) => break,
                Err(error) => {
                    received.error = Some(error.to_string());
                    return received;
                }
            }
        }
    }
    received.rest = input.to_vec();
    received
}

/// What was read is read again from what it is written as.
fn comes_back(frame: &Frame) {
    let mut wire = BytesMut::new();
    protocol::encode(frame, &mut wire).expect("no longer than what it was read from");
    if let HidbMessage::Answer(Answer { run, facts }) = &frame.message {
        let mut borrowed = BytesMut::new();
        protocol::encode_answer(frame.request, run, facts, &mut borrowed).expect("as long");
        assert_eq!(wire, borrowed);
    }
    let read = protocol::decode(&mut wire).expect("no error");
    assert_eq!(read.as_ref(), Some(frame));
    assert!(wire.is_empty());
}

fn is_the_same_in_its_buffer(payload: &[u8]) {
    match (QueryRef::decode(payload), protocol::decode_message(payload)) {
        (Ok(Some(there)), Ok(HidbMessage::Query(query))) => {
            assert_eq!(
                (there.session, there.cache, there.max_age_ms, there.near),
                (query.session, query.cache, query.max_age_ms, query.near)
            );
            assert_eq!(
                (there.text.as_bytes(), there.types, there.bind),
                (query.text.as_bytes(), &query.types[..], &query.bind[..])
            );
        }
        (Ok(Some(_)), _) | (_, Ok(HidbMessage::Query(_))) => {
            panic!("a query is one in one form only")
        }
        _ => {}
    }
}

/// The run of an answer, or the body of an error, as a client reads it.
pub fn hidb_answers(data: &[u8]) {
    let run = Bytes::copy_from_slice(data);
    if let Ok(reply) = Reply::new(run.clone(), Facts::default()) {
        read_everything(&reply);
    }
    // Two pieces of it, as if the second had been lost.
    if let Some(cut) = data.first().map(|cut| usize::from(*cut).min(data.len()))
        && let Ok(reply) = Reply::new(run.slice(..cut), Facts::default())
    {
        read_everything(&reply);
    }
    read_error(&run);
}

fn read_everything(reply: &Reply) {
    assert_eq!(reply.rows().len(), reply.len());
    assert_eq!(reply.rows().count(), reply.len());
    assert_eq!(reply.is_empty(), reply.row(0).is_none());
    assert!(reply.row(reply.len()).is_none());
    assert!(reply.tag().len() <= reply.bytes().len());
    let columns = reply.columns();
    for row in reply.rows() {
        let values = row.values();
        for number in (0..columns.len()).take(8) {
            let text = row.text(number);
            let value = values.as_ref().ok().and_then(|values| values.get(number));
            match (value, &text) {
                (Some(None), Ok(None)) => {}
                (Some(Some(value)), Ok(Some(text))) => assert_eq!(*value, text.as_bytes()),
                (Some(Some(value)), Err(_)) => assert!(std::str::from_utf8(value).is_err()),
                (None, Err(_)) => {}
                other => panic!("{other:?}"),
            }
            let _ = row.get::<i64>(number);
        }
        if let Some(column) = columns.first() {
            let _ = row.get::<f64>(&*column.name);
        }
        assert!(row.text(columns.len()).is_err());
    }
}

fn read_error(body: &Bytes) {
    let fields = ErrorFields::parse(body.clone());
    assert_eq!(fields.sqlstate().len(), 5);
    assert_eq!(fields.body(), body);
    let _ = (fields.severity(), fields.detail(), fields.hint());
    assert!(fields.to_string().contains(fields.message()));
    for code in 0..=u8::MAX {
        let _ = fields.field(code);
    }
    let _ = HeliosError::Server(Box::new(fields)).is_permanent();
}

/// A login by SCRAM as a server sees it: a stored secret, the client's first and its last message, with a zero byte between
/// them. In the last one, `{r}` stands for the nonce that the server has chosen. Behind a third zero byte stands what
/// befalls the messages of a client that knows the password: a place and what is changed there, two bytes each.
pub fn scram_server(data: &[u8]) {
    let mut parts = data.splitn(4, |byte| *byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let (secret, first, last, changes) = (part(), part(), part(), part());
    let secret = std::str::from_utf8(secret).ok().map(ScramSecret::parse);
    let secret = match secret {
        Some(Ok(secret)) => secret,
        _ => ScramSecret::mock("nobody", b"seed"),
    };
    if let Ok((exchange, challenge)) = ScramExchange::begin(secret, first) {
        let nonce = challenge.split(',').next().unwrap_or_default();
        let last = replace(last, b"{r}", &nonce.as_bytes()[2..]);
        assert!(
            !matches!(exchange.finish(&last), Ok(Some(_))),
            "let in without the password"
        );
    }
    let (to_first, to_last) = changes.split_at(changes.len() / 2 / 2 * 2);
    log_in(to_first, to_last);
}

/// The secret of the password "pencil", of one iteration so that it costs little.
pub const PENCIL: &str = "SCRAM-SHA-256$1:c2FsdA==$Otk5kdnAo/6UDUcm0KaO+uESed84FVLF7Qg4N9v1MRA=:\
                          Uc4DDcQRN5WJ44eNiyKPEO+MJvVo84Ucr4WI9nixz60=";

/// A client that knows the password is let in if its messages arrive as they were sent, and no client is if not.
fn log_in(to_first: &[u8], to_last: &[u8]) {
    let secret = ScramSecret::parse(PENCIL).expect("well formed");
    let mut client = ScramSha256::new(b"pencil", ChannelBinding::unsupported());
    let first = change(client.message(), to_first);
    let is_first_as_sent = first == client.message();
    let Ok((exchange, challenge)) = ScramExchange::begin(secret, &first) else {
        assert!(!is_first_as_sent);
        return;
    };
    if client.update(challenge.as_bytes()).is_err() {
        // What was changed is the nonce that the client looks for in the answer.
        assert!(!is_first_as_sent);
        return;
    }
    let last = change(client.message(), to_last);
    let are_as_sent = is_first_as_sent && last == client.message();
    match exchange.finish(&last) {
        Ok(Some(proof)) => {
            assert!(are_as_sent, "let in by {}", last.escape_ascii());
            client
                .finish(proof.message.as_bytes())
                .expect("the server's proof");
        }
        Ok(None) | Err(_) => assert!(!are_as_sent, "a password that is right is refused"),
    }
}

fn change(message: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    for change in changes.chunks_exact(2) {
        let at = usize::from(change[0]) % message.len();
        message[at] ^= change[1];
    }
    message
}

fn replace(text: &[u8], what: &[u8], by: &[u8]) -> Vec<u8> {
    match text.windows(what.len()).position(|window| window == what) {
        Some(at) => [&text[..at], by, &text[at + what.len()..]].concat(),
        None => text.to_vec(),
    }
}

/// PostgreSQL's protocol: a client's first packet, or messages of either end. The first byte says how long the pieces are
/// in which the others arrive.
pub fn postgres_messages(data: &[u8]) {
    let Some((piece, wire)) = data.split_first() else {
        return;
    };
    let whole = take_messages([wire]);
    let pieces = take_messages(wire.chunks(usize::from(*piece) + 1));
    assert_eq!(whole, pieces, "where the input is split makes a difference");
    for (_, body) in &whole.0 {
        read_body(body);
    }
    read_first_packet(wire);
    if let Ok(options) = std::str::from_utf8(wire)
        && let Ok(settings) = startup::parse_options(options)
    {
        assert!(settings.iter().all(|(name, _)| !name.is_empty()));
    }
}

/// Longest message, in bytes.
const LEN_MAX: usize = 1 << 16;

/// A type and a body.
type Message = (u8, Bytes);

/// The messages, and whether the last of them is none, or is not all there.
fn take_messages<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Message>, Result<Vec<u8>, String>) {
    let mut messages = Vec::new();
    let mut input = BytesMut::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match frame::take(&mut input, LEN_MAX) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => {
                    let header = frame::header(&input, LEN_MAX).expect("taken without an error");
                    assert!(header.is_none_or(|header| header.len > input.len()));
                    break;
                }
                Err(error) => return (messages, Err(error.to_string())),
            }
        }
    }
    (messages, Ok(input.to_vec()))
}

/// Whatever the message's type says, its body may be read as that of any other.
fn read_body(body: &[u8]) {
    let mut out = BytesMut::new();
    if let Ok(parsed) = parse::Parse::from_body(body) {
        let types: Vec<_> = parsed.types().collect();
        message::put_parse(&mut out, parsed.name, parsed.sql, &types);
        is_body(&mut out, body);
    }
    if let Ok(bind) = parse::Bind::from_body(body)
        && let Ok(arguments) = parse::Arguments::from_bytes(bind.rest)
    {
        let values = arguments.values.iter().copied();
        let (formats, results) = (&arguments.formats, &arguments.result_formats);
        message::put_bind(
            &mut out,
            bind.portal,
            bind.statement,
            formats,
            values,
            results,
        );
        is_body(&mut out, body);
    }
    if let Ok(target) = parse::Target::from_body(body) {
        assert!(matches!(target.named, Named::Portal | Named::Statement));
        message::put_close(&mut out, target.named, target.name);
        is_body(&mut out, body);
    }
    if let Ok(execute) = parse::Execute::from_body(body) {
        message::put_execute(&mut out, execute.portal, execute.max_rows);
        is_body(&mut out, body);
    }
    if let Ok(values) = parse::data_row(body) {
        message::put_data_row(&mut out, values.into_iter());
        is_body(&mut out, body);
    }
    if let Ok(columns) = parse::row_description(body) {
        assert!(columns.len() * 19 <= body.len());
    }
    if let Ok(tag) = parse::command_tag(body) {
        assert_eq!(tag.len() + 1, body.len());
    }
    if let Ok((name, value)) = parse::parameter_status(body) {
        assert_eq!(name.len() + value.len() + 2, body.len());
    }
    let _ = (parse::backend_key_data(body), parse::ready_for_query(body));
    read_error(&Bytes::copy_from_slice(body));
}

/// What was read is written as it was.
fn is_body(out: &mut BytesMut, body: &[u8]) {
    let written = frame::take(out, usize::MAX).expect("valid").expect("whole");
    assert_eq!(written.1, body);
    assert!(out.is_empty());
}

fn read_first_packet(wire: &[u8]) {
    let Ok(Some((packet, len))) = startup::parse(wire) else {
        return;
    };
    let again = startup::parse(&wire[..len]);
    assert!(matches!(&again, Ok(Some((other, _))) if *other == packet));
    assert!(matches!(startup::parse(&wire[..len - 1]), Ok(None)));
    let FirstPacket::Startup(startup) = packet else {
        return;
    };
    let _ = startup.negotiation();
    for (name, _) in &startup.params {
        assert!(startup.param(name).is_some());
    }
}
