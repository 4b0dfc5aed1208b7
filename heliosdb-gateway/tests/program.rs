//! The program: its flags, its configuration, its start and its end.

use std::process::{Command, Output};
use std::time::Duration;

#[cfg(feature = "embedded")]
use crate::support::Helios;

use crate::support::Stack;

fn helios(args: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    Command::new(env!("CARGO_BIN_EXE_helios"))
        .args(args)
        .current_dir(folder.path())
        .output()
        .expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_names_the_commands_and_errors_name_the_key() {
    let output = helios(&["--help"]);
    assert!(output.status.success());
    let help = text(&output.stdout);
    assert!(
        ["serve", "check", "explain", "Examples"]
            .iter()
            .all(|word| help.contains(word)),
        "{help}"
    );

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("bad.toml");
    std::fs::write(&file, "[pool]\nsiez = 3\n").expect("written");
    let output = helios(&["serve", "--config", file.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(
        error.contains("bad.toml:2:1") && error.contains("siez") && error.contains("pool.size"),
        "{error}"
    );

    let output = helios(&[
        "serve",
        "--listen",
        "0.0.0.0:1",
        "--upstream",
        "postgres://h",
    ]);
    assert!(text(&output.stderr).contains("allow_remote_trust"));
}

#[test]
fn check_and_explain_say_what_is_what() {
    let stack = Stack::start();
    stack
        .cluster
        .psql(
            "postgres",
            "CREATE TABLE t (a int); CREATE VIEW v AS SELECT * FROM t",
        )
        .expect("made");
    let url = stack.cluster.url("postgres", "postgres");
    let output = helios(&["check", "--upstream", &url]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("PostgreSQL"));
    let output = helios(&[
        "check",
        "--upstream",
        "postgres://postgres@127.0.0.1:1/postgres",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("127.0.0.1:1"),
        "{}",
        text(&output.stderr)
    );

    let explain = |sql: &str| text(&helios(&["explain", "--upstream", &url, sql]).stdout);
    let answer = explain("SELECT * FROM v");
    assert!(
        answer.contains("cacheable:    yes") && answer.contains("public.t"),
        "{answer}"
    );
    let answer = explain("SELECT now() FROM t");
    assert!(
        answer.contains("cacheable:    no: function now()"),
        "{answer}"
    );
    let answer = explain("UPDATE t SET a = 1");
    assert!(answer.contains("writes:       public.t"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_transactions_end_and_refuses_new_clients() {
    let mut stack = Stack::start();
    let client = stack.client().await;
    client
        .batch_execute("CREATE TABLE t (a int)")
        .await
        .expect("made");
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (1)")
        .await
        .expect("inserted");
    let idle = stack.client().await;
    stack.helios.signal("TERM");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(
        idle.simple_query("SELECT 1").await.is_err(),
        "an idle client is sent away"
    );
    client
        .batch_execute("INSERT INTO t VALUES (2); COMMIT")
        .await
        .expect("an open transaction goes on");
    let status = stack
        .helios
        .wait(Duration::from_secs(10))
        .expect("it stops when the transaction has ended");
    assert!(status.success());
    assert_eq!(
        stack
            .cluster
            .psql("postgres", "SELECT count(*) FROM t")
            .expect("a count"),
        "2"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_reloads_the_configuration() {
    let stack = Stack::start_with(
        heliosdb_testkit::PostgresCluster::builder(),
        "[clients]\nmax = 50\n",
    );
    let shown = |setting: &str| {
        let config = stack.helios.psql("helios", "SHOW CONFIG;");
        let line = config
            .lines()
            .find(|line| line.trim_start().starts_with(setting));
        line.unwrap_or_else(|| panic!("{setting} is not shown:\n{config}"))
            .to_owned()
    };
    assert!(shown("clients.max").contains("50"));
    std::fs::write(
        stack.helios.folder().join("helios.toml"),
        "[clients]\nmax = 60\n",
    )
    .expect("written");
    stack.helios.signal("HUP");
    for _ in 0..100 {
        if shown("clients.max").contains("60") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(shown("clients.max").contains("60"));
    // A file that can't be read leaves the configuration as it was.
    std::fs::write(stack.helios.folder().join("helios.toml"), "nonsense = 1\n").expect("written");
    stack.helios.signal("HUP");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(shown("clients.max").contains("60"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_shows_and_flushes() {
    let stack = Stack::start();
    let client = stack.client().await;
    client
        .batch_execute("CREATE TABLE t AS SELECT 1 AS a")
        .await
        .expect("made");
    for _ in 0..3 {
        client.simple_query("SELECT a FROM t").await.expect("a row");
    }
    assert!(stack.helios.cache_count("hits").await >= 1);
    assert_eq!(stack.helios.cache_count("entries").await, 1);
    for table in [
        "POOLS",
        "CLIENTS",
        "SERVERS",
        "STATS",
        "CONFIG",
        "VERSION",
        "DATABASES",
        "REFUSALS",
        "ERRORS",
        "HELP",
    ] {
        let shown = stack.helios.psql("helios", &format!("SHOW {table};"));
        assert!(!shown.contains("ERROR:"), "{shown}");
    }
    let shown = stack.helios.psql("helios", "FLUSH CACHE; SELECT 1;");
    assert!(
        shown.contains("FLUSH CACHE") && shown.contains("ERROR") && shown.contains("SHOW HELP"),
        "{shown}"
    );
    assert_eq!(stack.helios.cache_count("entries").await, 0);
}

/// The embedded server, when it is built in.
#[cfg(feature = "embedded")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_share_the_embedded_server_and_its_data_stays() {
    let data = tempfile::tempdir().expect("a folder");
    let folder = data.path().join("data");
    let args = ["--data", folder.to_str().expect("UTF-8")];
    let mut helios = Helios::start(&args, "");
    crate::support::pgbench(helios.port, &["-i", "-s", "1"]);
    for mode in ["simple", "extended", "prepared"] {
        for kind in [&["-S"][..], &[]] {
            // All in one thread: pgbench does nothing else while one of its clients prepares, and if that took the one
            // connection, the client that has it could not go on.
            let args = [kind, &["-M", mode, "-c", "6", "-j", "1", "-t", "50"]].concat();
            let report = crate::support::pgbench(helios.port, &args);
            assert!(
                report.contains("number of failed transactions: 0"),
                "{report}"
            );
        }
    }
    let (one, two) = (
        helios.client("one", "any").await,
        helios.client("two", "other").await,
    );
    let sum = async |client: &tokio_postgres::Client| -> i64 {
        client
            .query_one("SELECT sum(abalance) FROM pgbench_accounts", &[])
            .await
            .expect("a sum")
            .get(0)
    };
    let before = sum(&one).await;
    assert_eq!(sum(&two).await, before);
    // Transactions of several clients on one connection, one after the other.
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..5 {
        let client = helios.client("postgres", "postgres").await;
        tasks.spawn(async move {
            client.batch_execute("BEGIN").await?;
            client
                .execute(
                    "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = $1",
                    &[&n],
                )
                .await?;
            client.batch_execute("COMMIT").await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("ran").expect("committed");
    }
    // aid 0 does not exist.
    assert_eq!(sum(&two).await, before + 4);
    // A client that leaves in the middle, and a server that goes on.
    one.batch_execute("BEGIN; DELETE FROM pgbench_accounts")
        .await
        .expect("deleted");
    drop(one);
    assert_eq!(sum(&two).await, before + 4);
    helios.signal("TERM");
    assert!(
        helios
            .wait(Duration::from_secs(20))
            .expect("it stops")
            .success()
    );
    let helios = Helios::start(&args, "");
    assert_eq!(
        sum(&helios.client("postgres", "postgres").await).await,
        before + 4
    );
}
