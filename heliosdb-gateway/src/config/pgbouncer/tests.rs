use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const TRUST: &str = "[databases]\nd = host=h\n[pgbouncer]\nauth_type = trust\n";

fn none(name: &Path) -> std::io::Result<String> {
    Err(std::io::Error::other(name.display().to_string()))
}

fn read_valid(text: &str) -> (Config, Vec<Note>) {
    let (config, notes) = read(text, "f.ini", &mut none).expect(text);
    config.validate().expect(text);
    (config, notes)
}

fn refused(text: &str) -> String {
    match read(text, "f.ini", &mut none) {
        Err(error) => error.to_string(),
        Ok((config, _)) => config.validate().expect_err(text).to_string(),
    }
}

/// Of PgBouncer 1.25's documentation.
const DOCUMENTED: &str = "admin_users application_name_add_host auth_dbname auth_file auth_hba_file auth_ident_file \
     auth_ldap_options auth_query auth_type auth_user autodb_idle_timeout cancel_wait_timeout client_idle_timeout \
     client_login_timeout client_tls13_ciphers client_tls_ca_file client_tls_cert_file client_tls_ciphers \
     client_tls_dheparams client_tls_ecdhcurve client_tls_key_file client_tls_protocols client_tls_sslmode conffile \
     default_pool_size disable_pqexec dns_max_ttl dns_nxdomain_ttl dns_zone_check_period idle_transaction_timeout \
     ignore_startup_parameters job_name listen_addr listen_backlog listen_port log_connections log_disconnections \
     log_pooler_errors log_stats logfile login_notify_message max_client_conn max_db_client_connections \
     max_db_connections max_packet_size max_prepared_statements max_user_client_connections max_user_connections \
     min_pool_size peer_id pidfile pkt_buf pool_idle_timeout pool_mode query_timeout query_wait_notify \
     query_wait_timeout reserve_pool_size reserve_pool_timeout resolv_conf sbuf_loopcnt scram_iterations \
     server_check_delay server_check_query server_connect_timeout server_fast_close server_idle_timeout \
     server_lifetime server_login_retry server_reset_query server_reset_query_always server_round_robin \
     server_tls13_ciphers server_tls_ca_file server_tls_cert_file server_tls_ciphers server_tls_key_file \
     server_tls_protocols server_tls_sslmode service_name so_reuseport stats_period stats_users suspend_timeout syslog \
     syslog_facility syslog_ident tcp_defer_accept tcp_keepalive tcp_keepcnt tcp_keepidle tcp_keepintvl \
     tcp_socket_buffer tcp_user_timeout track_extra_parameters transaction_timeout unix_socket_dir unix_socket_group \
     unix_socket_mode user verbose";

#[test]
fn every_key_of_the_documentation_is_known_in_its_place() {
    let known: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    let documented: Vec<&str> = DOCUMENTED.split_whitespace().collect();
    assert_eq!(known, documented);
    for key in KEYS {
        let (Fate::Ignored(why) | Fate::Refused(why)) = key.fate else {
            continue;
        };
        assert!(!why.is_empty() && !why.ends_with('.'), "{}", key.name);
    }
}

#[test]
fn every_default_is_accepted_and_is_what_holds_without_it() {
    let (without, _) = read_valid(TRUST);
    for key in KEYS {
        // Trust is what the text needs.
        if matches!(key.name, "auth_type" | "server_tls_sslmode" | "auth_query") {
            continue;
        }
        let (with, notes) = read_valid(&format!("{TRUST}{} = {}\n", key.name, key.default));
        assert_eq!(with, without, "{}", key.name);
        assert!(
            notes.iter().any(|note| note.key == key.name),
            "{}",
            key.name
        );
    }
    for row in rows(&without) {
        if row.name != "listen_addr" && row.name != "auth_type" {
            assert_eq!(row.value, row.default, "{}", row.name);
        }
    }
}

