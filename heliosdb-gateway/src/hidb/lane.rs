//! A lane: a session that serves the requests of a HIDB connection one after the other, in PostgreSQL's protocol, over a
//! pipe within the process.
//!
//! The session and its client's end are one task, which ends when the connection has no more requests for it, or when the
//! session can't go on.

use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use heliosdb_network::postgres::frame;
use heliosdb_network::protocol::{FRAME_MAX, QueryRef};
use heliosdb_network::server::error_body;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

use crate::clients::{Admitted, ClientInfo, Origin};
use crate::gateway::Gateway;
use crate::session::{ClientStream, Entrance};

/// The connection's end of a lane.
#[derive(Debug)]
pub(super) struct Lane {
    /// The session, for cancel requests.
    pub(super) info: Arc<ClientInfo>,
    /// Cancel requests that are on their way to it.
    pub(super) cancels: usize,
    requests: mpsc::Sender<Request>,
}

/// A request on its way to a session.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: u64,
    /// In PostgreSQL's protocol, up to its Sync.
    pub(super) bytes: BytesMut,
    pub(super) bypasses_cache: bool,
    pub(super) max_age_ms: Option<u32>,
}

/// What a lane has to say.
#[derive(Debug)]
pub(super) enum Event {
    /// A piece of an answer: whole messages.
    Part { request: u64, run: Bytes },
    /// The end of a request.
    Ended {
        request: u64,
        /// Which lane it was.
        lane: LaneId,
        outcome: Outcome,
        /// Where an answer came from.
        origin: Origin,
        /// The transaction status behind it.
        status: u8,
        /// True if the session is as new, and can serve anybody on this connection.
        is_as_new: bool,
    },
    /// A cancel request has arrived, and stops nothing that is asked from now on.
    CancelDelivered { lane: LaneId },
    /// The session ended without a request under way.
    Gone { lane: LaneId },
}

/// Tells a connection's lanes apart.
pub(super) type LaneId = u64;

#[derive(Debug)]
pub(super) enum Outcome {
    /// The rest of the answer.
    Answer(Bytes),
    /// The body of an ErrorResponse. The session can go on unless it `is_final`.
    Failed { body: Bytes, is_final: bool },
}

/// Room in the pipe, each way.
const PIPE: usize = 64 << 10;
/// Why an answer can't be given.
pub(super) const TOO_LONG: &str = "a row is too long for HIDB: use the port for PostgreSQL clients";
/// A piece of an answer is sent on when it has grown to this.
const PART: usize = 64 << 10;

impl Lane {
    pub(super) fn open(
        gateway: &Arc<Gateway>,
        admitted: Admitted,
        entrance: &Entrance,
        id: LaneId,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let (pipe, session_end) = tokio::io::duplex(PIPE);
        let info = Arc::clone(&admitted.info);
        let session = entrance.clone().into_session(
            gateway,
            admitted,
            ClientStream::Pipe(session_end),
            BytesMut::new(),
        );
        let (requests, receiver) = mpsc::channel(1);
        let client = Client {
            lane: id,
            pipe,
            input: BytesMut::new(),
            begun_pins: info.pins(),
            info: Arc::clone(&info),
            events,
        };
        tokio::spawn(async move {
            tokio::join!(Box::new(session).run(), client.run(receiver));
        });
        Self {
            info,
            cancels: 0,
            requests,
        }
    }

    /// Hands a request over, or back if the session has ended.
    pub(super) fn send(&self, request: Request) -> Result<(), Request> {
        self.requests
            .try_send(request)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Closed(request)
                | mpsc::error::TrySendError::Full(request) => request,
            })
    }
}

/// Writes a statement as Parse, Bind, Describe, Execute and Sync.
pub(super) fn put_request(query: &QueryRef<'_>, out: &mut BytesMut) {
    let (types, bind) = arguments(query);
    let mut message = |tag, parts: &[&[u8]]| {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        out.put_u8(tag);
        // A frame is shorter.
        out.put_u32(u32::try_from(len + 4).unwrap_or(u32::MAX));
        parts.iter().for_each(|part| out.put_slice(part));
    };
    message(b'P', &[b"\0", query.text.as_bytes(), b"\0", types]);
    message(b'B', &[b"\0\0", bind]);
    message(b'D', &[b"P\0"]);
    message(b'E', &[b"\0\0\0\0\0"]);
    message(b'S', &[]);
}

/// Types and arguments, with what their absence stands for.
pub(super) fn arguments<'a>(query: &QueryRef<'a>) -> (&'a [u8], &'a [u8]) {
    let or = |given: &'a [u8], default| if given.is_empty() { default } else { given };
    (or(query.types, b"\0\0"), or(query.bind, b"\0\0\0\0\0\0"))
}

/// The client's end of the pipe.
struct Client {
    lane: LaneId,
    pipe: DuplexStream,
    input: BytesMut,
    info: Arc<ClientInfo>,
    /// What the session had at its beginning.
    begun_pins: u32,
    events: mpsc::Sender<Event>,
}

/// The connection went: nobody wants to know.
struct Unheard;

/// What is under way.
struct Collected {
    run: BytesMut,
    error: Option<Bytes>,
    /// A COPY was begun, which has no place here.
    is_copy: bool,
}

