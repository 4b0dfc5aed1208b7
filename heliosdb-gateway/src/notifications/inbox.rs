//! What a client has not been told yet, bounded by bytes.
//!
//! PostgreSQL would rather let its own queue grow, to eight gigabytes, and then refuse to commit a NOTIFY. Here one
//! connection listens for many: while it waited for one of them to read, all the others would hear nothing, and the server's
//! queue would grow for everybody. So it never waits, and who falls too far behind is disconnected.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::Mutex;

use crate::clients::ClientInfo;
use crate::error::{ClientError, ErrorKind};

/// A NotificationResponse, as the server sent it.
#[derive(Debug)]
pub(crate) struct Notification {
    /// Tag, length, process, channel and payload.
    frame: Bytes,
    channel_len: usize,
}

/// The notifications for one client.
#[derive(Debug)]
pub(crate) struct Inbox {
    client: Arc<ClientInfo>,
    bytes_max: usize,
    /// Why a lock: the listener's task puts in what the session's takes out. Under it values are moved, and nothing else.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Heard>,
    bytes: usize,
    /// How many have come.
    count: u64,
    ending: Option<Ending>,
}

#[derive(Debug)]
struct Heard {
    notification: Arc<Notification>,
    place: u64,
    /// It was sent by the client itself.
    is_own: bool,
}

/// Why a client can't be told everything.
#[derive(Debug, Clone)]
enum Ending {
    Lost(Arc<str>),
    Overflow,
    /// To its encoding.
    Untranslatable,
}

/// What one costs besides its bytes.
const OVERHEAD: usize = 64;
/// A larger queue is given back once it is empty.
const QUEUE_KEPT_MAX: usize = 16;
const HEAD: usize = 9;

impl Notification {
    /// Reads the body of a NotificationResponse. `None` if it is none.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let (_, texts) = body.split_first_chunk::<4>()?;
        let channel_len = memchr::memchr(0, texts)?;
        let payload = texts.get(channel_len + 1..)?.strip_suffix(b"\0")?;
        if memchr::memchr(0, payload).is_some() {
            return None;
        }
        let mut frame = BytesMut::with_capacity(5 + body.len());
        frame.put_u8(b'A');
        frame.put_u32(u32::try_from(body.len() + 4).ok()?);
        frame.put_slice(body);
        Some(Self {
            frame: frame.freeze(),
            channel_len,
        })
    }

    /// The name of its channel.
    pub(crate) fn channel(&self) -> &[u8] {
        &self.frame[HEAD..HEAD + self.channel_len]
    }

    /// Means the same in every encoding.
    fn is_ascii(&self) -> bool {
        self.frame[HEAD..].is_ascii()
    }

    /// The server's process that sent it.
    fn pid(&self) -> i32 {
        self.frame[5..]
            .first_chunk()
            .map_or(0, |pid| i32::from_be_bytes(*pid))
    }
}

