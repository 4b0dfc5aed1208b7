//! The words that make a date or time literal mean the current moment.
//!
//! `'now'`, `'today'`, `'tomorrow'` and `'yesterday'` are read by the input functions of the date and
//! time types, also inside arrays, ranges and JSON that is taken apart into such types. The server
//! turns a constant like `'today'::date` into a fixed date when it parses the statement, so no check
//! of functions would see that the answer changes with time.

const WORDS: [&str; 4] = ["now", "today", "tomorrow", "yesterday"];

/// Whether `value` contains one of the words that mean the current moment, as part of a longer word
/// too and whatever the case.
///
/// The gateway asks this of every parameter value, in text and in binary format alike (the binary
/// form of a text value is the text itself): a statement like `SELECT $1::date` is cacheable for
/// `2026-01-01` but not for `today`.
#[must_use]
pub fn mentions_now(value: &[u8]) -> bool {
    // All four words are spelt with one of these letters first; few bytes of real data pass.
    value.iter().enumerate().any(|(at, byte)| {
        matches!(byte | 0x20, b'n' | b't' | b'y')
            && WORDS.iter().any(|word| {
                value[at..]
                    .get(..word.len())
                    .is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
            })
    })
}

/// The word for the current moment in `literal`, if it stands alone there.
///
/// PostgreSQL splits date and time input into runs of letters and other things, so `today12:00` does
/// mean today, and `nowhere` is an error.
pub(super) fn time_word(literal: &str) -> Option<&'static str> {
    literal
        .split(|c: char| !c.is_ascii_alphabetic())
        .find_map(|run| {
            WORDS
                .into_iter()
                .find(|word| run.eq_ignore_ascii_case(word))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_the_current_moment_are_found_in_any_case_and_place() {
        for text in [
            "now",
            " ToDay ",
            "[yesterday,)",
            "{a,\"TOMORROW\"}",
            "nowhere",
            "xnow",
        ] {
            assert!(mentions_now(text.as_bytes()), "{text}");
        }
        for text in [
            "",
            "n",
            "no",
            "2026-01-01",
            "infinity",
            "epoch",
            "yesterda",
            "tomorro",
        ] {
            assert!(!mentions_now(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn a_literal_is_split_as_the_server_splits_it() {
        assert_eq!(time_word("today12:00"), Some("today"));
        assert_eq!(time_word("12:00today"), Some("today"));
        assert_eq!(time_word("[NOW,infinity)"), Some("now"));
        assert_eq!(time_word("nowhere"), None);
        assert_eq!(time_word("know"), None);
    }
}
