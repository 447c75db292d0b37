#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keyward::fuzzing::plain_answer(data));
