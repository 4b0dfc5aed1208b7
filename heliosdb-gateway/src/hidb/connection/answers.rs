//! Answers on their way out.

use bytes::{Bytes, BytesMut};
use heliosdb_cache::{Answer, SlotId};
use heliosdb_network::protocol::{self, Facts, Frame, HidbMessage, Near};
use heliosdb_network::server::error_body;

use crate::error::ClientError;

use super::super::lane::TOO_LONG;
use super::Connection;

/// Answers from memory go in pieces of about this much, so that those behind them need not wait for all of a long one.
const PIECE: usize = 256 << 10;

impl Connection {
    /// Writes an answer, a long one in pieces.
    pub(super) fn put_answer(&mut self, request: u64, run: &[u8], facts: &Facts) {
        let mut rest = run;
        while rest.len() > 2 * PIECE {
            let (piece, behind) = rest.split_at(piece_len(rest));
            if behind.is_empty() {
                break;
            }
            let part = HidbMessage::Part(Bytes::copy_from_slice(piece));
            if !self.put_or_fail(request, part) {
                return;
            }
            rest = behind;
        }
        let before = self.out.len();
        if protocol::encode_answer(request, rest, facts, &mut self.out).is_err() {
            self.out.truncate(before);
            self.fail_too_long(request);
        }
    }

    pub(super) fn put_or_fail(&mut self, request: u64, message: HidbMessage) -> bool {
        let is_put = protocol::encode(&Frame { request, message }, &mut self.out).is_ok();
        if !is_put {
            self.fail_too_long(request);
        }
        is_put
    }

    fn fail_too_long(&mut self, request: u64) {
        self.fail(request, "54000", TOO_LONG);
    }

    pub(super) fn fail(&mut self, request: u64, sqlstate: &str, what: &str) {
        let failed = HidbMessage::Failed(error_body("ERROR", sqlstate, what));
        put(&mut self.out, request, failed);
    }
}

pub(super) fn near(answer: &Answer, as_of: u64) -> Near {
    Near {
        as_of,
        slots: answer.slots().map(SlotId::index).collect(),
    }
}

/// Length of the whole messages that make up about [`PIECE`] bytes; all of `run` if there is only one.
fn piece_len(run: &[u8]) -> usize {
    let mut len = 0;
    while len < PIECE {
        let Some(head) = run[len..].first_chunk::<5>() else {
            return run.len();
        };
        len += u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize + 1;
        if len >= run.len() {
            return run.len();
        }
    }
    len
}

pub(super) fn put(out: &mut BytesMut, request: u64, message: HidbMessage) {
    // Nothing that is put here comes near the bound of a frame.
    let put = protocol::encode(&Frame { request, message }, out);
    debug_assert!(put.is_ok(), "{put:?}");
}

/// An error as HIDB carries it.
pub(super) fn body(error: &ClientError) -> Bytes {
    let mut out = BytesMut::new();
    error.put(&mut out);
    out.split_off(5).freeze()
}
