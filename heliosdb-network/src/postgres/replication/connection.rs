//! A connection to a walsender.

use bytes::{Buf as _, Bytes, BytesMut};

use crate::error::{HeliosError, Result};

use super::super::frame::Reader;
use super::super::message;
use super::super::{PgConnection, PgTarget};
use super::Lsn;

/// A connection over which a database's changes can be followed. The role needs the attribute REPLICATION.
#[derive(Debug)]
pub struct ReplicationConnection {
    pg: PgConnection,
}

/// Whose log it is, and where it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SystemId {
    /// The cluster's identifier, the same on its replicas.
    pub system_id: u64,
    /// Goes up with each promotion.
    pub timeline: u32,
    /// Up to where the log is on disk.
    pub flushed: Lsn,
}

/// The changes of a database, from the slot's beginning on.
#[derive(Debug)]
pub struct ReplicationStream {
    pg: PgConnection,
}

/// What comes over a [`ReplicationStream`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamMessage {
    /// A message of the output plugin.
    Data(Bytes),
    /// All transactions whose commit lies before `decoded` have been sent.
    ///
    /// The server says so when it was asked to ([`ReplicationStream::report`]), and of its own accord from time to
    /// time. It says how far *it* has decoded, which may be behind the end of the log: an answer alone does not prove
    /// that what was committed before the question has been sent.
    Keepalive {
        /// Up to where the log has been decoded.
        decoded: Lsn,
        /// True if the server wants to be told how far we are, or it closes the connection soon.
        reply_requested: bool,
    },
}

/// No message is honestly longer: a row's columns have at most 1 GiB each, and nobody here reads rows like that.
const MESSAGE_MAX: usize = 1 << 30;

impl ReplicationConnection {
    /// Connects to the target's database and logs in, within the target's timeout.
    ///
    /// # Errors
    /// As [`PgConnection::connect`]; [`HeliosError::Server`] too where the role may not replicate, or there are as many
    /// walsenders as `max_wal_senders` allows.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket.
    pub async fn connect(target: &PgTarget) -> Result<Self> {
        let mut target = target.clone();
        // Whatever the role's own default is: values are compared with others by their bytes.
        let ours = [("replication", "database"), ("client_encoding", "UTF8")];
        let is_ours = |name: &str| ours.iter().any(|(own, _)| name.eq_ignore_ascii_case(own));
        target.params.retain(|(name, _)| !is_ours(name));
        let ours = ours.map(|(name, value)| (name.to_owned(), value.to_owned()));
        target.params.extend(ours);
        let pg = PgConnection::connect(&target).await?;
        Ok(Self { pg })
    }

    /// The server's process, to be found in `pg_stat_replication`.
    #[must_use]
    pub fn backend_pid(&self) -> i32 {
        self.pg.backend_pid()
    }

    /// Asks whose log it is.
    ///
    /// # Errors
    /// As [`PgConnection::simple_query`].
    ///
    /// # Cancel safety
    /// Not cancel-safe: an answer half read makes the connection unusable.
    pub async fn identify_system(&mut self) -> Result<SystemId> {
        let row = self.row("IDENTIFY_SYSTEM").await?;
        let field = |at: usize| row.get(at).and_then(Option::as_deref);
        let read = || {
            Some(SystemId {
                system_id: field(0)?.parse().ok()?,
                timeline: field(1)?.parse().ok()?,
                flushed: field(2)?.parse().ok()?,
            })
        };
        read().ok_or_else(|| HeliosError::Protocol("the server did not identify itself".to_owned()))
    }

    /// Makes a slot that goes with this connection, for the plugin `pgoutput`. Every transaction that is committed
    /// after the returned place will be sent.
    ///
    /// The server waits until all transactions that are writing now have ended: it takes as long as they do.
    ///
    /// # Errors
    /// As [`PgConnection::simple_query`].
    ///
    /// # Cancel safety
    /// Not cancel-safe: drop the connection.
    pub async fn create_temporary_slot(&mut self, name: &str) -> Result<Lsn> {
        // Nobody is to take over the slot's snapshot, which would keep the server from vacuuming.
        let options = if self.server_major() >= 15 {
            "(SNAPSHOT 'nothing')"
        } else {
            "NOEXPORT_SNAPSHOT"
        };
        let command = format!(
            "CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput {options}",
            quoted(name)
        );
        let row = self.row(&command).await?;
        row.get(1)
            .and_then(Option::as_deref)
            .ok_or_else(|| HeliosError::Protocol("a slot without a place".to_owned()))?
            .parse()
    }

