//! LISTEN and UNLISTEN, read as the server would read them. What can't be read with certainty is the server's.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::sql::{Effect, NameScope, classify_without_catalog};

use super::interest::Step;

/// A text that consists of LISTEN and UNLISTEN alone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// One for each statement.
    pub(crate) steps: SmallVec<[Step; 1]>,
    /// The server says that it cuts a name.
    pub(crate) notice: Option<String>,
}

/// The server keeps so much of a name, in bytes.
const NAME_MAX: usize = 63;
/// A character that is cut away is at most so long.
const CHARACTER_MAX: usize = 4;

impl Asked {
    /// The command tag of a statement.
    pub(crate) fn tag(step: &Step) -> &'static str {
        if matches!(step, Step::Listen(_)) {
            "LISTEN"
        } else {
            "UNLISTEN"
        }
    }
}

/// Cheap enough to be asked of every statement: false for almost all that ask for something else.
pub(crate) fn may_ask(text: &str) -> bool {
    let mut text = text.trim_ascii_start();
    if text.starts_with(['/', '-']) {
        // As some libraries put a comment before every statement.
        text = behind_comments(text);
    }
    text.as_bytes().get(..3).is_some_and(|start| {
        start.eq_ignore_ascii_case(b"lis") || start.eq_ignore_ascii_case(b"unl")
    })
}

/// What follows the comments at the front; nothing where one does not end.
fn behind_comments(mut text: &str) -> &str {
    loop {
        text = text.trim_ascii_start();
        text = if let Some(line) = text.strip_prefix("--") {
            line.split_once(['\n', '\r']).map_or("", |(_, rest)| rest)
        } else if text.starts_with("/*") {
            behind_block(text).unwrap_or_default()
        } else {
            return text;
        };
    }
}

/// What follows the comment in `/* */` at the front, which may hold others.
fn behind_block(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0, 0);
    loop {
        match bytes.get(at..at + 2)? {
            b"/*" => {
                depth += 1;
                at += 2;
            }
            b"*/" => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return text.get(at..);
                }
            }
            _ => at += 1,
        }
    }
}

/// What the text asks for. `None` if it asks for something else, too, or if only the server knows what it means.
pub(crate) fn read(text: &str, names: &NameScope, is_utf8_server: bool) -> Option<Asked> {
    // A server with another encoding folds and cuts other characters than we do.
    if !names.client_encoding_utf8 || !(is_utf8_server || text.is_ascii()) {
        return None;
    }
    let class = classify_without_catalog(text, names);
    let steps: SmallVec<[Step; 1]> = class
        .statements
        .iter()
        .map(|statement| match statement.effects.as_slice() {
            [Effect::Listen(channel)] => Some(Step::Listen(Arc::from(channel.as_str()))),
            [Effect::Unlisten(Some(channel))] => Some(Step::Unlisten(Arc::from(channel.as_str()))),
            [Effect::Unlisten(None)] => Some(Step::UnlistenAll),
            _ => None,
        })
        .collect::<Option<_>>()?;
    let may_be_cut = |step: &Step| match step {
        Step::Listen(channel) | Step::Unlisten(channel) => channel.len() > NAME_MAX - CHARACTER_MAX,
        Step::UnlistenAll | Step::Savepoint(_) => false,
    };
    let notice = match steps.as_slice() {
        [] => return None,
        [step] if may_be_cut(step) => notice(text, step)?,
        steps if steps.iter().any(may_be_cut) => return None,
        _ => None,
    };
    Some(Asked { steps, notice })
}

/// What the server says of a name that it has to cut. The outer `None` is for a text in which the name can't be found.
fn notice(text: &str, step: &Step) -> Option<Option<String>> {
    let (Step::Listen(channel) | Step::Unlisten(channel)) = step else {
        return None;
    };
    let text = text.trim_ascii();
    let text = text.strip_suffix(';').unwrap_or(text).trim_ascii_end();
    let (_, name) = text.split_at_checked(Asked::tag(step).len())?;
    let name = name.trim_ascii_start();
    let whole = match name.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"')?.replace("\"\"", "\""),
        None => name.to_ascii_lowercase(),
    };
    let kept = cut(&whole);
    if *kept != **channel {
        return None;
    }
    let is_cut = kept.len() < whole.len();
    Some(is_cut.then(|| format!("identifier \"{whole}\" will be truncated to \"{kept}\"")))
}

