//! What fuzzing begins with: valid messages, and some that are wrong in a way of their own.

use bytes::{BufMut as _, Bytes, BytesMut};
use heliosdb_network::postgres::message::{self, Named, Report};
use heliosdb_network::protocol::{
    self, Answer, AnswerSource, CacheUse, Facts, Frame, Hello, HidbMessage, Invalidated, Login,
    Near, Query, Welcome,
};
use heliosdb_network::server::error_body;

use super::targets::PENCIL;

pub(crate) fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "hidb_answers" => answers(),
        "hidb_frames" => frames(),
        "postgres_messages" => messages(),
        "scram_server" => logins(),
        _ => panic!("{target} is no target"),
    }
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn facts() -> Facts {
    Facts {
        source: AnswerSource::Hit,
        age_ms: 300,
        status: b'I',
        position: 5,
        near: Some(Near {
            as_of: 4,
            slots: vec![1, 300, u32::MAX],
        }),
    }
}

fn every_message() -> Vec<HidbMessage> {
    let bytes = Bytes::from_static;
    vec![
        HidbMessage::Ping,
        HidbMessage::Pong,
        HidbMessage::Goodbye("the server is shutting down".to_owned()),
        HidbMessage::Login(login()),
        HidbMessage::Sasl(bytes(b"r=ab,s=c2FsdA==,i=4096")),
        HidbMessage::Welcome(Welcome {
            parameters: vec![pair("server_version", "18.0"), pair("TimeZone", "UTC")],
            open_max: 1024,
            frame_max: 16 << 20,
            instance: u64::MAX,
        }),
        HidbMessage::Query(Query::default()),
        HidbMessage::Query(query()),
        HidbMessage::Part(bytes(b"D\0\0\0\x0b\0\x01\0\0\0\x01x")),
        HidbMessage::Answer(Answer {
            run: bytes(b"C\0\0\0\x0dSELECT 0\0"),
            facts: facts(),
        }),
        HidbMessage::Answer(Answer {
            run: Bytes::new(),
            facts: Facts::default(),
        }),
        HidbMessage::Failed(error_body("ERROR", "42P01", "no such table")),
        HidbMessage::Cancel,
        HidbMessage::CloseSession(300),
        HidbMessage::Subscribe,
        HidbMessage::Subscribed(u64::MAX),
        HidbMessage::Invalidated(Invalidated {
            position: 9,
            slots: vec![0, 1, 70_000],
        }),
    ]
}

fn login() -> Login {
    Login {
        user: "app".to_owned(),
        database: "shop".to_owned(),
        settings: vec![pair("application_name", "x"), pair("", "")],
        scram: Bytes::from_static(b"n,,n=,r=abc"),
    }
}

fn query() -> Query {
    Query {
        session: 7,
        cache: CacheUse::Only,
        max_age_ms: Some(1000),
        near: true,
        text: "select $1 -- \u{e9}".to_owned(),
        types: Bytes::from_static(b"\0\x01\0\0\0\x17"),
        bind: Bytes::from_static(b"\0\0\0\x01\0\0\0\x017\0\0"),
    }
}

fn frame(request: u64, message: HidbMessage) -> BytesMut {
    let mut wire = BytesMut::new();
    protocol::encode(&Frame { request, message }, &mut wire).expect("short");
    wire
}

fn payload(payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("short");
    [&len.to_le_bytes()[..], &[0; 8], payload].concat()
}