impl Client {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        loop {
            let request = tokio::select! {
                request = requests.recv() => request,
                // Nothing is asked: what comes now is the session's end, or a notice.
                read = self.pipe.read_buf(&mut self.input) => match read {
                    Ok(0) | Err(_) => {
                        let gone = Event::Gone { lane: self.lane };
                        requests.close();
                        let _ = self.events.send(gone).await;
                        // What was handed over in between is answered too.
                        while let Some(request) = requests.recv().await {
                            let outcome = lost("the session ended before its statement was run");
                            if self.end(request.id, outcome, b'I', false).await.is_err() {
                                return;
                            }
                        }
                        return;
                    }
                    Ok(_) => {
                        self.skip_messages();
                        continue;
                    }
                },
            };
            let Some(request) = request else { return };
            if self.serve(request).await.is_err() {
                return;
            }
        }
    }

    fn skip_messages(&mut self) {
        while let Ok(Some((header, _))) = frame::peek(&self.input, frame::LEN_MAX) {
            let _ = self.input.split_to(header.len);
        }
    }

    async fn serve(&mut self, request: Request) -> Result<(), Unheard> {
        self.info.set_bypasses_cache(request.bypasses_cache);
        self.info.set_max_age(request.max_age_ms);
        self.info.set_origin(Origin::Server);
        if self.pipe.write_all(&request.bytes).await.is_err() {
            // Its last words are still to be read.
            tracing::debug!("a session ended before its request");
        }
        let id = request.id;
        drop(request);
        let mut collected = Collected {
            run: BytesMut::new(),
            error: None,
            is_copy: false,
        };
        let status = self.read(id, &mut collected).await?;
        let outcome = match (collected.error.take(), status) {
            (Some(body), _) => Outcome::Failed {
                body,
                is_final: status.is_none(),
            },
            (None, Some(_)) => Outcome::Answer(collected.run.split().freeze()),
            (None, None) => {
                lost("the session ended: whether its statement took effect is not known")
            }
        };
        match status {
            Some(status) => {
                let is_as_new = status == b'I' && self.info.is_as_begun(self.begun_pins);
                self.end(id, outcome, status, is_as_new).await
            }
            None => {
                self.end(id, outcome, b'I', false).await?;
                Err(Unheard)
            }
        }
    }

    /// Reads messages up to ReadyForQuery, and returns its status; `None` if the session ends before it.
    async fn read(&mut self, id: u64, collected: &mut Collected) -> Result<Option<u8>, Unheard> {
        loop {
            while let Ok(Some((header, body))) = frame::peek(&self.input, frame::LEN_MAX) {
                match header.tag {
                    b'Z' => {
                        let status = body.first().copied().unwrap_or(b'I');
                        let _ = self.input.split_to(header.len);
                        return Ok(Some(status));
                    }
                    b'E' => {
                        // The first one is the cause.
                        let body = Bytes::copy_from_slice(body);
                        collected.error.get_or_insert(body);
                    }
                    b'G' => {
                        collected.refuse_copy();
                        let fail = b"f\0\0\0\x1dCOPY is not part of HIDB\0S\0\0\0\x04";
                        if self.pipe.write_all(fail).await.is_err() {
                            return Ok(None);
                        }
                    }
                    b'H' | b'W' => collected.refuse_copy(),
                    b'T' | b'D' | b'C' | b'I' | b'n' | b'N' if !collected.is_copy => {
                        collected.run.extend_from_slice(&self.input[..header.len]);
                    }
                    // Of the protocol between here and the session.
                    _ => {}
                }
                let _ = self.input.split_to(header.len);
                if collected.run.len() >= PART {
                    let run = collected.run.split().freeze();
                    self.tell(Event::Part { request: id, run }).await?;
                }
            }
            if announced(&self.input) > FRAME_MAX {
                collected.refuse_long();
                if !self.skip_message().await {
                    return Ok(None);
                }
                continue;
            }
            match self.pipe.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return Ok(None),
                Ok(_) => {}
            }
        }
    }

    /// Reads over the message at the front without keeping it. False if the session ends in it.
    async fn skip_message(&mut self) -> bool {
        let mut rest = announced(&self.input);
        loop {
            let here = rest.min(self.input.len());
            self.input.advance(here);
            rest -= here;
            if rest == 0 {
                return true;
            }
            if !matches!(self.pipe.read_buf(&mut self.input).await, Ok(read) if read > 0) {
                return false;
            }
        }
    }

    async fn end(
        &self,
        request: u64,
        outcome: Outcome,
        status: u8,
        is_as_new: bool,
    ) -> Result<(), Unheard> {
        let ended = Event::Ended {
            request,
            lane: self.lane,
            outcome,
            origin: self.info.origin(),
            status,
            is_as_new,
        };
        self.tell(ended).await
    }

    async fn tell(&self, event: Event) -> Result<(), Unheard> {
        self.events.send(event).await.map_err(|_| Unheard)
    }
}

/// Length of the message at the front as its head tells it; 0 if the head is not there yet.
fn announced(input: &[u8]) -> usize {
    let head = input.first_chunk::<5>();
    head.map_or(0, |[_, len @ ..]| u32::from_be_bytes(*len) as usize + 1)
}

impl Collected {
    /// A message that no frame can hold: nothing of the answer is kept.
    fn refuse_long(&mut self) {
        self.run.clear();
        self.error
            .get_or_insert_with(|| error_body("ERROR", "54000", TOO_LONG));
    }

    fn refuse_copy(&mut self) {
        self.is_copy = true;
        self.run.clear();
        self.error.get_or_insert_with(|| {
            error_body(
                "ERROR",
                "0A000",
                "COPY is not part of HIDB: use the port for PostgreSQL clients",
            )
        });
    }
}

fn lost(what: &str) -> Outcome {
    Outcome::Failed {
        body: error_body("FATAL", "57P01", what),
        is_final: true,
    }
}
