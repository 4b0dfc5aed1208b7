//! Drivers of other languages and libraries get the same answers through helios as without it.

use std::path::Path;
use std::process::Command;

use sqlx::{Connection as _, Row as _};

use crate::support::Stack;

const TABLES: &str = "CREATE TABLE things (id int PRIMARY KEY, name text, price numeric(8,2), at timestamptz);
    INSERT INTO things SELECT i, 'thing ' || i, i * 1.5, timestamptz '2024-01-01 UTC' + i * interval '1 day' \
        FROM generate_series(1, 50) i;
    CREATE TABLE lines (n int, text text);";

fn run(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{command:?} failed:\n{text}");
    text
}

/// A virtual environment with the drivers, made once and kept with what cargo builds.
fn python() -> std::path::PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let python = folder.join("bin/python");
    let ready = folder.join("ready");
    if !ready.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder));
        run(Command::new(&python)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(["asyncpg>=0.29,<1", "psycopg2-binary>=2.9,<3"]));
        std::fs::write(ready, "").expect("written");
    }
    python
}

#[test]
fn asyncpg_and_psycopg2_get_equal_answers() {
    let stack = Stack::start();
    stack.cluster.psql("postgres", TABLES).expect("made");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers.py");
    let ports = [
        stack.cluster.port().to_string(),
        stack.helios.port.to_string(),
    ];
    let report = run(Command::new(python()).arg(script).args(ports));
    assert!(report.contains("asyncpg: 20 answers equal"), "{report}");
    assert!(report.contains("psycopg2: 8 answers equal"), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlx_gets_equal_answers() {
    let stack = Stack::start();
    stack.cluster.psql("postgres", TABLES).expect("made");
    let url = |port: u16| format!("postgres://postgres@127.0.0.1:{port}/postgres");
    let expected = sqlx_answers(&url(stack.cluster.port())).await;
    for _ in 0..2 {
        assert_eq!(sqlx_answers(&url(stack.helios.port)).await, expected);
    }
    assert!(stack.helios.cache_count("hits").await >= 4);
}

async fn sqlx_answers(url: &str) -> Vec<String> {
    let mut connection = sqlx::PgConnection::connect(url).await.expect("connected");
    let mut answers = Vec::new();
    for id in [3, 4, 3, 4] {
        let row = sqlx::query("SELECT name, price::text, at::text FROM things WHERE id = $1")
            .bind(id)
            .fetch_all(&mut connection)
            .await
            .expect("a row");
        let row = &row[0];
        let column = |n: usize| row.get::<String, _>(n);
        answers.push(format!("{} {} {}", column(0), column(1), column(2)));
    }
    let mut transaction = connection.begin().await.expect("begun");
    let changed = sqlx::query("UPDATE things SET name = 'other' WHERE id > $1")
        .bind(45)
        .execute(&mut *transaction)
        .await
        .expect("changed");
    answers.push(changed.rows_affected().to_string());
    transaction.rollback().await.expect("rolled back");
    let error = sqlx::query("SELECT * FROM no_such_table")
        .execute(&mut connection)
        .await;
    answers.push(error.expect_err("refused").to_string());
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM things WHERE name = 'other'")
        .fetch_one(&mut connection)
        .await
        .expect("a count");
    answers.push(count.to_string());
    connection.close().await.expect("closed");
    answers
}