fn frames() -> Vec<Vec<u8>> {
    let hello = Hello::OURS.encode();
    let received = |piece: u8, parts: &[&[u8]]| [&[piece][..], &hello, &parts.concat()].concat();
    let mut inputs: Vec<_> = every_message()
        .into_iter()
        .map(|message| received(255, &[&frame(1, message)]))
        .collect();
    let whole: Vec<_> = every_message()
        .into_iter()
        .map(|message| frame(2, message))
        .collect();
    inputs.push(received(7, &[&whole.concat()]));
    let log_in = frame(0, HidbMessage::Login(login()));
    let long = |len: u32| [&len.to_le_bytes()[..], &[0; 8]].concat();
    for wire in [
        // Lengths: too long before the login, and behind it, and not there yet.
        [&long(65_537)[..]].concat(),
        [&long(65_536)[..]].concat(),
        [&log_in[..], &long(65_537)].concat(),
        [&log_in[..], &long((16 << 20) + 1)].concat(),
        [&log_in[..], &long(u32::MAX)].concat(),
        log_in[..log_in.len() - 1].to_vec(),
        log_in[..11].to_vec(),
        // Nothing, unknown numbers, a number in more bytes than it needs, and a byte too many.
        payload(&[]),
        payload(&[15]),
        payload(&[0x7f]),
        payload(&[0x86, 0, 0, 0, 0, 0, 0, 0, 0]),
        payload(&[0xff; 12]),
        payload(&[0, 0]),
        // Of a query: an unknown use, an option and a truth that are none, text that is none, a number in too many bytes.
        payload(&[6, 0, 3, 0, 0, 0, 0, 0]),
        payload(&[6, 0, 0, 2, 0, 0, 0, 0]),
        payload(&[6, 0, 0, 0, 2, 0, 0, 0]),
        payload(&[6, 0, 0, 0, 0, 1, 0xff, 0, 0]),
        payload(&[6, 0x80, 0x80, 0x80, 0x80, 0x80, 0, 0, 0, 0, 0, 0, 0]),
        payload(&[6, 0xff, 0xff, 0xff, 0xff, 0x1f, 0, 0, 0, 0, 0, 0]),
        payload(&[6, 0x80, 0, 0, 0, 0, 0, 0, 0]),
        // Lists that hold less than they say, or much of little.
        payload(&[3, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0]),
        payload(&[14, 0, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2]),
        payload(&[&[14, 0, 30][..], &[0; 30]].concat()),
        payload(&[&[3, 0, 0, 9][..], &[0; 19]].concat()),
        payload(&[
            4, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
        ]),
        payload(&[
            4, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02,
        ]),
    ] {
        inputs.push(received(2, &[&wire]));
    }
    inputs.push(b"\0HIDB\x02\x09\x01\0\0\0".to_vec());
    inputs.push(b"\0GET / HTTP/1.1\r\n\r\n".to_vec());
    inputs.push(b"\0HIDB".to_vec());
    inputs
}

fn answers() -> Vec<Vec<u8>> {
    let run = |put: &dyn Fn(&mut BytesMut)| {
        let mut run = BytesMut::new();
        put(&mut run);
        run.to_vec()
    };
    let rows = run(&|out| {
        message::put_row_description(out, &["id", "name"]);
        message::put_data_row(out, [Some(&b"7"[..]), Some(b"Ada")].into_iter());
        message::put_data_row(out, [Some(&b"\xff"[..]), None].into_iter());
        message::put_command_complete(out, "SELECT 2");
    });
    let mut inputs = vec![
        rows[..rows.len() - 1].to_vec(),
        rows[..40].to_vec(),
        run(&|out| message::put_command_complete(out, "CREATE TABLE")),
        run(&|out| {
            out.put_slice(message::NO_DATA);
            message::put_command_complete(out, "INSERT 0 1");
        }),
        run(&|out| message::put_empty_query_response(out)),
        run(&|out| {
            message::put_notice_response(out, &report());
            message::put_command_complete(out, "DO");
        }),
        // Rows without columns, with more values than columns, and before them; columns twice.
        run(&|out| message::put_data_row(out, [Some(&b"1"[..])].into_iter())),
        run(&|out| {
            message::put_data_row(out, [Some(&b"1"[..])].into_iter());
            message::put_row_description(out, &["a"]);
            message::put_data_row(out, [Some(&b"2"[..]), Some(b"3"), None].into_iter());
            message::put_data_row(out, [].into_iter());
        }),
        run(&|out| {
            message::put_row_description(out, &["a", "b"]);
            message::put_row_description(out, &[]);
            message::put_data_row(out, [Some(&b"0.5"[..])].into_iter());
        }),
        // A tag without an end, columns and values that are not all there, lengths that are none.
        b"C\0\0\0\x08DONE".to_vec(),
        b"C\0\0\0\x04".to_vec(),
        b"T\0\0\0\x06\0\x01".to_vec(),
        b"D\0\0\0\x06\xff\xff".to_vec(),
        b"D\0\0\0\x0a\0\x01\xff\xff\xff\xfe".to_vec(),
        b"D\0\0\0\x0a\0\x01\x7f\xff\xff\xff".to_vec(),
        b"D\0\0\0\x03".to_vec(),
        b"D\xff\xff\xff\xff".to_vec(),
        // Errors: fields twice, an SQLSTATE that is none, no end.
        error_body("FATAL", "57P01", "bye").to_vec(),
        b"SERROR\0VERROR\0C42601\0Mone\0Mtwo\0Dwhy\0Hwhat\0Wwhere\0zother\0\0".to_vec(),
        b"Cabc\0M\xff\0\0".to_vec(),
        b"SERROR\0C42".to_vec(),
    ];
    inputs.push(rows);
    inputs
}

fn report() -> Report<'static> {
    Report {
        severity: "NOTICE",
        sqlstate: "00000",
        message: "hello",
        detail: Some("more"),
        hint: Some("none"),
    }
}

type Put = Box<dyn Fn(&mut BytesMut)>;

