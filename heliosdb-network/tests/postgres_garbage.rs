//! Whatever bytes a client or a server sends, the parsers of PostgreSQL's protocol answer and never panic.

use bytes::{BufMut as _, Bytes, BytesMut};
use heliosdb_network::HeliosError;
use heliosdb_network::postgres::ErrorFields;
use heliosdb_network::postgres::startup::{self, FirstPacket};
use proptest::prelude::*;

/// A first packet whose length and code are right and whose rest is anything.
fn plausible(code: u32, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.put_u32(u32::try_from(8 + body.len()).expect("short"));
    packet.put_u32(code);
    packet.put_slice(body);
    packet
}

fn code() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(3 << 16),
        Just((3 << 16) | 2),
        Just(80_877_102_u32),
        Just(80_877_103_u32),
        Just(80_877_104_u32),
        any::<u32>(),
    ]
}

/// Bytes among which ends of strings are as frequent as in a message.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0), Just(b'C'), b'a'..=b'z', any::<u8>()];
    prop::collection::vec(byte, 0..300)
}

proptest! {
    #[test]
    fn any_first_bytes_are_a_packet_a_beginning_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(Some((_, len))) = startup::parse(&bytes) {
            prop_assert!((8..=bytes.len()).contains(&len));
        }
    }

    #[test]
    fn a_plausible_first_packet_is_never_waited_for_once_it_is_there(code in code(), body in body(), tail in body()) {
        let mut packet = plausible(code, &body);
        let whole = packet.len();
        packet.extend(tail);
        match startup::parse(&packet) {
            Ok(Some((first, len))) => {
                prop_assert_eq!(len, whole);
                if let FirstPacket::Startup(startup) = first {
                    // Nothing is made up: the strings and their ends are the packet's own.
                    let bytes: usize = startup.params.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
                    prop_assert_eq!(bytes + 1, body.len());
                    let _ = startup.negotiation();
                }
            }
            Ok(None) => prop_assert!(false, "it is all there"),
            Err(error) => prop_assert!(matches!(error, HeliosError::Protocol(_) | HeliosError::Unsupported(_))),
        }
    }

    #[test]
    fn a_first_packet_cut_anywhere_is_no_packet(code in code(), body in body(), cut: prop::sample::Index) {
        let packet = plausible(code, &body);
        let cut = cut.index(packet.len());
        prop_assert!(!matches!(startup::parse(&packet[..cut]), Ok(Some(_))));
    }

    #[test]
    fn any_options_are_settings_or_an_error(options in any::<String>()) {
        let _ = startup::parse_options(&options);
    }

    #[test]
    fn settings_come_out_of_options_as_they_went_in(
        settings in prop::collection::vec(("[a-z_.]{1,8}", any::<String>()), 0..4),
    ) {
        let mut options = String::new();
        for (name, value) in &settings {
            options.push_str(" -c ");
            options.push_str(name);
            options.push('=');
            for c in value.chars() {
                options.extend(['\\', c]);
            }
        }
        prop_assert_eq!(startup::parse_options(&options).expect("valid"), settings);
    }

    #[test]
    fn any_bytes_are_an_error_report_that_can_be_passed_on(bytes in body()) {
        let bytes = Bytes::from(bytes);
        let report = ErrorFields::parse(bytes.clone());
        prop_assert_eq!(report.body(), &bytes);
        prop_assert_eq!(report.sqlstate().len(), 5);
        prop_assert!(report.sqlstate().bytes().all(|byte| byte.is_ascii_alphanumeric()));
        prop_assert!(report.to_string().contains(report.sqlstate()));
        let _ = (report.severity(), report.message(), report.detail(), report.hint());
        let _ = HeliosError::Server(Box::new(report)).is_permanent();
    }

    #[test]
    fn fields_of_a_report_come_out_as_they_went_in(
        state in "[0-9A-Z]{5}",
        message in "[^\\x00]{0,40}",
        unknown in prop::option::of("[^\\x00]{0,8}"),
    ) {
        let mut body = BytesMut::new();
        for (code, value) in [(b'z', unknown.as_deref()), (b'C', Some(&*state)), (b'M', Some(&*message))] {
            if let Some(value) = value {
                body.put_u8(code);
                body.put_slice(value.as_bytes());
                body.put_u8(0);
            }
        }
        body.put_u8(0);
        let report = ErrorFields::parse(body.freeze());
        prop_assert_eq!((report.sqlstate(), report.message()), (&*state, &*message));
        prop_assert_eq!(report.field(b'z'), unknown.as_deref());
    }
}