#[test]
fn values_are_taken_over() {
    let text = "[pgbouncer]\nauth_type = trust\nlisten_addr = 127.0.0.1, ::1\nlisten_port = 7000\npool_mode = transaction\n\
                max_client_conn = 7\ndefault_pool_size = 8\nmin_pool_size = 2\nreserve_pool_size = 3\n\
                reserve_pool_timeout = 1.5\nmax_db_connections = 4\nquery_wait_timeout = 0\nserver_lifetime = 0\n\
                query_timeout = 9\nunix_socket_dir =\npidfile = /run/x.pid\nlogfile = /var/log/x\n\
                unix_socket_mode = 0700\nverbose = 1\n[databases]\nd = host=h\n";
    let (config, _) = read_valid(text);
    let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["127.0.0.1:7000", "[::1]:7000"]);
    assert_eq!(config.pool.mode, PoolMode::Transaction);
    assert_eq!((config.clients.max, config.pool.size), (7, 8));
    assert_eq!((config.pool.min_idle, config.pool.reserve_size), (2, 3));
    assert_eq!(config.pool.reserve_timeout, Duration::from_millis(1500));
    assert_eq!(config.pool.max_per_database, Some(4));
    assert!(config.pool.acquire_timeout > Duration::from_secs(1 << 30));
    assert_eq!(config.pool.max_lifetime, Duration::from_millis(1));
    assert_eq!(
        config.clients.query_timeout.get(),
        Some(Duration::from_secs(9))
    );
    assert_eq!(config.unix_socket_dir, None);
    assert_eq!(config.pid_file.as_deref(), Some(Path::new("/run/x.pid")));
    assert_eq!(config.log.file.as_deref(), Some(Path::new("/var/log/x")));
    assert_eq!(config.unix_socket_mode, 0o700);
    assert_eq!(config.log.level, "debug");
    assert_eq!((config.http, config.hidb.listen.len()), (None, 0));
    let shown = rows(&config);
    let value = |name: &str| {
        shown
            .iter()
            .find(|row| row.name == name)
            .expect(name)
            .value
            .clone()
    };
    assert_eq!(value("query_wait_timeout"), "0");
    assert_eq!(value("reserve_pool_timeout"), "1.5");
    assert_eq!(value("listen_port"), "7000");
}

#[test]
fn databases_and_users_are_taken_over_with_all_their_parameters() {
    let text = format!(
        "{TRUST}unix_socket_dir = /run/p\n[databases]\n\
         a = host=10.0.0.1 port=6000 dbname=real user='o''hara' password='p@ ss' pool_size=3 min_pool_size=1 \
         reserve_pool=2 max_db_connections=9 max_db_client_connections=0 server_lifetime=60 pool_mode=statement \
         connect_query='SELECT 1; SELECT 2' timezone='Europe/Berlin' datestyle='ISO, DMY' application_name=x\n\
         b =\n\"c d\" = host=/tmp port=5433\n* = host=::1\n[users]\nu = pool_mode=session \
         max_user_connections = 5 query_timeout=1 client_idle_timeout=0\n"
    );
    let (config, _) = read_valid(&text);
    let url = |name: &str| config.databases[name].url.clone().expect("a place");
    assert_eq!(
        url("a"),
        "postgres://o%27hara:p%40%20ss@10.0.0.1:6000/real?application_name=x&options=\
         -c%20timezone%3DEurope%2FBerlin%20-c%20datestyle%3DISO%2C%5C%20DMY"
    );
    assert_eq!(url("b"), "postgres:///?host=%2Frun%2Fp");
    assert_eq!(url("c d"), "postgres:///?host=%2Ftmp&port=5433");
    assert_eq!(url("*"), "postgres://[::1]");
    let a = &config.databases["a"];
    assert_eq!(
        (a.pool_size, a.min_idle, a.reserve_size),
        (Some(3), Some(1), Some(2))
    );
    assert_eq!((a.max_connections, a.max_clients), (Some(9), None));
    assert_eq!(a.max_lifetime, Some(Duration::from_secs(60)));
    assert_eq!(a.pool_mode, Some(PoolMode::Statement));
    assert_eq!(a.connect_query.as_deref(), Some("SELECT 1; SELECT 2"));
    let u = &config.users["u"];
    assert_eq!(
        (u.pool_mode, u.max_connections),
        (Some(PoolMode::Session), Some(5))
    );
    assert_eq!(
        u.query_timeout,
        Some(super::super::Bound::At(Duration::from_secs(1)))
    );
    assert_eq!(u.idle_timeout, Some(super::super::Bound::Off));
}

