//! The floor: a server that speaks PostgreSQL's protocol and answers every query with the same bytes.
//!
//! It reads, finds the messages' ends, and writes; nothing is parsed further, looked up or counted. What it costs is
//! what the wire, the runtime and the system calls cost on this machine, so no cache behind the same protocol can be
//! much cheaper. Its answers have the size of the real ones: `tests/floor_smoke.rs` compares them with PostgreSQL's.

use std::net::SocketAddr;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Serves until the process is killed.
pub(crate) fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // On a worker, like the connections: the thread that blocks here is none.
        tokio::spawn(async move {
            let listener = TcpListener::bind(listen)
                .await
                .with_context(|| format!("cannot listen on {listen}"))?;
            loop {
                let (stream, _) = listener.accept().await?;
                // A client that breaks the protocol is cut off; there is nobody else to tell.
                tokio::spawn(talk(stream));
            }
        })
        .await?
    })
}

const WORKERS: usize = 2;

async fn talk(mut stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = Vec::with_capacity(8 << 10);
    let mut output = Vec::with_capacity(8 << 10);
    let mut step: fn(&[u8], &mut Vec<u8>) -> anyhow::Result<Progress> = startup;
    loop {
        let progress = step(&input, &mut output)?;
        input.drain(..progress.used);
        if progress.is_due {
            stream.write_all(&output).await?;
            output.clear();
        }
        match progress.next {
            Next::End => return Ok(()),
            Next::Queries => step = queries,
            Next::Same => {}
        }
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
    }
}

/// What was made of some input.
#[derive(Debug, PartialEq, Eq)]
struct Progress {
    /// Bytes that need not be seen again.
    used: usize,
    /// The client waits for what is in the output.
    is_due: bool,
    next: Next,
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    End,
    Queries,
    Same,
}

/// Answers the first message of a connection, which has no type.
fn startup(input: &[u8], output: &mut Vec<u8>) -> anyhow::Result<Progress> {
    let mut progress = Progress {
        used: 0,
        is_due: false,
        next: Next::Same,
    };
    let Some(length) = message_length(input)? else {
        return Ok(progress);
    };
    let Some(code) = input.get(4..8) else {
        bail!("startup message of {length} bytes")
    };
    progress.used = length;
    progress.is_due = true;
    match u32::from_be_bytes([code[0], code[1], code[2], code[3]]) {
        CANCEL_REQUEST => progress.next = Next::End,
        SSL_REQUEST | GSSENC_REQUEST => output.push(b'N'),
        PROTOCOL_3_0 => {
            output.extend_from_slice(GREETING);
            progress.next = Next::Queries;
        }
        other => bail!("unknown protocol {other:#x}"),
    }
    Ok(progress)
}

/// Answers all complete messages. The output is due when a message has come at which PostgreSQL would send its own.
fn queries(input: &[u8], output: &mut Vec<u8>) -> anyhow::Result<Progress> {
    let mut progress = Progress {
        used: 0,
        is_due: false,
        next: Next::Same,
    };
    while let [kind, rest @ ..] = &input[progress.used..] {
        let Some(length) = message_length(rest)? else {
            break;
        };
        let parts: &[&[u8]] = match kind {
            b'B' => &[BIND_COMPLETE],
            b'C' => &[CLOSE_COMPLETE],
            b'D' if rest.get(4) == Some(&b'S') => &[PARAMETER_DESCRIPTION, ROW_DESCRIPTION],
            b'D' => &[ROW_DESCRIPTION],
            b'E' => &[DATA_ROW, COMMAND_COMPLETE],
            b'H' => &[],
            b'P' => &[PARSE_COMPLETE],
            b'Q' => &[ROW_DESCRIPTION, DATA_ROW, COMMAND_COMPLETE, READY_FOR_QUERY],
            b'S' => &[READY_FOR_QUERY],
            b'X' => {
                return Ok(Progress {
                    next: Next::End,
                    ..progress
                });
            }
            other => bail!("unknown message {:?}", char::from(*other)),
        };
        for part in parts {
            output.extend_from_slice(part);
        }
        progress.is_due |= matches!(kind, b'H' | b'Q' | b'S');
        progress.used += 1 + length;
    }
    Ok(progress)
}

/// The length of the message whose length field `bytes` begins with, if all of it is there.
fn message_length(bytes: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(field) = bytes.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*field) as usize;
    ensure!(
        (4..=LENGTH_MAX).contains(&length),
        "message of {length} bytes"
    );
    Ok((bytes.len() >= length).then_some(length))
}

const LENGTH_MAX: usize = 1 << 20;

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const PROTOCOL_3_0: u32 = 196_608;

