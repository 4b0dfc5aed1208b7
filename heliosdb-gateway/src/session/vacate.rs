//! DROP DATABASE and its like, which the server carries out only while nobody else is in the database.
//!
//! A client that has left it leaves a connection in the pool, which would keep the server from it long after. So once no
//! client is there any more, what the gateway has there is closed. The server waits about as long for the others to go as
//! is waited here; while a client is there it is told what it would be told without a gateway: that others use it.

use std::sync::Arc;
use std::time::Duration;

use super::Session;

/// The server gives up after so long.
const PATIENCE: Duration = Duration::from_secs(5);

impl Session {
    /// A statement is about to be sent that needs this database of the server for itself.
    pub(super) fn vacate(&self, database: &str) {
        let own = self.info().id;
        let server = self.pool.database.server.clone();
        let database = database.to_owned();
        let gateway = Arc::clone(&self.gateway);
        tokio::spawn(async move {
            let names = gateway.upstream.names_of(&server, &database);
            let departed = gateway
                .clients
                .departed(|client| client.id != own && names.contains(&client.database));
            if tokio::time::timeout(PATIENCE, departed).await.is_ok() {
                gateway.upstream.vacate(&server, &database);
            }
        });
    }
}