#[test]
fn authentication_and_encryption_are_taken_over() {
    let text = "[pgbouncer]\nauth_type = scram-sha-256\nauth_file = /etc/users\nauth_user = asker\n\
                auth_query = SELECT a, b FROM c($1)\nauth_dbname = d\nadmin_users = a, b\nstats_users = c\n\
                client_tls_sslmode = verify-full\nclient_tls_key_file = /k\nclient_tls_cert_file = /c\n\
                client_tls_ca_file = /a\nclient_tls_protocols = tlsv1.3\nserver_tls_sslmode = verify-ca\n\
                server_tls_ca_file = /s a\nlisten_addr = 0.0.0.0\n[databases]\nd = host=h\n";
    let (config, _) = read(text, "f.ini", &mut none).expect("readable");
    let (auth, tls) = (&config.auth, &config.tls);
    assert_eq!(auth.kind, AuthType::ScramSha256);
    assert_eq!(auth.file.as_deref(), Some(Path::new("/etc/users")));
    assert_eq!(auth.query_user.as_deref(), Some("asker"));
    assert_eq!(auth.query.as_deref(), Some("SELECT a, b FROM c($1)"));
    assert_eq!(auth.query_database.as_deref(), Some("d"));
    assert_eq!(auth.admin_users, ["a", "b"]);
    assert_eq!(auth.stats_users, ["c"]);
    assert!(!config.clients.allow_remote_trust);
    assert_eq!(tls.mode, super::super::TlsMode::VerifyFull);
    assert_eq!(tls.min_version, super::super::MinVersion::Tls13);
    assert_eq!(tls.ca.as_deref(), Some(Path::new("/a")));
    let url = config.databases["d"].url.as_deref();
    assert_eq!(
        url,
        Some("postgres://h?sslmode=verify-ca&sslrootcert=%2Fs%20a")
    );
    // Without auth_user nobody is asked.
    let (config, _) =
        read(&text.replace("auth_user", ";auth_user"), "f.ini", &mut none).expect("readable");
    assert_eq!(config.auth.asking(None), None);
}

#[test]
fn a_database_has_its_users_asked_for_in_its_own_way() {
    let text = "[pgbouncer]\nauth_type = md5\nauth_query = SELECT 1\n[databases]\n\
                own = host=h auth_user=asker auth_query='SELECT a, b FROM c($1, ''x'')' auth_dbname=other\n\
                nobody = host=h auth_query='SELECT a, b FROM c($1)'\nother = host=h auth_user=\n";
    let (config, _) = read_valid(text);
    let asking = |name: &str| config.auth.asking(config.databases.get(name));
    let own = asking("own").expect("asked");
    assert_eq!(own.query, Some("SELECT a, b FROM c($1, 'x')"));
    assert_eq!((own.user, own.database), (Some("asker"), Some("other")));
    assert_eq!(asking("nobody"), None);
    assert_eq!(asking("other"), None);
    // With one for all, it is that one where a database names none.
    let changed = set(&config, "auth_user", "general")
        .expect("known")
        .expect("valid");
    let asking = |name: &str| changed.auth.asking(changed.databases.get(name));
    assert_eq!(asking("own").and_then(|asking| asking.user), Some("asker"));
    assert_eq!(
        asking("nobody").and_then(|asking| asking.user),
        Some("general")
    );
    assert_eq!(asking("other"), None);
    let error = set(&config, "auth_dbname", "pgbouncer").expect("known");
    assert_eq!(
        error.expect_err("refused"),
        "cannot use the reserved \"pgbouncer\" database as an auth_dbname"
    );
}