/// AuthenticationOk, the parameters that libpq looks at, a key that cancels nothing, ReadyForQuery.
const GREETING: &[u8] = b"R\0\0\0\x08\0\0\0\0\
    S\0\0\0\x18server_version\x0015.0\0\
    S\0\0\0\x19client_encoding\0UTF8\0\
    S\0\0\0\x23standard_conforming_strings\0on\0\
    K\0\0\0\x0c\0\0\0\0\0\0\0\0\
    Z\0\0\0\x05I";
const BIND_COMPLETE: &[u8] = b"2\0\0\0\x04";
const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";
const COMMAND_COMPLETE: &[u8] = b"C\0\0\0\x0dSELECT 1\0";
/// One column, `0`.
const DATA_ROW: &[u8] = b"D\0\0\0\x0b\0\x01\0\0\0\x010";
/// One parameter of type integer.
const PARAMETER_DESCRIPTION: &[u8] = b"t\0\0\0\x0a\0\x01\0\0\0\x17";
const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
const READY_FOR_QUERY: &[u8] = b"Z\0\0\0\x05I";
/// One column `abalance` of type integer, of the third column of a table.
const ROW_DESCRIPTION: &[u8] =
    b"T\0\0\0\x21\0\x01abalance\0\0\0\x40\0\0\x03\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0";

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("short");
        [&[kind][..], &length.to_be_bytes(), body].concat()
    }

    /// The types of the messages in some bytes, whose lengths must add up.
    fn kinds(mut bytes: &[u8]) -> String {
        let mut kinds = String::new();
        while let [kind, rest @ ..] = bytes {
            kinds.push(char::from(*kind));
            let length = message_length(rest).expect("valid").expect("complete");
            bytes = &rest[length..];
        }
        kinds
    }

    #[test]
    fn each_part_of_a_statement_has_its_answer() {
        type Case<'a> = (&'a [(u8, &'a [u8])], &'a str, bool);
        let cases: &[Case<'_>] = &[
            (&[(b'Q', b"SELECT 1\0")], "TDCZ", true),
            (&[(b'P', b"\0SELECT 1\0\0\0"), (b'S', b"")], "1Z", true),
            (
                &[(b'B', b"\0\0"), (b'D', b"P\0"), (b'E', b"\0"), (b'S', b"")],
                "2TDCZ",
                true,
            ),
            (&[(b'D', b"S\0"), (b'H', b"")], "tT", true),
            (&[(b'C', b"Sx\0"), (b'E', b"\0")], "3DC", false),
        ];
        for (messages, answer, is_due) in cases {
            let input: Vec<u8> = messages
                .iter()
                .flat_map(|(kind, body)| message(*kind, body))
                .collect();
            let mut output = Vec::new();
            let progress = queries(&input, &mut output).expect("valid");
            assert_eq!(
                (kinds(&output).as_str(), progress.is_due),
                (*answer, *is_due)
            );
            assert_eq!(progress.used, input.len());
        }
    }

    #[test]
    fn the_greeting_is_whole_messages() {
        assert_eq!(kinds(GREETING), "RSSSKZ");
    }

    #[test]
    fn encryption_is_declined_and_the_startup_still_to_come() {
        let start = |code: u32| {
            let mut output = Vec::new();
            let input = [&8_u32.to_be_bytes()[..], &code.to_be_bytes()].concat();
            let progress = startup(&input, &mut output).expect("valid");
            assert!(progress.is_due && progress.used == 8);
            (progress.next, output)
        };
        assert_eq!(start(SSL_REQUEST), (Next::Same, b"N".to_vec()));
        assert_eq!(start(GSSENC_REQUEST), (Next::Same, b"N".to_vec()));
        assert_eq!(start(PROTOCOL_3_0), (Next::Queries, GREETING.to_vec()));
        assert_eq!(start(CANCEL_REQUEST), (Next::End, Vec::new()));
    }

    #[test]
    fn where_the_input_is_cut_makes_no_difference() {
        let input = [
            message(b'P', b"\0SELECT 1\0\0\0"),
            message(b'D', b"S\0"),
            message(b'S', b""),
            message(b'Q', b"SELECT 1\0"),
        ]
        .concat();
        let mut whole = Vec::new();
        queries(&input, &mut whole).expect("valid");
        for cut in 0..=input.len() {
            let mut output = Vec::new();
            let first = queries(&input[..cut], &mut output).expect("valid");
            let second = queries(&input[first.used..], &mut output).expect("valid");
            assert_eq!(first.used + second.used, input.len(), "cut at {cut}");
            assert_eq!(output, whole, "cut at {cut}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |input: &[u8]| queries(input, &mut Vec::new()).is_err();
        assert!(refused(b"Q\0\0\0\x03"), "a length that leaves out itself");
        assert!(refused(b"Q\xff\xff\xff\xff"), "a length beyond all bounds");
        assert!(refused(&message(b'?', b"")), "a type that there is not");
        assert!(
            startup(b"\0\0\0\x04", &mut Vec::new()).is_err(),
            "a startup without a version"
        );
    }
}
