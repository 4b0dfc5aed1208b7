//! `helios query`: statements over HIDB, for a person or a script.

mod print;
mod shell;
mod statements;

use std::io::{IsTerminal as _, Write};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use heliosdb_network::protocol::CacheUse;
use heliosdb_network::{HeliosError, HidbClient, HidbTarget, Reply, Statement};

/// What is asked, where, and how it is shown.
#[derive(Debug, Clone, Args)]
pub(crate) struct QueryOptions {
    /// The gateway: hidb://user:password@host:port/database, with ?tls_ca=FILE for TLS
    #[arg(
        long,
        value_name = "URL",
        env = "HELIOS_URL",
        hide_env_values = true,
        default_value = "hidb://postgres@127.0.0.1:6433/postgres"
    )]
    url: String,
    /// Value of the next parameter ($1, $2, ...); may be repeated
    #[arg(short, long = "param", value_name = "VALUE", requires = "statement")]
    params: Vec<String>,
    /// Whether the answer may come from memory
    #[arg(long, value_enum, default_value_t = Cache::Default, value_name = "USE")]
    cache: Cache,
    /// Take no answer from memory that was computed longer ago, such as 500ms or "1m 30s"
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
    /// How rows are printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// One statement, in quotes. Without it statements are read from the terminal, or from a file or pipe, each ended by a
    /// semicolon; they share a session
    #[arg(value_name = "SQL")]
    statement: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cache {
    /// If it is as good as the server's
    Default,
    /// Ask the server
    Bypass,
    /// What is not in memory is an error
    Only,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A header, and a line each
    Csv,
    /// An object a line; numbers, booleans and JSON as such, the rest as text
    Json,
    /// For people, with where the answer came from
    Table,
}

/// The session that statements from a terminal or a pipe share.
const SESSION: u32 = 1;

pub(crate) async fn run(options: QueryOptions) -> anyhow::Result<()> {
    let target = HidbTarget::from_url(&options.url)?;
    let client = HidbClient::open(&target)
        .await
        .with_context(|| format!("cannot log in to {target}"))?;
    let asking = Asking { client, options };
    match &asking.options.statement {
        Some(text) => {
            let mut statement = Statement::new(text);
            for param in &asking.options.params {
                statement = statement.bind(param.as_str());
            }
            asking.ask(statement).await
        }
        None if std::io::stdin().is_terminal() => shell::run(&asking, &target).await,
        None => shell::run_script(&asking).await,
    }
}

struct Asking {
    client: HidbClient,
    options: QueryOptions,
}

impl Asking {
    /// Asks a statement of those that share a session.
    async fn ask_in_session(&self, text: &str) -> anyhow::Result<()> {
        self.ask(Statement::new(text).in_session(SESSION)).await
    }

    /// Asks and prints.
    async fn ask(&self, statement: Statement) -> anyhow::Result<()> {
        let mut statement = statement.with_cache(match self.options.cache {
            Cache::Default => CacheUse::Default,
            Cache::Bypass => CacheUse::Bypass,
            Cache::Only => CacheUse::Only,
        });
        if let Some(max_age) = self.options.max_age {
            statement = statement.with_max_age(max_age);
        }
        let asked = Instant::now();
        let answer = tokio::select! {
            answer = self.client.query(statement) => answer,
            // What is dropped is cancelled at the server.
            _ = tokio::signal::ctrl_c() => anyhow::bail!("cancelled"),
        };
        let reply = answer.map_err(explained)?;
        self.print(&reply, asked.elapsed())
    }

    fn print(&self, reply: &Reply, took: Duration) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        match self.options.format {
            Format::Csv => print::csv(&mut out, reply)?,
            Format::Json => print::json(&mut out, reply)?,
            Format::Table => print::table(&mut out, reply, took)?,
        }
        Ok(out.flush()?)
    }
}

/// An error of the server with all that it says, as psql prints it.
fn explained(error: HeliosError) -> anyhow::Error {
    let HeliosError::Server(fields) = &error else {
        return error.into();
    };
    let mut text = format!(
        "{}: {} [{}]",
        fields.severity(),
        fields.message(),
        fields.sqlstate()
    );
    for (name, value) in [("DETAIL", fields.detail()), ("HINT", fields.hint())] {
        if let Some(value) = value {
            text.push_str(&format!("\n{name}: {value}"));
        }
    }
    anyhow::Error::msg(text)
}
