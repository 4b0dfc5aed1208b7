//! The inputs that fuzzing kept, through the fuzz targets without a fuzzer: nothing panics, it does not matter where the
//! input is split, and no length is believed before there are bytes behind it.

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "a crate of its own elsewhere")]
mod targets;

mod seeds;

use std::collections::HashSet;
use std::mem::discriminant;
use std::path::PathBuf;

use allocation_counter::measure;
use bytes::{BufMut as _, Bytes, BytesMut};
use heliosdb_network::Reply;
use heliosdb_network::postgres::{ErrorFields, message};
use heliosdb_network::protocol::{
    self, FRAME_MAX, Facts, Frame, Hello, HidbMessage, Invalidated, LOGIN_FRAME_MAX, Login, Query,
    QueryRef, Welcome,
};

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target)
}

/// The files of a target.
fn files(target: &str) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(folder(target)).expect("a corpus");
    let read = |file: std::fs::DirEntry| std::fs::read(file.path()).expect("readable");
    let files: Vec<_> = files.map(|file| read(file.expect("listed"))).collect();
    assert!(files.len() >= 24, "{target} has lost its corpus");
    files
}

/// The files of a target, and what fuzzing began with.
fn inputs(target: &str) -> Vec<Vec<u8>> {
    let mut inputs = files(target);
    inputs.extend(seeds::of(target));
    inputs
}

#[test]
fn answers_are_read_or_refused() {
    inputs("hidb_answers")
        .iter()
        .for_each(|input| targets::hidb_answers(input));
}

#[test]
fn frames_are_read_or_refused_wherever_they_are_split() {
    every_split("hidb_frames", targets::hidb_frames);
}

#[test]
fn messages_of_postgresql_are_read_or_refused_wherever_they_are_split() {
    every_split("postgres_messages", targets::postgres_messages);
}

fn every_split(target: &str, body: fn(&[u8])) {
    for mut input in inputs(target) {
        body(&input);
        // The first byte is one less than the length of the pieces.
        let longest = input.len().min(usize::from(u8::MAX));
        for piece in 0..longest {
            input[0] = u8::try_from(piece).expect("below");
            body(&input);
        }
    }
}

#[test]
fn nobody_is_let_in_without_the_password() {
    inputs("scram_server")
        .iter()
        .for_each(|input| targets::scram_server(input));
}

/// A corpus of which nothing is understood would show nothing.
#[test]
fn every_kind_of_message_and_of_error_is_among_them() {
    let (mut kinds, mut errors) = (HashSet::new(), HashSet::new());
    for input in files("hidb_frames") {
        let received = targets::read_frames([input.get(1..).unwrap_or_default()]);
        kinds.extend(
            received
                .frames
                .iter()
                .map(|frame| discriminant(&frame.message)),
        );
        errors.extend(received.error);
    }
    assert_eq!(kinds.len(), 15);
    for what in ["too long", "cannot decode", "longer than its message"] {
        assert!(
            errors.iter().any(|error| error.contains(what)),
            "{what}: {errors:?}"
        );
    }
}

/// What decoding `len` bytes of payload may take, in bytes: see `decode_message`. An error's text is the rest.
fn bound(payload: &[u8]) -> u64 {
    const ERROR: u64 = 1024;
    let len = payload.len() as u64;
    let decoded = match payload.first() {
        Some(&(LOGIN | WELCOME)) => (80 * len).min(4 << 20),
        _ => 16 * len,
    };
    decoded + ERROR
}

const LOGIN: u8 = 3;
const WELCOME: u8 = 5;

/// Decodes all frames and watches what it costs. Returns their number.
fn decode_cheaply(wire: &[u8], frame_max: usize) -> usize {
    let mut input = BytesMut::from(wire);
    let mut count = 0;
    loop {
        let head = input.get(..12).and_then(|head| head.first_chunk::<4>());
        let head = head.copied().unwrap_or_default();
        let behind = input.get(12..).unwrap_or_default();
        let announced = u32::from_le_bytes(head) as usize;
        let payload = &behind[..announced.min(behind.len())];
        let (len, most) = (payload.len(), bound(payload));
        let mut decoded = None;
        let cost = measure(|| decoded = Some(protocol::decode_within(&mut input, frame_max)));
        assert!(
            cost.bytes_max <= most,
            "{} bytes for a payload of {len}",
            cost.bytes_max
        );
        match decoded.expect("measured") {
            Ok(Some(_)) => {
                assert!(announced <= frame_max);
                count += 1;
            }
            Ok(None) => {
                assert_eq!(
                    cost.bytes_total, 0,
                    "nothing is kept ready for what has not come"
                );
                assert!(
                    announced <= frame_max,
                    "it will never be taken: why wait for it"
                );
                return count;
            }
            Err(_) => return count,
        }
    }
}

#[test]
fn decoding_takes_memory_for_what_is_there_only() {
    for input in inputs("hidb_frames") {
        let wire = input.get(1 + Hello::LEN..).unwrap_or_default();
        for frame_max in [LOGIN_FRAME_MAX, FRAME_MAX] {
            decode_cheaply(wire, frame_max);
        }
    }
}

fn header(len: usize) -> BytesMut {
    let mut wire = BytesMut::new();
    wire.put_u32_le(u32::try_from(len).expect("a length"));
    wire.put_u64_le(1);
    wire
}

