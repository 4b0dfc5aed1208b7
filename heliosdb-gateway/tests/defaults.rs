//! Sessions that begin after it was altered what sessions begin with, begin with that.

use crate::support::Stack;
use crate::support::raw::Wire;

fn shown(client: &mut Wire) -> String {
    client.value("SHOW work_mem")
}

#[test]
fn sessions_begin_with_what_was_altered_through_helios() {
    let stack = Stack::start_prepared("[pool]\nsize = 2\n", "SELECT 1");
    let mut open = stack.wire();
    open.run("SET lock_timeout = '7s'");
    assert_eq!(shown(&mut open), "4MB");
    let mut admin = stack.wire();
    admin.run("BEGIN");
    admin.run("ALTER ROLE postgres SET work_mem = '9MB'");
    assert_eq!(shown(&mut stack.wire()), "4MB", "it is not committed");
    admin.run("ROLLBACK");
    assert_eq!(shown(&mut stack.wire()), "4MB", "it was rolled back");
    for (sql, expected) in [
        ("ALTER ROLE postgres SET work_mem = '5MB'", "5MB"),
        ("ALTER ROLE postgres RESET work_mem", "4MB"),
        ("ALTER DATABASE postgres SET work_mem = '6MB'", "6MB"),
        (
            "ALTER ROLE postgres IN DATABASE postgres SET work_mem = '7MB'",
            "7MB",
        ),
    ] {
        admin.run(sql);
        assert_eq!(shown(&mut stack.wire()), expected, "{sql}");
        assert_eq!(shown(&mut stack.wire_direct()), expected, "{sql}");
    }
    // What a client has set itself is what it had set.
    assert_eq!(open.value("SHOW lock_timeout"), "7s");
}

#[test]
fn what_is_reported_at_the_beginning_of_a_session_is_what_was_altered() {
    let stack = Stack::start_prepared("", "SELECT 1");
    let mut admin = stack.wire();
    admin.run("ALTER ROLE postgres SET TimeZone = 'Asia/Tokyo'");
    assert_eq!(stack.wire().value("SHOW TimeZone"), "Asia/Tokyo");
    admin.run("ALTER ROLE postgres SET TimeZone = 'Europe/Rome'");
    assert_eq!(stack.wire().value("SHOW TimeZone"), "Europe/Rome");
}
