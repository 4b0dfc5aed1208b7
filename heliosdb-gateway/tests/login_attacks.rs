//! What has broken poolers at their door: lengths that lie, endless nonces, errors without a code.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use heliosdb_testkit::PostgresCluster;

use crate::support::Helios;
use crate::visitor::{file, psql, who};

struct Door {
    helios: Helios,
    _cluster: PostgresCluster,
    _folder: tempfile::TempDir,
}

fn door(kind: &str) -> Door {
    let cluster = PostgresCluster::start().expect("PostgreSQL starts");
    cluster.psql("postgres", "CREATE USER app").expect("a user");
    let folder = tempfile::tempdir().expect("a folder");
    let users = file(folder.path(), "users", "\"app\" \"geheim\"\n");
    let config =
        format!("[auth]\ntype = \"{kind}\"\nfile = \"{users}\"\n[clients]\nlogin_timeout = \"5s\"");
    let url = cluster.url("postgres", "postgres");
    let helios = Helios::start(&["--upstream", &url], &config);
    Door {
        helios,
        _cluster: cluster,
        _folder: folder,
    }
}

fn startup() -> Vec<u8> {
    let body = b"\0\x03\0\0user\0app\0database\0postgres\0\0";
    let len = u32::try_from(body.len() + 4).expect("short");
    [&len.to_be_bytes()[..], body].concat()
}

/// Says something behind the startup packet and returns all that it is told.
fn say(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    let patience = Some(Duration::from_secs(60));
    stream.set_read_timeout(patience).expect("set");
    stream.write_all(&startup()).expect("written");
    let mut question = [0; 9];
    stream.read_exact(&mut question).expect("asked");
    assert_eq!(question[0], b'R');
    // It may hang up before it has read everything.
    let _ = stream.write_all(bytes);
    let mut told = Vec::new();
    let _ = stream.read_to_end(&mut told);
    told
}

fn proof(body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).expect("short");
    [&b"p"[..], &len.to_be_bytes(), body].concat()
}

fn is_no_way_in(told: &[u8]) {
    let is_in = told
        .windows(9)
        .any(|window| window == b"R\0\0\0\x08\0\0\0\0");
    assert!(!is_in, "{}", told.escape_ascii());
}

/// CVE-2026-6664: a length that wraps around.
#[test]
fn lengths_that_lie_are_refused_before_anything_is_read_or_kept() {
    for kind in ["plain", "md5", "scram-sha-256"] {
        let door = door(kind);
        for len in [
            0_u32,
            3,
            65_540,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_fffb,
            0xffff_ffff,
        ] {
            let lie = [&b"p"[..], &len.to_be_bytes(), b"geheim\0"].concat();
            let told = say(door.helios.port, &lie);
            is_no_way_in(&told);
            let text = String::from_utf8_lossy(&told).into_owned();
            assert!(text.contains("08P01"), "{kind} {len}: {text}");
        }
        let entered = who(door.helios.port, "app", "geheim", "");
        assert_eq!(entered, Ok("app".to_owned()), "{kind}");
    }
    // Before anybody has said who he is.
    let door = door("scram-sha-256");
    for len in [0_u32, 7, 10_005, 0x7fff_ffff, 0x8000_0008, 0xffff_ffff] {
        let mut stream = TcpStream::connect(("127.0.0.1", door.helios.port)).expect("connected");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("set");
        stream.write_all(&len.to_be_bytes()).expect("written");
        stream.write_all(&[0, 3, 0, 0]).expect("written");
        let mut told = Vec::new();
        let _ = stream.read_to_end(&mut told);
        // As PostgreSQL does: node-postgres says goodbye in place of a login, and takes an answer for an error.
        assert_eq!(told, b"", "{len}");
    }
    assert!(who(door.helios.port, "app", "geheim", "").is_ok());
}

/// CVE-2026-6665: a nonce that is longer than the place for it.
#[test]
fn endless_nonces_and_lengths_inside_of_messages_are_no_way_in() {
    let door = door("scram-sha-256");
    let initial = |len: u32, data: &[u8]| {
        proof(&[&b"SCRAM-SHA-256\0"[..], &len.to_be_bytes(), data].concat())
    };
    let nonce = "x".repeat(65_000);
    let first = format!("n,,n=,r={nonce}");
    let honest_len = u32::try_from(first.len()).expect("short");
    let long = initial(honest_len, first.as_bytes());
    let last = proof(format!("c=biws,r={nonce},p={}", "A".repeat(44)).as_bytes());
    let both = [long, last].concat();
    for bytes in [
        both,
        initial(0x7fff_ffff, b"n,,n=,r=x"),
        initial(0xffff_ffff, b"n,,n=,r=x"),
        initial(0, b""),
        initial(9, b"n,,n=,r=\xff"),
        proof(b"SCRAM-SHA-256-PLUS\0\0\0\0\x09n,,n=,r=x"),
        proof(b""),
        proof(&[b'x'; 60_000]),
        // Something else in the place of a proof.
        b"Q\0\0\0\x0dSELECT 1\0".to_vec(),
    ] {
        is_no_way_in(&say(door.helios.port, &bytes));
    }
    assert!(who(door.helios.port, "app", "geheim", "").is_ok());
}

/// CVE-2026-6666: an error of the server without a code.
#[test]
fn an_error_without_a_code_is_passed_on_as_an_internal_one() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(b"E\0\0\0\x0aMoops\0");
        }
    });
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable");
    let helios = Helios::start(&["--upstream", &url], "upstream.outage_timeout = \"0s\"");
    for _ in 0..3 {
        let refused = psql(helios.port, "postgres", "", "", "SELECT 1").expect_err("no server");
        assert!(refused.contains("oops"), "{refused}");
    }
    assert!(psql(helios.port, "postgres", "", "dbname=helios", "SHOW VERSION").is_ok());
}
