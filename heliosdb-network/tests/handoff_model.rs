//! The pool's exchange under many schedules of several threads, chosen by shuttle: what is given up in the middle of a
//! hand-off goes to the next, nobody waits for ever, and nobody overtakes.
//!
//! The files under test are the pool's own, with shuttle's lock in place of its lock.
//!
//! To see it fail, change one of these in `src/connection_pool/exchange.rs` or `line.rs`:
//! * `Exchange::leave`: return `None` always, as a pool that forgets who was served already.
//! * `Exchange::put_back`: put what comes back among the idle ones, whoever waits.
//! * `Exchange::poll`: release the lock between the look at the place and the note of the waker.
//! * `Line::leave`: leave a place that was not served linked.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::Location;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use heliosdb_network::HeliosError;
use heliosdb_network::connection_pool::{
    AcquireError, AcquirePhase, ConnectionPoolConfig, PoolMetrics,
};
use shuttle::future::block_on;
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::thread;

use exchange::{Answer, Exchange, Wish};
use meta::Item;

macro_rules! of_the_pool {
    ($($name:ident $path:literal;)*) => {
        $(
            #[path = $path]
            #[allow(
                dead_code,
                unreachable_pub,
                clippy::allow_attributes,
                reason = "the models need a part of it, and nobody else sees it"
            )]
            mod $name;
        )*
    };
}

of_the_pool! {
    breaker "../src/connection_pool/breaker.rs";
    cap "../src/connection_pool/cap.rs";
    exchange "../src/connection_pool/exchange.rs";
    hint "../src/connection_pool/hint.rs";
    line "../src/connection_pool/line.rs";
    meta "../src/connection_pool/meta.rs";
    state "../src/connection_pool/state.rs";
    window "../src/connection_pool/window.rs";
}

mod sync {
    use shuttle::sync::MutexGuard;

    #[derive(Debug)]
    pub(super) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(super) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(super) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no thread panics while it holds it")
        }
    }
}

const CONNECTIONS: usize = 2;
const THREADS: usize = 4;

/// A pool whose connections are numbers.
struct World {
    exchange: Exchange<usize>,
    config: ConnectionPoolConfig,
    /// What is held by somebody, by number.
    held: shuttle::sync::Mutex<[bool; CONNECTIONS]>,
    now: Instant,
}

impl World {
    fn new() -> Arc<Self> {
        let mut config = ConnectionPoolConfig::default();
        config.max_connections = CONNECTIONS;
        config.min_idle = CONNECTIONS;
        let (exchange, now) = (Exchange::new(&config), Instant::now());
        for number in 0..exchange.begin_connects(&config, now) {
            let connected = exchange.connected(number, (0, true), &config, now, 0.5);
            assert!(exchange.put_back(connected.new, now).is_none());
        }
        Arc::new(Self {
            exchange,
            config,
            held: shuttle::sync::Mutex::new([false; CONNECTIONS]),
            now,
        })
    }

    fn ask(&self, waker: &Waker) -> Answer<usize> {
        let wish = Wish {
            label: 0,
            hint: None,
            place: Location::caller(),
            is_first: false,
        };
        self.exchange
            .ask(&wish, &self.config, self.now, self.now, waker)
    }

    /// Waits as long as it takes.
    fn acquire(&self) -> Item<usize> {
        let mut place = None;
        block_on(poll_fn(|context| {
            let Some(ticket) = &place else {
                match self.ask(context.waker()) {
                    Answer::Taken(idle) => return Poll::Ready(idle),
                    Answer::Refused(error) => panic!("{error}"),
                    Answer::Wait {
                        ticket,
                        is_registered,
                        ..
                    } => {
                        let served = if is_registered {
                            None
                        } else {
                            self.exchange.poll(&ticket, None, context.waker())
                        };
                        place = Some(ticket);
                        return served.map_or(Poll::Pending, |served| {
                            Poll::Ready(served.expect("nothing fails here"))
                        });
                    }
                }
            };
            match self.exchange.poll(ticket, None, context.waker()) {
                Some(served) => Poll::Ready(served.expect("nothing fails here")),
                None => Poll::Pending,
            }
        }))
    }

    /// Looks some times, and leaves if there was nothing.
    fn acquire_or_leave(&self) -> Option<Item<usize>> {
        match self.ask(Waker::noop()) {
            Answer::Taken(idle) => Some(idle),
            Answer::Refused(error) => panic!("{error}"),
            Answer::Wait { ticket, .. } => {
                let waker = Context::from_waker(Waker::noop()).waker().clone();
                for _ in 0..thread_rng().gen_range(0..3) {
                    if let Some(served) = self.exchange.poll(&ticket, None, &waker) {
                        return Some(served.expect("nothing fails here"));
                    }
                    thread::yield_now();
                }
                if let Some(idle) = self.exchange.leave(ticket) {
                    self.put_back(idle);
                }
                None
            }
        }
    }