fn cut(name: &str) -> &str {
    let mut len = name.len().min(NAME_MAX);
    while !name.is_char_boundary(len) {
        len -= 1;
    }
    &name[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> NameScope {
        NameScope {
            user: "u".to_owned(),
            search_path: Vec::new(),
            standard_conforming_strings: true,
            client_encoding_utf8: true,
        }
    }

    fn shown(text: &str) -> Option<String> {
        let asked = read(text, &names(), true)?;
        assert!(may_ask(text), "{text}");
        let steps = asked.steps.iter().map(|step| match step {
            Step::Listen(channel) => format!("+{channel}"),
            Step::Unlisten(channel) => format!("-{channel}"),
            other => format!("{other:?}"),
        });
        Some(steps.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn names_are_folded_unless_quoted() {
        for (text, steps) in [
            ("LISTEN Abc", "+abc"),
            (" listen\n\"Abc\" ;", "+Abc"),
            ("LISTEN \"a\"\"b\"", "+a\"b"),
            ("unlisten Abc", "-abc"),
            ("UNLISTEN *", "UnlistenAll"),
            ("LISTEN a; LISTEN b;UNLISTEN a", "+a +b -a"),
            ("/* app */ LISTEN a", "+a"),
            ("-- app\nlisten a", "+a"),
            ("/* a /* b */ * */ -- c\n /**/ LISTEN a", "+a"),
            ("LISTEN größe", "+größe"),
        ] {
            assert_eq!(shown(text).as_deref(), Some(steps), "{text}");
        }
    }

    #[test]
    fn what_is_more_or_something_else_is_the_servers() {
        for text in [
            "",
            "LISTEN",
            "LISTEN ''",
            "LISTEN \"\"",
            "LISTEN *",
            "LISTEN a, b",
            "LISTEN a; SELECT 1",
            "BEGIN; LISTEN a; COMMIT",
            "NOTIFY a",
            "DO $$BEGIN LISTEN a; END$$",
        ] {
            assert_eq!(read(text, &names(), true), None, "{text}");
        }
        assert_eq!(read("LISTEN größe", &names(), false), None);
        let foreign = NameScope {
            client_encoding_utf8: false,
            ..names()
        };
        assert_eq!(read("LISTEN a", &foreign, true), None);
    }

    #[test]
    fn a_look_at_the_front_tells_most_statements_apart() {
        for text in [
            "",
            "SELECT 1",
            "l",
            "-- listen",
            "/* listen",
            "/* listen */ SELECT 1",
            "/*",
            "/* /* */",
            "-",
            "ünlisten",
        ] {
            assert!(!may_ask(text), "{text}");
        }
    }

    #[test]
    fn long_names_are_cut_with_a_notice() {
        let notice_of = |text: &str| {
            let asked = read(text, &names(), true).unwrap_or_else(|| panic!("{text}"));
            let Step::Listen(channel) = &asked.steps[0] else {
                panic!("{text}");
            };
            assert!(channel.len() <= NAME_MAX);
            (channel.to_string(), asked.notice)
        };
        let whole = "A".repeat(63);
        assert_eq!(
            notice_of(&format!("LISTEN {whole}")),
            ("a".repeat(63), None)
        );
        let (kept, notice) = notice_of(&format!("LISTEN {whole}Bc;"));
        assert_eq!(kept, "a".repeat(63));
        let lower = whole.to_ascii_lowercase();
        assert_eq!(
            notice,
            Some(format!(
                "identifier \"{lower}bc\" will be truncated to \"{kept}\""
            ))
        );
        let (kept, notice) = notice_of(&format!("LISTEN \"{}é\"", "x".repeat(62)));
        assert_eq!(kept, "x".repeat(62));
        assert!(notice.is_some());
        // Where the name stands can't be told, or which of them is meant.
        for text in [
            format!("LISTEN {whole}b; LISTEN c"),
            format!("LISTEN /* a */ {whole}b"),
        ] {
            assert_eq!(read(&text, &names(), true), None, "{text}");
        }
    }
}
