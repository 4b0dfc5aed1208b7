//! The ways to ask: each has one connection, which stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use heliosdb_network::HidbClient;
use heliosdb_network::protocol::AnswerSource;
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinSet;

use super::Answered;
use super::site::Site;
use super::wire::{Mode, Pipe};

/// How many rows a statement returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shape {
    One,
    Hundred,
}

impl Shape {
    pub(super) const ALL: [Self; 2] = [Self::One, Self::Hundred];

    pub(super) fn rows(self) -> usize {
        match self {
            Self::One => 1,
            Self::Hundred => 100,
        }
    }

    /// Without parameters, which Query could not carry.
    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::One => "SELECT id, name, price FROM items WHERE id = 7",
            Self::Hundred => "SELECT id, name, price FROM items WHERE id <= 100 ORDER BY id",
        }
    }
}

/// A way to ask.
pub(super) trait Way {
    /// Asks once, and shows the rows as psql prints them unaligned.
    fn rows(&mut self, shape: Shape) -> anyhow::Result<String>;

    /// Keeps `in_flight` requests open for a time, and counts the answers.
    fn drive(&mut self, shape: Shape, in_flight: usize, time: Duration)
    -> anyhow::Result<Answered>;
}

/// All of them, connected. The others are compared with the first.
pub(super) fn all(
    site: &Site,
    runtime: &Runtime,
) -> anyhow::Result<Vec<(&'static str, Box<dyn Way>)>> {
    let (hidb, tokio_postgres) = runtime.block_on(async {
        let hidb = HidbClient::open(&site.hidb_target()).await?;
        anyhow::Ok((hidb, ByTokioPostgres::connect(site).await?))
    })?;
    let hidb = ByHidb {
        client: Arc::new(hidb),
        runtime: runtime.handle().clone(),
    };
    let raw = |mode| anyhow::Ok(Box::new(Pipe::connect(site.port(), mode)?));
    Ok(vec![
        ("HIDB, HidbClient", Box::new(hidb)),
        ("HIDB, bytes", Box::new(Pipe::log_in(&site.hidb_target())?)),
        (
            "PostgreSQL, tokio-postgres, prepared",
            Box::new(tokio_postgres),
        ),
        ("PostgreSQL, bytes, prepared", raw(Mode::Prepared)?),
        ("PostgreSQL, bytes, unprepared", raw(Mode::Unprepared)?),
        ("PostgreSQL, bytes, simple", raw(Mode::Simple)?),
    ])
}

struct ByHidb {
    client: Arc<HidbClient>,
    runtime: Handle,
}

impl Way for ByHidb {
    fn rows(&mut self, shape: Shape) -> anyhow::Result<String> {
        let reply = self.runtime.block_on(self.client.query(shape.sql()))?;
        let row = |row: heliosdb_network::client::Row<'_>| {
            let field = |number: usize| anyhow::Ok(row.text(number)?.unwrap_or_default());
            anyhow::Ok([field(0)?, field(1)?, field(2)?].join("|"))
        };
        let rows = reply.rows().map(row).collect::<anyhow::Result<Vec<_>>>();
        Ok(rows?.join("\n"))
    }

    fn drive(
        &mut self,
        shape: Shape,
        in_flight: usize,
        time: Duration,
    ) -> anyhow::Result<Answered> {
        let client = Arc::clone(&self.client);
        let ask = move || {
            let client = Arc::clone(&client);
            async move {
                let reply = client.query(shape.sql()).await?;
                let source = reply.facts().source;
                ensure!(source == AnswerSource::Hit, "answered by {source:?}");
                ensure!(reply.len() == shape.rows(), "{} rows", reply.len());
                Ok(())
            }
        };
        self.runtime.block_on(keep_asking(in_flight, time, ask))
    }
}

struct ByTokioPostgres {
    client: Arc<tokio_postgres::Client>,
    statements: [tokio_postgres::Statement; 2],
    runtime: Handle,
}

impl ByTokioPostgres {
    async fn connect(site: &Site) -> anyhow::Result<Self> {
        let client = site.connect("postgres").await?;
        let one = client.prepare(Shape::One.sql()).await?;
        let hundred = client.prepare(Shape::Hundred.sql()).await?;
        Ok(Self {
            client: Arc::new(client),
            statements: [one, hundred],
            runtime: Handle::current(),
        })
    }
}

impl Way for ByTokioPostgres {
    fn rows(&mut self, shape: Shape) -> anyhow::Result<String> {
        let statement = &self.statements[shape as usize];
        let rows = self.runtime.block_on(self.client.query(statement, &[]))?;
        let row = |row: &tokio_postgres::Row| {
            let (id, name): (i32, &str) = (row.try_get(0)?, row.try_get(1)?);
            anyhow::Ok(format!("{id}|{name}|{}", row.try_get::<_, i32>(2)?))
        };
        let rows = rows.iter().map(row).collect::<anyhow::Result<Vec<_>>>();
        Ok(rows?.join("\n"))
    }

    fn drive(
        &mut self,
        shape: Shape,
        in_flight: usize,
        time: Duration,
    ) -> anyhow::Result<Answered> {
        let client = Arc::clone(&self.client);
        let statement = self.statements[shape as usize].clone();
        let ask = move || {
            let (client, statement) = (Arc::clone(&client), statement.clone());
            async move {
                let rows = client.query(&statement, &[]).await?;
                ensure!(rows.len() == shape.rows(), "{} rows", rows.len());
                Ok(())
            }
        };
        self.runtime.block_on(keep_asking(in_flight, time, ask))
    }
}

/// As many tasks as there are to be requests in flight: each asks, waits, and asks again.
async fn keep_asking<F>(
    in_flight: usize,
    time: Duration,
    ask: impl Fn() -> F + Clone + Send + 'static,
) -> anyhow::Result<Answered>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let stop = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..in_flight {
        let (ask, stop) = (ask.clone(), Arc::clone(&stop));
        tasks.spawn(async move {
            let mut requests = 0;
            while !stop.load(Ordering::Relaxed) {
                ask().await?;
                requests += 1;
            }
            anyhow::Ok(requests)
        });
    }
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let mut requests = 0;
    while let Some(done) = tasks.join_next().await {
        requests += done??;
    }
    Ok(Answered {
        requests,
        elapsed: began.elapsed(),
    })
}