    /// Starts sending what the slot has, decoded by `pgoutput` in protocol 1, for tables that one of the publications
    /// names, and logical messages. Needs PostgreSQL 14.
    ///
    /// # Errors
    /// As [`PgConnection::simple_query`]. A publication that does not exist is an error of the stream, not of its
    /// start.
    ///
    /// # Cancel safety
    /// Not cancel-safe: the connection is consumed.
    pub async fn start(mut self, slot: &str, publications: &[&str]) -> Result<ReplicationStream> {
        let names: Vec<String> = publications.iter().map(|name| quoted(name)).collect();
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names '{}', messages 'true')",
            quoted(slot),
            names.join(",").replace('\'', "''")
        );
        self.pg.start_copy_both(&command).await?;
        Ok(ReplicationStream { pg: self.pg })
    }

    fn server_major(&self) -> u32 {
        let version = self.pg.parameter("server_version").unwrap_or_default();
        let digits = version.split(|c: char| !c.is_ascii_digit()).next();
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }

    async fn row(&mut self, command: &str) -> Result<Vec<Option<String>>> {
        let results = self.pg.simple_query(command).await?;
        results
            .into_iter()
            .flat_map(|result| result.rows)
            .next()
            .ok_or_else(|| HeliosError::Protocol(format!("no answer to {command:?}")))
    }
}

impl ReplicationStream {
    /// The next message.
    ///
    /// # Errors
    /// [`HeliosError::Server`] with the reason if the server ended the stream, [`HeliosError::Network`],
    /// [`HeliosError::Io`] or [`HeliosError::Protocol`] if the connection failed. It is of no more use then.
    ///
    /// # Cancel safety
    /// Cancel-safe: nothing that was read is lost.
    pub async fn receive(&mut self) -> Result<StreamMessage> {
        decode(self.pg.receive_copy_data(MESSAGE_MAX).await?)
    }

    /// The next message if it has been read already.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn buffered(&mut self) -> Result<Option<StreamMessage>> {
        self.pg
            .buffered_copy_data(MESSAGE_MAX)?
            .map(decode)
            .transpose()
    }

    /// Tells the server that everything before `applied` is dealt with, so that it need not keep its log. With
    /// `request_reply` it answers with a [`StreamMessage::Keepalive`] at once.
    ///
    /// # Errors
    /// [`HeliosError::Io`] if the connection failed.
    ///
    /// # Cancel safety
    /// Not cancel-safe: a report half written makes the connection unusable.
    pub async fn report(&mut self, applied: Lsn, request_reply: bool) -> Result<()> {
        let mut out = BytesMut::new();
        message::put_standby_status(&mut out, applied.0, request_reply);
        self.pg.send(&out).await
    }

    /// Ends the connection, and the slot with it, and waits until the server has closed.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket. There is no other bound on the wait.
    pub async fn terminate(self) {
        self.pg.terminate().await;
    }
}

fn decode(mut data: Bytes) -> Result<StreamMessage> {
    /// Where in the log, where it ends, and when it was sent.
    const DATA_HEAD: usize = 1 + 3 * 8;
    match data.first() {
        Some(b'w') if data.len() >= DATA_HEAD => {
            data.advance(DATA_HEAD);
            Ok(StreamMessage::Data(data))
        }
        Some(b'k') => keepalive(&data).ok_or_else(|| malformed("keepalive")),
        Some(b'w') => Err(malformed("XLogData")),
        Some(tag) => Err(HeliosError::Protocol(format!(
            "a replication message of unknown type {:?}",
            char::from(*tag)
        ))),
        None => Err(malformed("replication")),
    }
}

fn keepalive(data: &[u8]) -> Option<StreamMessage> {
    let mut reader = Reader::new(data);
    reader.u8()?;
    let decoded = Lsn(reader.u64()?);
    // By the server's clock.
    reader.i64()?;
    let reply_requested = reader.u8()? != 0;
    reader.end()?;
    Some(StreamMessage::Keepalive {
        decoded,
        reply_requested,
    })
}

fn malformed(message: &str) -> HeliosError {
    HeliosError::Protocol(format!("malformed {message} message"))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keepalive_bytes(decoded: u64, reply: u8) -> Vec<u8> {
        let mut bytes = vec![b'k'];
        bytes.extend(decoded.to_be_bytes());
        bytes.extend(7_u64.to_be_bytes());
        bytes.push(reply);
        bytes
    }

    #[test]
    fn keepalives_and_data_are_told_apart() {
        let message = decode(Bytes::from(keepalive_bytes(0x1_0000_0002, 1))).expect("valid");
        let expected = StreamMessage::Keepalive {
            decoded: Lsn(0x1_0000_0002),
            reply_requested: true,
        };
        assert_eq!(message, expected);
        let data = [&[b'w'][..], &[0; 24], b"Bx"].concat();
        let data = decode(Bytes::from(data)).expect("valid");
        assert_eq!(data, StreamMessage::Data(Bytes::from_static(b"Bx")));
    }

    #[test]
    fn what_is_cut_off_or_too_long_is_malformed() {
        let whole = keepalive_bytes(1, 0);
        for end in 0..whole.len() {
            let (cut, _) = whole.split_at(end);
            assert!(decode(Bytes::copy_from_slice(cut)).is_err(), "{end}");
        }
        assert!(decode(Bytes::from([&whole[..], b"x"].concat())).is_err());
        assert!(decode(Bytes::from([&[b'w'][..], &[0; 23]].concat())).is_err());
        assert!(decode(Bytes::from_static(b"q")).is_err());
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }

    proptest! {
        #[test]
        fn garbage_is_malformed_but_never_a_panic(body in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = decode(Bytes::from(body));
        }
    }
}