#[test]
fn keys_for_tls_to_servers_are_set_one_after_the_other() {
    let text = TRUST.to_owned() + "server_tls_sslmode = verify-full\n";
    let (mut config, _) = read_valid(&text.replace("[databases]", "[databases]\ne = host=h\n"));
    let url = |config: &Config| config.databases["d"].url.clone().expect("a place");
    // PgBouncer goes by the system's then, too.
    assert_eq!(
        url(&config),
        "postgres://h?sslmode=verify-full&sslrootcert=system"
    );
    for (key, value, parameters) in [
        (
            "server_tls_ca_file",
            "/a",
            "sslmode=verify-full&sslrootcert=%2Fa",
        ),
        (
            "server_tls_key_file",
            "/k",
            "sslmode=verify-full&sslrootcert=%2Fa&sslkey=%2Fk",
        ),
        (
            "server_tls_cert_file",
            "/c",
            "sslmode=verify-full&sslrootcert=%2Fa&sslkey=%2Fk&sslcert=%2Fc",
        ),
        (
            "server_tls_cert_file",
            "",
            "sslmode=verify-full&sslrootcert=%2Fa&sslkey=%2Fk",
        ),
        (
            "server_tls_key_file",
            "",
            "sslmode=verify-full&sslrootcert=%2Fa",
        ),
        (
            "server_tls_ca_file",
            "",
            "sslmode=verify-full&sslrootcert=system",
        ),
        ("server_tls_sslmode", "require", "sslmode=require"),
    ] {
        config = set(&config, key, value).expect("known").expect("valid");
        assert_eq!(url(&config), format!("postgres://h?{parameters}"));
        let shown = rows(&config).into_iter().find(|row| row.name == key);
        assert_eq!(shown.expect("shown").value, value);
    }
    let refused = set(&config, "server_tls_cert_file", "/c").expect("known");
    let refused = refused.expect_err("a certificate alone");
    assert!(refused.contains("sslkey"), "{refused}");
}

#[test]
fn several_hosts_are_one_url() {
    let url = |more: &str| {
        let text = TRUST.replace("host=h", &format!("host=a,::1 port=1 {more}"));
        let (config, notes) = read_valid(&text);
        assert!(notes.iter().any(|note| note.key == "databases.d.host"));
        config.databases["d"].url.clone().expect("a place")
    };
    assert_eq!(url("load_balance_hosts=disable"), "postgres://a:1,[::1]:1");
    assert_eq!(
        url(""),
        "postgres://a:1,[::1]:1?load_balance_hosts=round-robin"
    );
}