impl Inbox {
    /// `bytes_max` is how much may wait for the client.
    pub(crate) fn new(client: Arc<ClientInfo>, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            client,
            bytes_max,
            state: Mutex::default(),
        })
    }

    pub(crate) fn id(&self) -> u64 {
        self.client.id
    }

    /// One more for the client.
    pub(super) fn push(&self, notification: &Arc<Notification>) {
        let dropped = {
            let mut state = self.state.lock();
            if state.ending.is_some() {
                return;
            }
            state.bytes += notification.frame.len() + OVERHEAD;
            let place = state.count;
            state.count += 1;
            if state.bytes > self.bytes_max {
                state.ending = Some(Ending::Overflow);
                state.bytes = 0;
                std::mem::take(&mut state.waiting)
            } else {
                state.waiting.push_back(Heard {
                    notification: Arc::clone(notification),
                    place,
                    is_own: false,
                });
                VecDeque::new()
            }
        };
        drop(dropped);
        self.client.wake();
    }

    /// What comes from now on can't be told.
    pub(super) fn lose(&self, cause: &Arc<str>) {
        self.state
            .lock()
            .ending
            .get_or_insert_with(|| Ending::Lost(Arc::clone(cause)));
        self.client.wake();
    }

    /// True where the client misses what comes from now on.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.lock().ending.is_some()
    }

    /// The place of the next one.
    pub(crate) fn next_place(&self) -> u64 {
        self.state.lock().count
    }

    /// Those that a process of the server sent and that came at this place or behind are the client's own.
    pub(crate) fn claim(&self, pid: i32, since: u64) {
        let mut state = self.state.lock();
        for heard in &mut state.waiting {
            heard.is_own |= heard.place >= since && heard.notification.pid() == pid;
        }
    }

    /// Drops those of other channels.
    pub(crate) fn retain(&self, hears: impl Fn(&[u8]) -> bool) {
        let mut state = self.state.lock();
        let State { waiting, bytes, .. } = &mut *state;
        waiting.retain(|heard| {
            let stays = hears(heard.notification.channel());
            if !stays {
                *bytes -= heard.notification.frame.len() + OVERHEAD;
            }
            stays
        });
    }

    /// Moves what waits to the client's buffer, as long as that is shorter than `out_max`; what the client does not listen
    /// to any more is dropped. True if there was something to tell.
    ///
    /// # Errors
    /// Why the session has to end, once what can be told was told: the client may have missed something, or can't be told
    /// in its encoding.
    pub(crate) fn deliver(
        &self,
        out: &mut BytesMut,
        out_max: usize,
        is_utf8: bool,
        hears: impl Fn(&[u8]) -> bool,
    ) -> Result<bool, ClientError> {
        let mut state = self.state.lock();
        let before = out.len();
        while out.len() < out_max
            && let Some(heard) = state.waiting.pop_front()
        {
            let frame = &heard.notification.frame;
            state.bytes -= frame.len() + OVERHEAD;
            if !hears(heard.notification.channel()) {
                continue;
            }
            if !is_utf8 && !heard.notification.is_ascii() {
                state.ending = Some(Ending::Untranslatable);
                state.waiting.clear();
                state.bytes = 0;
                break;
            }
            let at = out.len();
            out.extend_from_slice(frame);
            if heard.is_own {
                // By the number that the client knows itself by.
                out[at + 5..at + HEAD].copy_from_slice(&self.client.pid.to_be_bytes());
            }
        }
        if state.waiting.is_empty() {
            if state.waiting.capacity() > QUEUE_KEPT_MAX {
                state.waiting = VecDeque::new();
            }
            if out.len() == before
                && let Some(ending) = &state.ending
            {
                return Err(self.error(ending));
            }
        }
        Ok(out.len() > before)
    }

    fn error(&self, ending: &Ending) -> ClientError {
        match ending {
            Ending::Lost(cause) => ClientError::new(
                ErrorKind::Backend,
                "57P01",
                format!("the connection by which this session listens was lost: {cause}"),
            )
            .hint("Notifications may have been missed. Reconnect, LISTEN again, and look at what they told of.")
            .fatal(),
            Ending::Overflow => ClientError::new(
                ErrorKind::Client,
                "53400",
                format!(
                    "the client is too slow: more than {} bytes of notifications waited for it",
                    self.bytes_max
                ),
            )
            .hint("Read notifications sooner, stay in transactions for less long, or raise `clients.notification_queue`.")
            .fatal(),
            Ending::Untranslatable => ClientError::new(
                ErrorKind::Client,
                "22P05",
                "a notification can't be told in this session's client_encoding",
            )
            .hint("Set client_encoding to UTF8 in sessions that listen.")
            .fatal(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::tests::client;

    fn notification(pid: i32, channel: &str, payload: &str) -> Arc<Notification> {
        let body = [
            &pid.to_be_bytes()[..],
            channel.as_bytes(),
            b"\0",
            payload.as_bytes(),
            b"\0",
        ]
        .concat();
        Arc::new(Notification::parse(&body).expect("well-formed"))
    }

    #[test]
    fn what_is_no_notification_is_not_read_as_one() {
        for body in [
            &b""[..],
            b"\0\0\0",
            b"\0\0\0\x01",
            b"\0\0\0\x01c",
            b"\0\0\0\x01c\0",
            b"\0\0\0\x01c\0p",
            b"\0\0\0\x01c\0p\0q\0",
        ] {
            assert!(Notification::parse(body).is_none(), "{body:?}");
        }
        let parsed = notification(7, "c", "");
        assert_eq!((parsed.pid(), parsed.channel()), (7, &b"c"[..]));
    }

    #[test]
    fn own_ones_bear_the_number_that_the_client_knows() {
        let admitted = client();
        let inbox = Inbox::new(Arc::clone(&admitted.info), 1 << 20);
        inbox.push(&notification(
            7,
            "c",
            "of another, over the same connection",
        ));
        let since = inbox.next_place();
        inbox.push(&notification(7, "c", "own"));
        inbox.push(&notification(8, "c", "of another"));
        inbox.claim(7, since);
        let mut out = BytesMut::new();
        assert!(
            inbox
                .deliver(&mut out, 1 << 20, true, |_| true)
                .expect("nothing lost")
        );
        let mut pids = Vec::new();
        let mut rest = &out[..];
        while let Some((head, _)) = rest.split_first_chunk::<9>() {
            pids.push(i32::from_be_bytes([head[5], head[6], head[7], head[8]]));
            let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            rest = &rest[len as usize + 1..];
        }
        assert_eq!(pids, [7, admitted.info.pid, 8]);
    }

    #[test]
    fn too_much_ends_it_and_is_not_kept() {
        let admitted = client();
        let inbox = Inbox::new(Arc::clone(&admitted.info), 1000);
        for _ in 0..100 {
            inbox.push(&notification(1, "c", &"x".repeat(100)));
        }
        assert!(inbox.state.lock().waiting.is_empty());
        let error = inbox
            .deliver(&mut BytesMut::new(), 1 << 20, true, |_| true)
            .expect_err("too much");
        assert_eq!(error.sqlstate, "53400");
    }

    #[test]
    fn what_came_before_the_loss_is_told() {
        let admitted = client();
        let inbox = Inbox::new(Arc::clone(&admitted.info), 1 << 20);
        inbox.push(&notification(1, "c", "in time"));
        inbox.lose(&"gone".into());
        inbox.push(&notification(1, "c", "after a gap"));
        let mut out = BytesMut::new();
        assert!(
            inbox
                .deliver(&mut out, 1 << 20, true, |_| true)
                .expect("first this")
        );
        assert!(out.ends_with(b"in time\0"));
        assert!(inbox.deliver(&mut out, 1 << 20, true, |_| true).is_err());
    }
}
