//! How many of the statements that people run can be answered from memory, and why the others can't.
//!
//! Prints a table in Markdown. `HELIOS_SUITES` names a folder with more suites, in the form of those in `tests/suites`: a
//! schema and queries, statements divided by lines of four dashes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use heliosdb_gateway::sql::{Catalog, Class, NameScope, Read, classify};
use heliosdb_testkit::PostgresCluster;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// What became of the statements of a suite.
#[derive(Default)]
struct Shares {
    statements: usize,
    /// SELECT, VALUES and TABLE; and among these the cacheable ones.
    reads: usize,
    cacheable: usize,
    /// Why not, of the reads, and of what is none.
    refused: BTreeMap<String, usize>,
    others: BTreeMap<&'static str, usize>,
}

impl Shares {
    fn count(&mut self, class: &Class) {
        self.statements += 1;
        let [statement] = class.statements.as_slice() else {
            *self
                .refused
                .entry("several statements".to_owned())
                .or_default() += 1;
            return;
        };
        if statement.tag != "SELECT" {
            *self.others.entry(statement.tag).or_default() += 1;
            return;
        }
        self.reads += 1;
        match &statement.read {
            Read::Cacheable(_) => self.cacheable += 1,
            Read::Refused(why) => *self.refused.entry(why.to_string()).or_default() += 1,
            _ => {}
        }
    }

    fn row(&self, suite: &str) -> String {
        let listed = |counts: Vec<(String, usize)>| {
            let counts: Vec<String> = counts
                .into_iter()
                .map(|(what, n)| format!("{what}: {n}"))
                .collect();
            counts.join("; ")
        };
        let refused = self
            .refused
            .iter()
            .map(|(why, n)| (why.clone(), *n))
            .collect();
        let others = self
            .others
            .iter()
            .map(|(tag, n)| ((*tag).to_owned(), *n))
            .collect();
        format!(
            "| {suite} | {} | {} | {} | {} % | {} | {} |",
            self.statements,
            self.reads,
            self.cacheable,
            100 * self.cacheable / self.reads.max(1),
            listed(refused),
            listed(others),
        )
    }
}

async fn connect(cluster: &PostgresCluster, database: &str) -> Client {
    let config = format!(
        "host=127.0.0.1 port={} user=postgres dbname={database}",
        cluster.port()
    );
    let (client, connection) = tokio_postgres::connect(&config, NoTls)
        .await
        .expect("connected");
    tokio::spawn(connection);
    client
}

async fn load(client: &Client) -> Catalog {
    let messages = client
        .simple_query(Catalog::LOAD)
        .await
        .expect("the load runs");
    let mut results: Vec<Vec<Vec<Option<String>>>> = Vec::new();
    for message in &messages {
        match message {
            SimpleQueryMessage::RowDescription(_) => results.push(Vec::new()),
            SimpleQueryMessage::Row(row) => {
                results.last_mut().expect("a description comes first").push(
                    (0..row.len())
                        .map(|at| row.get(at).map(str::to_owned))
                        .collect(),
                )
            }
            _ => {}
        }
    }
    Catalog::from_results(1, results).expect("the load is understood")
}

fn statements(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n----\n")
        .map(str::trim)
        .filter(|text| !text.is_empty())
}

fn suites(folder: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "sql"));
    files.sort();
    files
}

#[tokio::test]
async fn most_reads_of_known_suites_are_cacheable() {
    let cluster = PostgresCluster::start().expect("PostgreSQL starts");
    let scope = NameScope {
        user: "postgres".to_owned(),
        search_path: vec!["public".to_owned()],
        standard_conforming_strings: true,
        client_encoding_utf8: true,
    };
    let mut files = suites(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suites"));
    files.extend(
        std::env::var_os("HELIOS_SUITES")
            .iter()
            .flat_map(|folder| suites(Path::new(folder))),
    );
    println!("| suite | statements | reads | cacheable | share | why not | no reads |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for file in files {
        let suite = file
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let text = std::fs::read_to_string(&file).expect("text");
        let (schema, queries) = text
            .split_once("-- queries\n")
            .expect("a schema and queries");
        cluster
            .psql("postgres", &format!("CREATE DATABASE {suite}"))
            .expect("made");
        let client = connect(&cluster, &suite).await;
        for statement in statements(schema) {
            client.batch_execute(statement).await.expect(statement);
        }
        let catalog = load(&client).await;
        let mut shares = Shares::default();
        for statement in statements(queries) {
            // Only what the server itself understands counts.
            if let Err(error) = client.prepare(statement).await {
                panic!("{suite}: {statement}: {error}");
            }
            shares.count(&classify(statement, &catalog, &scope));
        }
        println!("{}", shares.row(&suite));
        let share = 100 * shares.cacheable / shares.reads.max(1);
        let share_min = match suite.as_str() {
            "django" => 95,
            _ => 100,
        };
        assert!(
            share >= share_min,
            "{suite}: {share} % of the reads, and {share_min} % were"
        );
    }
}