#[test]
fn what_cannot_work_is_refused_with_its_line() {
    for (more, error) in [
        (
            "defalt_pool_size = 3",
            "f.ini:5:1: unknown parameter defalt_pool_size; did you mean default_pool_size?",
        ),
        (
            "pool_mode = never",
            "f.ini:5:1: pool_mode: \"never\" is none of session",
        ),
        (
            "server_lifetime = soon",
            "f.ini:5:1: server_lifetime: \"soon\" is not a number of seconds",
        ),
        (
            "server_lifetime = -1",
            "f.ini:5:1: server_lifetime: \"-1\" is not a number of seconds",
        ),
        ("disable_pqexec = 1", "f.ini:5:1: disable_pqexec = 1: "),
        ("user = nobody", "f.ini:5:1: user = nobody: "),
        (
            "auth_type = ldap",
            "f.ini:5:1: auth_type: ldap is not supported",
        ),
        ("client_tls_sslmode = require", "tls.certificate = \"\": "),
        (
            "client_tls_protocols = tlsv1.4",
            "f.ini:5:1: client_tls_protocols: ",
        ),
        ("auth_type = md5", "auth.type = md5: needs auth.file"),
        (
            "auth_type = mad5",
            "f.ini:5:1: auth_type: \"mad5\" is none of",
        ),
        (
            "[databases]\nx = hots=h",
            "f.ini:6:1: x: unknown connection parameter hots; did you mean host?",
        ),
        (
            "[databases]\nx = pool_size=many",
            "f.ini:6:1: x: pool_size: \"many\" is not a number",
        ),
        (
            "[databases]\npgbouncer = host=h",
            "f.ini:6:1: pgbouncer: is the admin console's name",
        ),
        (
            "[users]\nu = pool_mod=session",
            "f.ini:6:1: u: unknown user parameter pool_mod; did you mean pool_mode?",
        ),
        (
            "[user]\nu =",
            "f.ini:6:1: unknown section user; did you mean users?",
        ),
        (
            "[helios]\ncache.enabeld = false",
            "f.ini:6:1: unknown key cache.enabeld; did you mean cache.enabled?",
        ),
        ("[helios]\ncache.size = 5", "f.ini:6:1: cache.size: "),
        ("%include more.ini", "f.ini:5:1: cannot read more.ini"),
        ("default_pool_size = 0", "pool.size = 0: "),
    ] {
        let told = refused(&format!("{TRUST}{more}\n"));
        assert!(told.starts_with(error), "{more}: {told}");
    }
    let told = refused("[databases]\nd = host=h\n[pgbouncer]\n");
    assert!(told.starts_with("auth.type = md5: needs"), "{told}");
    let told = refused("[pgbouncer]\nauth_type = trust\n");
    assert!(told.starts_with("[databases] = none: "), "{told}");
}

#[test]
fn the_last_line_counts_and_helios_keys_go_over_all() {
    let text = format!(
        "{TRUST}default_pool_size = 3\ndefault_pool_size = 4\nauth_type = md5\nauth_type = trust\n[helios]\n\
         cache.enabled = false\nhttp = 127.0.0.1:6480\ncache.eviction = \"lfu\"\n"
    );
    let (config, notes) = read_valid(&text);
    assert_eq!(config.pool.size, 4);
    assert!(!config.cache.enabled);
    assert_eq!(config.http.map(|http| http.port()), Some(6480));
    assert_eq!(config.cache.eviction, super::super::Eviction::Lfu);
    assert!(notes.iter().all(|note| note.key != "cache.enabled"));
}

#[test]
fn a_migrated_file_means_the_same() {
    let text = format!(
        "{TRUST}listen_addr = *\npool_mode = transaction\nquery_timeout = 1.5\nlogfile = /var/log/x\n[databases]\n\
         \"a.b \"\"c\" = host=h user=u password='q\"''x' connect_query='SET a = ''b''' pool_size=2\n* = host=k\n[users]\n\
         \"u v\" = pool_mode=session idle_transaction_timeout=3\n[helios]\nhidb.listen = [\"127.0.0.1:7\", \"[::1]:7\"]\n"
    );
    let (config, notes) = read_valid(&text);
    let toml = to_toml(&config, &notes);
    let again = Config::parse(&toml, "helios.toml").expect(&toml);
    assert_eq!(again, config, "{toml}");
    assert!(
        toml.contains("# f.ini:5: listen_addr: * is 0.0.0.0"),
        "{toml}"
    );
    // The defaults that are helios's own are not there.
    assert!(!toml.contains("eviction"), "{toml}");
}

#[test]
fn single_keys_are_set_under_both_names() {
    let (config, _) = read_valid(TRUST);
    let ok = |changed: Option<Result<Config, String>>| changed.expect("known").expect("valid");
    assert_eq!(ok(set(&config, "default_pool_size", "7")).pool.size, 7);
    assert_eq!(
        ok(config.with("pool.mode", "transaction")).pool.mode,
        PoolMode::Transaction
    );
    assert_eq!(ok(config.with("pool.size", "9")).pool.size, 9);
    // Everything else stays.
    let mut expected = config.clone();
    expected.pool.size = 9;
    assert_eq!(ok(config.with("pool.size", "9")), expected);
    assert_eq!(ok(set(&config, "log_pooler_errors", "0")), config);
    assert!(set(&config, "no_such", "1").is_none() && config.with("no.such", "1").is_none());
    assert!(set(&config, "listen_port", "1").expect("known").is_err());
    assert!(
        set(&config, "default_pool_size", "0")
            .expect("known")
            .is_err()
    );
    assert!(config.with("pool.size", "many").expect("known").is_err());
}

