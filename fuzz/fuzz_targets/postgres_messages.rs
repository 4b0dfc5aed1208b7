#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| heliosdb_fuzz::postgres_messages(data));