    /// Uses a connection, alone.
    fn work(&self, idle: Item<usize>) {
        let number = idle.connection;
        let hold = |is_held| {
            let mut held = self.held.lock().expect("no panic");
            std::mem::replace(&mut held[number], is_held)
        };
        assert!(!hold(true), "two have the same connection");
        thread::yield_now();
        assert!(hold(false));
        self.put_back(idle);
    }

    fn put_back(&self, idle: Item<usize>) {
        assert!(self.exchange.put_back(idle, self.now).is_none());
    }

    fn metrics(&self) -> PoolMetrics {
        let metrics = self.exchange.metrics(&self.config, self.now);
        let total = metrics.idle + metrics.active + metrics.connecting + metrics.closing;
        assert_eq!(total, CONNECTIONS, "{metrics:?}");
        metrics
    }
}

/// Of so many schedules, drawn with a bias towards few changes of thread (Burckhardt et al., ASPLOS 2010), and as many
/// drawn evenly.
fn explore(model: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::check_pct(model, 2_000, 3);
    shuttle::check_random(model, 2_000);
}

#[test]
fn a_storm_of_those_who_leave_loses_nothing() {
    explore(|| {
        let world = World::new();
        let threads: Vec<_> = (0..THREADS)
            .map(|n| {
                let world = Arc::clone(&world);
                thread::spawn(move || {
                    for _ in 0..3 {
                        // One of them always waits: it is its turn at last, or shuttle reports a deadlock.
                        let acquired = if n == 0 {
                            Some(world.acquire())
                        } else {
                            world.acquire_or_leave()
                        };
                        if let Some(idle) = acquired {
                            world.work(idle);
                        }
                        world.metrics();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no panic");
        }
        let metrics = world.metrics();
        assert_eq!((metrics.idle, metrics.waiting), (CONNECTIONS, 0));
    });
}

#[test]
fn nobody_overtakes() {
    explore(|| {
        let world = World::new();
        let first = world.acquire();
        let second = world.acquire();
        let order = Arc::new(shuttle::sync::Mutex::new(VecDeque::new()));
        // All wait, one behind the other, before anything comes back.
        let waiting: Vec<_> = (0..3)
            .map(|_| match world.ask(Waker::noop()) {
                Answer::Wait { ticket, .. } => ticket,
                _ => panic!("nothing is idle"),
            })
            .collect();
        let threads: Vec<_> = waiting
            .into_iter()
            .enumerate()
            .map(|(n, ticket)| {
                let (world, order) = (Arc::clone(&world), Arc::clone(&order));
                thread::spawn(move || {
                    let served = block_on(poll_fn(|context| {
                        match world.exchange.poll(&ticket, None, context.waker()) {
                            Some(served) => Poll::Ready(served),
                            None => Poll::Pending,
                        }
                    }));
                    let idle = served.expect("nothing fails here");
                    order.lock().unwrap().push_back((n, idle.connection));
                    // Kept: what is left for the others is known.
                    idle
                })
            })
            .collect();
        let (one, two) = (first.connection, second.connection);
        let giver = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                world.put_back(first);
                // Whoever comes now has to queue up behind them.
                assert!(
                    world
                        .exchange
                        .take(
                            0,
                            None,
                            Location::caller(),
                            world.now,
                            std::time::Duration::MAX
                        )
                        .is_none()
                );
                world.put_back(second);
            })
        };
        giver.join().expect("no panic");
        let mut threads = threads.into_iter();
        let [a, b] = [threads.next(), threads.next()]
            .map(|thread| thread.expect("three").join().expect("no panic"));
        assert_eq!((a.connection, b.connection), (one, two));
        world.put_back(a);
        let c = threads.next().expect("three").join().expect("no panic");
        world.put_back(c);
        world.put_back(b);
        assert_eq!(world.metrics().idle, CONNECTIONS);
    });
}

#[test]
fn whoever_waits_while_the_pool_is_suspended_is_served_when_it_is_resumed() {
    explore(|| {
        let world = World::new();
        world.exchange.suspend();
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let world = Arc::clone(&world);
                thread::spawn(move || {
                    let idle = world.acquire();
                    world.work(idle);
                })
            })
            .collect();
        assert!(world.exchange.resume(world.now).is_empty());
        for thread in threads {
            thread.join().expect("no panic");
        }
        assert_eq!(world.metrics().idle, CONNECTIONS);
    });
}
