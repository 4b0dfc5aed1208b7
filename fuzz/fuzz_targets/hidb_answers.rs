#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| heliosdb_fuzz::hidb_answers(data));
