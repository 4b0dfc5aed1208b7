//! Clients and server connections, one by one, in PgBouncer's columns.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use heliosdb_network::postgres::Host;

use crate::clients::{Activity, ClientInfo, Peer};
use crate::gateway::Gateway;
use crate::session::pins::PinNames;
use crate::upstream::servers::ServerInfo;

use super::is_console;
use super::table::{Cell, Table, row};

const CLIENTS: &str = "type user database replication state addr port:i local_addr local_port:i connect_time \
     request_time wait:i wait_us:i close_needed:i ptr link remote_pid:i tls application_name prepared_statements:i \
     id:q queries:q pinned_by channels:i";
const SERVERS: &str = "type user database replication state addr port:i local_addr local_port:i connect_time \
     request_time wait:i wait_us:i close_needed:i ptr link remote_pid:i tls application_name prepared_statements:i \
     id:q leases:q";
const SOCKETS: &str = "type user database replication state addr port:i local_addr local_port:i connect_time \
     request_time wait:i wait_us:i close_needed:i ptr link remote_pid:i tls application_name prepared_statements:i \
     id:q recv_pos:i pkt_pos:i pkt_remain:i send_pos:i send_remain:i pkt_avail:i send_avail:i";

/// Who is linked with whom.
struct Sockets {
    clients: Vec<Arc<ClientInfo>>,
    servers: Vec<Arc<ServerInfo>>,
    /// The server connection of a client, by the client's id.
    server_of: HashMap<u64, Arc<ServerInfo>>,
    client_of: HashMap<u64, Arc<ClientInfo>>,
}

impl Sockets {
    fn of(gateway: &Gateway) -> Self {
        let mut clients = gateway.clients.list();
        clients.sort_by_key(|client| client.id);
        let mut servers = gateway.upstream.servers.live();
        servers.sort_by_key(|server| server.id);
        let server_of: HashMap<u64, _> = servers
            .iter()
            .filter_map(|server| Some((server.client()?, Arc::clone(server))))
            .collect();
        let client_of = clients
            .iter()
            .map(|client| (client.id, Arc::clone(client)))
            .collect();
        Self {
            clients,
            servers,
            server_of,
            client_of,
        }
    }

    fn client(&self, client: &Arc<ClientInfo>) -> Vec<Cell> {
        let (address, port) = place(&client.peer);
        let wait = client.waits_for();
        let server = self.server_of.get(&client.id);
        row![
            "C",
            &client.user,
            &client.database,
            "none",
            state_of(client, server.is_some()),
            address,
            port,
            "",
            0_u32,
            timestamp(client.connected_at),
            timestamp(client.requested_at()),
            wait.as_secs(),
            wait.subsec_micros(),
            false,
            pointer(client),
            server.map(pointer).unwrap_or_default(),
            0_u32,
            "",
            &client.application_name,
            client.prepared.load(Ordering::Relaxed),
            client.id,
        ]
    }

    fn server(&self, server: &Arc<ServerInfo>) -> Vec<Cell> {
        let client = server.client().and_then(|id| self.client_of.get(&id));
        let (address, port) = match &server.host {
            Host::Tcp(name) => (name.clone(), server.port),
            _ => ("unix".to_owned(), server.port),
        };
        row![
            "S",
            &server.user,
            &server.database,
            "none",
            match server.client() {
                _ if server.is_listener => "listening",
                Some(_) => "active",
                None => "idle",
            },
            address,
            port,
            "",
            0_u32,
            timestamp(server.connected_at),
            timestamp(server.lent_at()),
            0_u32,
            0_u32,
            server.close_needed(),
            pointer(server),
            client.map(pointer).unwrap_or_default(),
            server.backend_pid,
            "",
            client
                .map(|client| client.application_name.clone())
                .unwrap_or_default(),
            server.prepared.load(Ordering::Relaxed),
            server.id,
        ]
    }
}

pub(super) fn clients(gateway: &Gateway) -> Table {
    let sockets = Sockets::of(gateway);
    let rows = sockets.clients.iter().map(|client| {
        let mut row = sockets.client(client);
        row.extend(row![
            client.counters.queries.load(Ordering::Relaxed),
            PinNames(client.pins()).to_string(),
            client.channels(),
        ]);
        row
    });
    Table::new(CLIENTS, rows.collect())
}

pub(super) fn servers(gateway: &Gateway) -> Table {
    let sockets = Sockets::of(gateway);
    let rows = sockets.servers.iter().map(|server| {
        let mut row = sockets.server(server);
        row.extend(row![server.leases()]);
        row
    });
    Table::new(SERVERS, rows.collect())
}

/// All of both, with PgBouncer's columns on its buffers, which have no counterpart. `active_only`: those that have something under way.
pub(super) fn sockets(gateway: &Gateway, active_only: bool) -> Table {
    let sockets = Sockets::of(gateway);
    let is_busy = |client: &&Arc<ClientInfo>| {
        !active_only || client.activity() != Activity::Idle || is_console(&client.database)
    };
    let clients = sockets.clients.iter().filter(is_busy);
    let servers = sockets.servers.iter();
    let servers = servers.filter(|server| !active_only || server.client().is_some());
    let rows = clients
        .map(|client| sockets.client(client))
        .chain(servers.map(|server| sockets.server(server)))
        .map(|mut row| {
            row.extend(row![0_u32, 0_u32, 0_u32, 0_u32, 0_u32, 0_u32, 0_u32]);
            row
        });
    Table::new(SOCKETS, rows.collect())
}

/// The client of this id, or at this address of an internal object.
pub(super) fn find(gateway: &Gateway, name: &str) -> Option<Arc<ClientInfo>> {
    let clients = gateway.clients.list();
    clients
        .into_iter()
        .find(|client| name.parse() == Ok(client.id) || pointer(client) == name)
}

fn state_of(client: &ClientInfo, has_server: bool) -> &'static str {
    match client.activity() {
        _ if is_console(&client.database) => "active",
        Activity::Waiting => "waiting",
        _ if has_server => "active",
        Activity::Active => "active",
        Activity::Idle => "idle",
    }
}

fn place(peer: &Peer) -> (String, u16) {
    match peer {
        Peer::Tcp(address) => (address.ip().to_string(), address.port()),
        Peer::Unix(_) => ("unix".to_owned(), 0),
    }
}

fn pointer<T>(of: &Arc<T>) -> String {
    format!("{:p}", Arc::as_ptr(of))
}

/// As PgBouncer prints times.
pub(super) fn timestamp(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.replace('T', " ").replace('Z', " UTC")
}
