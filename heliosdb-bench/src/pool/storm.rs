//! Acquires that are given up.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::Write;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;

use super::contestants::{self, Contestant, Visitor};
use super::{CONNECTIONS, runtime};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Acquires to give up, in each pool
    #[arg(long, default_value_t = 10_000_000, value_name = "NUMBER")]
    abandoned: u64,
    /// Tasks at the same time
    #[arg(long, default_value_t = 64, value_name = "NUMBER")]
    tasks: u64,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            abandoned: 10_000_000,
            tasks: 64,
        }
    }
}

struct Rage<'a, W> {
    args: &'a Args,
    runtime: &'a Runtime,
    out: &'a mut W,
}

impl<W: Write> Visitor for Rage<'_, W> {
    fn visit<C: Contestant>(&mut self, name: &'static str, pool: Arc<C>) -> anyhow::Result<()> {
        let left = self.runtime.block_on(rage(pool, self.args))?;
        writeln!(
            self.out,
            "| {name} | {} | {} | {} of {CONNECTIONS} |",
            left.abandoned, left.served, left.obtainable
        )?;
        Ok(())
    }
}

pub(super) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "## A storm of acquires that are given up\n\n{} tasks poll an acquire some times, then drop it; some hold what they \
         got. `control` hands a connection to whoever is first in its queue and does not take it back: the storm has to be \
         able to find that.\n",
        args.tasks
    )?;
    writeln!(out, "| pool | given up | served | obtainable afterwards |")?;
    writeln!(out, "| --- | --: | --: | --: |")?;
    let runtime = runtime()?;
    let _in_runtime = runtime.enter();
    let mut rage = Rage {
        args,
        runtime: &runtime,
        out,
    };
    rage.visit("control", Arc::new(Control::new()))?;
    contestants::visit(&mut rage)
}

struct Left {
    abandoned: u64,
    served: u64,
    /// Connections that can still be had, all at once.
    obtainable: usize,
}

async fn rage<C: Contestant>(pool: Arc<C>, args: &Args) -> anyhow::Result<Left> {
    let (abandoned, served) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for task in 0..args.tasks {
        let (pool, goal) = (Arc::clone(&pool), args.abandoned);
        let (abandoned, served) = (Arc::clone(&abandoned), Arc::clone(&served));
        tasks.spawn(async move {
            let mut random = SmallRng::seed_from_u64(task);
            while abandoned.load(Ordering::Relaxed) < goal {
                let polls = random.random_range(0..6);
                match poll_at_most(pool.acquire(), polls).await {
                    Some(lease) => {
                        served.fetch_add(1, Ordering::Relaxed);
                        for _ in 0..random.random_range(0..4) {
                            yield_now().await;
                        }
                        drop(lease);
                    }
                    None => {
                        abandoned.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done?;
    }
    let mut held = Vec::new();
    while held.len() < CONNECTIONS
        && let Ok(lease) = timeout(Duration::from_millis(500), pool.acquire()).await
    {
        held.push(lease);
    }
    Ok(Left {
        abandoned: abandoned.load(Ordering::Relaxed),
        served: served.load(Ordering::Relaxed),
        obtainable: held.len(),
    })
}

async fn poll_at_most<F: Future>(future: F, polls: u32) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        yield_now().await;
    }
    None
}

/// What a pool must not do.
struct Control {
    free: Mutex<Vec<usize>>,
    waiters: Mutex<VecDeque<oneshot::Sender<usize>>>,
}

struct ControlLease<'a>(&'a Control, usize);

impl Control {
    fn new() -> Self {
        Self {
            free: Mutex::new((0..CONNECTIONS).collect()),
            waiters: Mutex::default(),
        }
    }
}

impl Contestant for Control {
    type Lease<'a> = ControlLease<'a>;

    async fn acquire(&self) -> ControlLease<'_> {
        let free = self.free.lock().pop();
        if let Some(free) = free {
            return ControlLease(self, free);
        }
        let (waiter, place) = oneshot::channel();
        self.waiters.lock().push_back(waiter);
        match place.await {
            Ok(connection) => ControlLease(self, connection),
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for ControlLease<'_> {
    fn drop(&mut self) {
        let waiter = self.0.waiters.lock().pop_front();
        match waiter {
            Some(waiter) => drop(waiter.send(self.1)),
            None => self.0.free.lock().push(self.1),
        }
    }
}