/// Values that keys take, and some that they don't.
const VALUES: &[&str] = &[
    "",
    "0",
    "1",
    "-1",
    "1.5",
    "20",
    "99999999999",
    "on",
    "off",
    "no",
    "*",
    "any",
    "md5",
    "trust",
    "hba",
    "session",
    "transaction",
    "statement",
    "require",
    "verify-full",
    "tcp",
    "a, b",
    "127.0.0.1, ::1",
    "'",
    "\"",
    "x y",
    "/no/such/file",
    "\u{e9}",
    "= =",
    "%include",
    "select 1",
    "geqo, work_mem",
];

/// What stands in connection strings; behind the first [`VALID`] of them, what should not.
const CONNECTIONS: &[&str] = &[
    "host=h",
    "host=h,k",
    "host='/run/pg'",
    "port=5433",
    "dbname=d",
    "dbname='a ''b'",
    "user=u",
    "password='q x'",
    "pool_size=2",
    "reserve_pool_size=1",
    "pool_mode=session",
    "connect_query='SET a = 1'",
    "auth_user=a",
    "max_db_connections=3",
    "load_balance_hosts=disable",
    "client_encoding=utf8",
    "timezone='UTC'",
    "password=''",
    "port=0",
    "port=x",
    "pool_size=-2",
    "pool_mode=never",
    "'",
    "=",
    "host=",
    "nosuch=1",
];
const VALID: usize = 15;

/// Mostly what a file holds, so that most files are accepted: one bad line refuses all of it.
fn line() -> impl Strategy<Value = String> {
    let keys: Vec<_> = KEYS.iter().map(|key| (key.name, key.default)).collect();
    let key = select(keys.clone());
    let connection = proptest::collection::vec(select(CONNECTIONS), 0..3);
    let name = select(vec!["d", "*", "\"a \"\"b\"", "a.b", "\"", "pgbouncer", ""]);
    prop_oneof![
        8 => select(keys).prop_map(|(key, default)| format!("{key} = {default}")),
        2 => (key, select(VALUES)).prop_map(|((key, _), value)| format!("{key} = {value}")),
        2 => (name, connection).prop_map(|(name, parts)| format!("{name} = {}", parts.join(" "))),
        4 => select(vec!["", ";x", "# x"]).prop_map(str::to_owned),
        1 => select(vec!["[databases]", "[pgbouncer]", "[users]", "[helios]", "[peers]", "["])
            .prop_map(str::to_owned),
        1 => "[ -~\u{a0}-\u{ff}\t]{0,12}",
    ]
}

fn database() -> impl Strategy<Value = String> {
    let name = select(vec!["d", "*", "\"a \"\"b\"", "a.b"]);
    let part = prop_oneof![9 => select(&CONNECTIONS[..VALID]), 1 => select(CONNECTIONS)];
    (name, proptest::collection::vec(part, 0..4))
        .prop_map(|(name, parts)| format!("{name} = {}", parts.join(" ")))
}

proptest! {
    #[test]
    fn any_file_is_refused_or_means_the_same_as_a_helios_toml(
        general in proptest::collection::vec(line(), 0..6),
        databases in proptest::collection::vec(database(), 0..3),
    ) {
        let text = format!("{TRUST}{}\n[databases]\n{}\n", general.join("\n"), databases.join("\n"));
        let read = read(&text, "f.ini", &mut none);
        // Refused: that it does not panic is all. Of those that are not there have to be enough.
        prop_assume!(read.is_ok());
        let Ok((config, notes)) = read else { unreachable!() };
        let toml = to_toml(&config, &notes);
        let again = Config::parse(&toml, "helios.toml");
        prop_assert_eq!(again, Ok(config), "{}\n{}", text, toml);
    }
}
