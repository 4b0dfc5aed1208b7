//! The task that keeps the subscription: one for each client with a near cache, and it ends with the last handle.
//!
//! It subscribes, pings the gateway four times in `max_lag` to prove that everything was told, and begins anew, with an empty
//! near cache, when the connection is lost or a pong does not come.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use heliosdb_network::{HeliosError, HidbClient, Result};
use tokio::task::JoinHandle;

use crate::client::{Followed, NearConfig, Shared, instance};
use crate::near::Near;

/// The task, which ends with this.
pub(crate) struct Follower(JoinHandle<()>);

impl Follower {
    pub(crate) fn start(shared: Arc<Shared>, config: NearConfig) -> Self {
        Self(tokio::spawn(follow(shared, config)))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Follows again and again, after a pause that grows while it fails.
async fn follow(shared: Arc<Shared>, config: NearConfig) {
    let mut pause = PAUSE_MIN;
    loop {
        let began = Instant::now();
        if let Err(error) = follow_once(&shared, &config).await {
            tracing::debug!(%error, "the near cache's subscription ended");
        }
        // Dropped, it takes all that it kept with it.
        shared.follow(None);
        if began.elapsed() > PAUSE_MAX {
            pause = PAUSE_MIN;
        }
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Returns when the subscription can no longer be relied on.
async fn follow_once(shared: &Shared, config: &NearConfig) -> Result<()> {
    let client = HidbClient::open(&shared.target).await?;
    let near = Near::new(instance(&client), config.capacity, config.max_lag);
    let told = Arc::clone(&near);
    client.subscribe(move |push| told.on_push(push))?;
    let mut asked = Instant::now();
    ping(&client, config.max_lag).await?;
    near.prove(asked);
    shared.counts.subscriptions.fetch_add(1, Ordering::Relaxed);
    let followed = Arc::new(Followed { near, client });
    shared.follow(Some(Arc::clone(&followed)));
    loop {
        tokio::time::sleep(config.max_lag / 4).await;
        asked = Instant::now();
        ping(&followed.client, config.max_lag * 2).await?;
        followed.near.prove(asked);
    }
}

async fn ping(client: &HidbClient, patience: Duration) -> Result<()> {
    let pinged = tokio::time::timeout(patience, client.send_ping_pong()).await;
    pinged.unwrap_or_else(|_| {
        Err(HeliosError::Network(
            "the gateway owes a pong for too long".to_owned(),
        ))
    })
}
