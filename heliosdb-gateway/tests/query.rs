//! `helios query`: what it prints, and how it ends.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::support::Stack;

struct Shell {
    stack: Stack,
}

impl Shell {
    fn run(&self, args: &[&str], input: &str) -> Output {
        let url = format!(
            "hidb://postgres@127.0.0.1:{}/postgres",
            self.stack.helios.hidb_port
        );
        let mut child = Command::new(env!("CARGO_BIN_EXE_helios"))
            .arg("query")
            .args(["--url", &url])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).expect("read");
        drop(stdin);
        child.wait_with_output().expect("ends")
    }

    /// What it prints, if all went well.
    fn ask(&self, args: &[&str]) -> String {
        let output = self.run(args, "");
        assert!(
            output.status.success(),
            "{args:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// What it complains of.
    fn fail(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
        text(&output.stderr)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn shell() -> Shell {
    let stack = Stack::start();
    let made = "create table t (id int primary key, name text, at jsonb);
                insert into t values (1, 'Ada, \"Countess\"', '{\"a\": [1, 2]}'), (2, null, null)";
    stack.cluster.psql("postgres", made).expect("made");
    Shell { stack }
}

#[test]
fn a_statement_is_answered_in_the_form_that_is_asked_for() {
    let shell = shell();
    let read = "select id, name, at, id = 1 as first from t order by id";
    let table = shell.ask(&[read]);
    for part in [
        "id",
        "name",
        "Ada, \"Countess\"",
        "SELECT 2, from the server, to be kept",
    ] {
        assert!(table.contains(part), "{table}");
    }
    let again = shell.ask(&[read]);
    assert!(again.contains("SELECT 2, from memory, "), "{again}");
    assert_eq!(
        shell.ask(&["--format", "json", read]),
        "{\"id\":1,\"name\":\"Ada, \\\"Countess\\\"\",\"at\":{\"a\": [1, 2]},\"first\":true}\n\
         {\"id\":2,\"name\":null,\"at\":null,\"first\":false}\n"
    );
    assert_eq!(
        shell.ask(&["--format", "csv", read]),
        "id,name,at,first\n1,\"Ada, \"\"Countess\"\"\",\"{\"\"a\"\": [1, 2]}\",t\n2,,,f\n"
    );
    let one = shell.ask(&[
        "select name from t where id = $1 and name like $2",
        "-p",
        "1",
        "-p",
        "A%",
    ]);
    assert!(one.contains("Ada") && one.contains("SELECT 1"), "{one}");
    let write = shell.ask(&["update t set name = 'x' where id = 2"]);
    assert!(write.starts_with("UPDATE 1, from the server, "), "{write}");
    assert_eq!(
        shell.ask(&["--format", "csv", "update t set name = 'y' where id = 2"]),
        ""
    );
}

#[test]
fn directives_reach_the_gateway() {
    let shell = shell();
    let read = "select id from t order by id";
    let error = shell.fail(&["--cache", "only", read], "");
    assert!(error.contains("not in memory"), "{error}");
    shell.ask(&[read]);
    assert!(
        shell
            .ask(&["--cache", "only", read])
            .contains("from memory")
    );
    assert!(
        shell
            .ask(&["--cache", "bypass", read])
            .contains("from the server, ")
    );
    assert!(
        shell
            .ask(&["--max-age", "1h", read])
            .contains("from memory")
    );
    std::thread::sleep(std::time::Duration::from_millis(30));
    assert!(
        shell
            .ask(&["--max-age", "1ms", read])
            .contains("from the server, ")
    );
}

#[test]
fn errors_say_what_the_server_said() {
    let shell = shell();
    let error = shell.fail(&["select * from absent"], "");
    assert!(
        error.contains("ERROR: relation \"absent\" does not exist [42P01]"),
        "{error}"
    );
    let error = shell.fail(&["select nme from t"], "");
    assert!(error.contains("HINT: "), "{error}");
    let nowhere = Command::new(env!("CARGO_BIN_EXE_helios"))
        .args(["query", "--url", "hidb://a@127.0.0.1:1/b", "select 1"])
        .output()
        .expect("runs");
    assert_eq!(nowhere.status.code(), Some(1));
    let error = text(&nowhere.stderr);
    assert!(
        error.contains("hidb://a@127.0.0.1:1/b") && error.contains("refused"),
        "{error}"
    );
    let nonsense = Command::new(env!("CARGO_BIN_EXE_helios"))
        .args(["query", "--cache", "never", "select 1"])
        .output()
        .expect("runs");
    assert_eq!(nonsense.status.code(), Some(2));
}

#[test]
fn piped_statements_share_a_session_and_end_with_the_first_error() {
    let shell = shell();
    let script = "begin; set local search_path = pg_catalog;\n\
                  insert into public.t values (3, 'a;b', null); -- ; no end\n\
                  select name from public.t where id = 3; rollback;\n\
                  select count(*) from t";
    let output = shell.run(&["--format", "csv"], script);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "name\na;b\ncount\n2\n");
    let error = shell.fail(&["--format", "csv"], "select 1/0; insert into t values (4)");
    assert!(error.contains("division by zero [22012]"), "{error}");
    assert_eq!(
        shell.ask(&["--format", "csv", "select count(*) from t"]),
        "count\n2\n"
    );
}