fn messages() -> Vec<Vec<u8>> {
    let row = || [Some(&b"1"[..]), None].into_iter();
    let put: Vec<Put> = vec![
        Box::new(|out| message::put_parse(out, "s", "SELECT $1", &[23, 0])),
        Box::new(move |out| message::put_bind(out, "p", "s", &[0, 1], row(), &[1])),
        Box::new(|out| message::put_bind(out, "", "", &[], [].into_iter(), &[])),
        Box::new(|out| message::put_describe(out, Named::Portal, "p")),
        Box::new(|out| message::put_close(out, Named::Statement, "s")),
        Box::new(|out| message::put_execute(out, "p", -1)),
        Box::new(message::put_sync),
        Box::new(|out| message::put_query(out, "select 1")),
        Box::new(|out| message::put_row_description(out, &["a", "b"])),
        Box::new(move |out| message::put_data_row(out, row())),
        Box::new(|out| message::put_command_complete(out, "SELECT 1")),
        Box::new(|out| message::put_parameter_status(out, "TimeZone", "UTC")),
        Box::new(|out| message::put_backend_key_data(out, 7, &[9; 32])),
        Box::new(|out| message::put_ready_for_query(out, b'T')),
        Box::new(|out| message::put_error_response(out, &report())),
        Box::new(|out| message::put_negotiate_protocol_version(out, 2, &["_pq_.x".to_owned()])),
        Box::new(|out| message::put_startup(out, [("user", "u"), ("database", "d")])),
        Box::new(|out| message::put_startup(out, [("user", "u"), ("_pq_.x", "1"), ("user", "v")])),
        Box::new(|out| message::put_cancel_request(out, 7, &[1, 2, 3, 4])),
        Box::new(|out| out.put_slice(&[0, 0, 0, 8, 4, 210, 22, 47])),
        Box::new(|out| out.put_slice(&[0, 0, 0, 8, 4, 210, 22, 48])),
        // Protocol 2, a newer one, a list without an end, lengths that are none.
        Box::new(|out| out.put_slice(&[0, 0, 0, 8, 0, 2, 0, 0])),
        Box::new(|out| out.put_slice(b"\0\0\0\x09\0\x03\0\x09\0")),
        Box::new(|out| out.put_slice(b"\0\0\0\x0e\0\x03\0\0user\0u")),
        Box::new(|out| out.put_slice(b"Q\0\0\0\x03")),
        Box::new(|out| out.put_slice(b"Q\0\x01\0\0")),
        Box::new(|out| out.put_slice(b"B\xff\xff\xff\xff")),
        Box::new(|out| out.put_slice(b"B\0\0\0\x10\0\0\0\x02\0\0\0\x01\0\x01\0\0")),
        Box::new(|out| out.put_slice(b"-c a=1 --b-c=d\\ e -cf=g=h")),
        Box::new(|out| out.put_slice(b"--=x")),
    ];
    let alone = |put: &dyn Fn(&mut BytesMut), piece: u8| {
        let mut wire = BytesMut::from(&[piece][..]);
        put(&mut wire);
        wire.to_vec()
    };
    let mut inputs: Vec<_> = put.iter().map(|put| alone(put, 255)).collect();
    inputs.push(alone(
        &|out| put.iter().take(16).for_each(|put| put(out)),
        3,
    ));
    inputs
}

fn logins() -> Vec<Vec<u8>> {
    let first = &b"n,,n=,r=abc"[..];
    let proof = &b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="[..];
    let last = &[b"c=biws,r={r},p=", proof].concat()[..];
    let mut inputs: Vec<Vec<u8>> = [
        [PENCIL.as_bytes(), first, last, b""],
        [b"", first, last, b""],
        [
            PENCIL.as_bytes(),
            b"y,,n=user,r=abc",
            &[b"c=eSws,r={r},p=", proof].concat(),
            b"",
        ],
        [
            b"",
            b"n,,n=,r=abc,x=more",
            &[b"c=biws,r={r},x=more,p=", proof].concat(),
            b"",
        ],
        [b"", b"p=tls-unique,,n=,r=abc", last, b""],
        [b"", b"n,a=other,n=,r=abc", last, b""],
        [b"", b"n,,n=,r=", last, b""],
        [b"", first, b"c=biws,r={r},p=AAAA", b""],
        [b"", first, b"c=biws,r=other,p=", b""],
        [b"", first, b"c=eSws,r={r}", b""],
        [b"", b"n,,n=\xff,r=abc", b"\xff", b""],
        [b"SCRAM-SHA-256$0:$:", first, last, b""],
        [b"SCRAM-SHA-256$4096:c2FsdA==$AAAA:AAAA", first, last, b""],
        [b"md5abc", b"", b"", b""],
        // One bit of the first message, and of the last.
        [b"", b"", b"", b"\x0a\x01"],
        [b"", b"", b"", b"\x01\0\x45\x01"],
        [b"", b"", b"", b"\0\x17\x50\x20"],
    ]
    .iter()
    .map(|parts| parts.join(&0))
    .collect();
    inputs.push(b"n,,n=,r=abc".to_vec());
    inputs
}