#[test]
fn a_length_is_no_reason_to_take_memory() {
    for len in [
        1,
        LOGIN_FRAME_MAX,
        FRAME_MAX,
        FRAME_MAX + 1,
        u32::MAX as usize,
    ] {
        for frame_max in [LOGIN_FRAME_MAX, FRAME_MAX] {
            for there in [0, 1, 100] {
                let mut wire = header(len);
                wire.put_bytes(0xff, there);
                let whole = usize::from(len <= there && len <= frame_max);
                assert!(decode_cheaply(&wire, frame_max) <= whole);
            }
            // It is refused, or waited for.
            let mut alone = header(len);
            let decoded = protocol::decode_within(&mut alone, frame_max);
            assert_eq!(decoded.is_err(), len > frame_max, "{len}, {frame_max}");
        }
    }
}

/// Counts of what lists hold, and lengths of texts, that are more than there is.
#[test]
fn a_count_is_no_reason_to_take_memory() {
    let count = [0xff, 0xff, 0xff, 0xff, 0x0f];
    let payloads: [&[&[u8]]; 7] = [
        &[&[3, 0, 0], &count],
        &[&[3], &count],
        &[&[5], &count],
        &[&[4], &count],
        &[&[6, 0, 0, 0, 0], &count],
        &[&[8, 0, 0, 0, b'I', 0, 1, 0], &count],
        &[&[14, 0], &count],
    ];
    for payload in payloads {
        let mut payload = payload.concat();
        for padding in [0, 1000, 60_000] {
            payload.resize(payload.len() + padding, 0);
            let mut wire = header(payload.len());
            wire.put_slice(&payload);
            assert_eq!(decode_cheaply(&wire, FRAME_MAX), 0);
        }
    }
}

fn encoded(message: HidbMessage) -> BytesMut {
    let mut wire = BytesMut::new();
    let request = 1;
    protocol::encode(&Frame { request, message }, &mut wire).expect("within a frame");
    wire
}

/// Messages that take as much more room here than on the wire as can be.
#[test]
fn small_things_in_great_number_stay_within_the_bound() {
    let pairs = |count| vec![(String::new(), String::new()); count];
    let login = |count| {
        encoded(HidbMessage::Login(Login {
            settings: pairs(count),
            ..Login::default()
        }))
    };
    let welcome = |count| {
        encoded(HidbMessage::Welcome(Welcome {
            parameters: pairs(count),
            ..Welcome::default()
        }))
    };
    for count in [1, 1000, 10_000, 21_845, 21_846, 32_000] {
        assert_eq!(decode_cheaply(&login(count), FRAME_MAX), 1);
        assert_eq!(decode_cheaply(&welcome(count), FRAME_MAX), 1);
    }
    // Longer than a login may be, even where other messages may.
    for wire in [login(32_767), welcome(1_000_000)] {
        assert_eq!(decode_cheaply(&wire, FRAME_MAX), 0);
        // With its number in two bytes.
        let mut longer = header(wire.len() - 12 + 1);
        longer.put_slice(&[wire[12] | 0x80, 0]);
        longer.put_slice(&wire[13..]);
        assert_eq!(decode_cheaply(&longer, FRAME_MAX), 0);
    }
    for count in [1, 1000, 262_144, 262_145, 1_000_000] {
        let invalidated = Invalidated {
            position: 0,
            slots: vec![0; count],
        };
        let wire = encoded(HidbMessage::Invalidated(invalidated));
        assert_eq!(decode_cheaply(&wire, FRAME_MAX), 1);
    }
}

#[test]
fn a_query_is_read_where_it_lies() {
    let query = Query {
        text: "x".repeat(1 << 20),
        ..Query::default()
    };
    let wire = encoded(HidbMessage::Query(query));
    let cost = measure(|| {
        let (_, payload, _) = protocol::peek(&wire, FRAME_MAX)
            .expect("short")
            .expect("whole");
        let query = QueryRef::decode(payload)
            .expect("well formed")
            .expect("a query");
        assert_eq!(query.text.len(), 1 << 20);
    });
    assert_eq!(cost.count_total, 0);
}

#[test]
fn answers_and_errors_take_memory_for_what_is_there_only() {
    let mut many = BytesMut::new();
    message::put_row_description(&mut many, &["a"; 10_000]);
    message::put_data_row(&mut many, (0..60_000).map(|_| None));
    message::put_command_complete(&mut many, "SELECT 1");
    let mut hostile = vec![many.freeze()];
    hostile.extend(inputs("hidb_answers").into_iter().map(Bytes::from));
    for run in hostile {
        let cost = measure(|| {
            if let Ok(reply) = Reply::new(run.clone(), Facts::default()) {
                let _ = reply.columns();
                reply.rows().for_each(|row| drop(row.values()));
            }
        });
        let most = 16 * run.len() as u64 + 1024;
        assert!(
            cost.bytes_max <= most,
            "{} for {}",
            cost.bytes_max,
            run.len()
        );
    }
    for body in [&b"M\0"[..], b"MM\0", b"Ca\xff\0"] {
        let body = Bytes::from(body.repeat(100_000));
        let cost = measure(|| drop(ErrorFields::parse(body.clone())));
        assert!(cost.bytes_max <= 16 << 10, "{}", cost.bytes_max);
    }
}

/// Adds what fuzzing began with to the corpus: see `fuzz/README.md`.
#[test]
#[ignore = "writes files"]
fn write_seeds() {
    for target in [
        "hidb_answers",
        "hidb_frames",
        "postgres_messages",
        "scram_server",
    ] {
        std::fs::create_dir_all(folder(target)).expect("made");
        for (number, seed) in seeds::of(target).into_iter().enumerate() {
            std::fs::write(folder(target).join(format!("seed-{number}")), seed).expect("written");
        }
    }
}
