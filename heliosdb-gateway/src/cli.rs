//! The command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::pgbouncer::{self, Note};
use crate::config::{Config, ConfigError, parse_http};
use crate::query::QueryOptions;

/// What the program is to do.
#[derive(Debug)]
pub(crate) enum Command {
    Check(Source),
    Explain(Source, String),
    Migrate(Box<(Config, Vec<Note>)>),
    Query(QueryOptions),
    Serve(Source),
}

impl Command {
    /// A client of a gateway has none.
    pub(crate) fn config(&self) -> Option<&Config> {
        match self {
            Self::Check(source) | Self::Explain(source, _) | Self::Serve(source) => {
                Some(&source.config)
            }
            Self::Migrate(_) | Self::Query(_) => None,
        }
    }
}

/// A configuration and where it came from, so that it can be read again.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) config: Config,
    /// What became of the keys of PgBouncer's file, if it is one.
    pub(crate) notes: Vec<Note>,
    options: Options,
}

impl Source {
    fn new(options: Options) -> Result<Self, ConfigError> {
        let (config, notes) = load(&options, Path::new(DEFAULT_FILE))?;
        Ok(Self {
            config,
            notes,
            options,
        })
    }

    /// True where the configuration is PgBouncer's.
    pub(crate) fn is_pgbouncer(&self) -> bool {
        self.options.pgbouncer_ini.is_some()
    }

    /// Reads file, environment and flags again.
    pub(crate) fn reload(&self) -> Result<Config, ConfigError> {
        load(&self.options, Path::new(DEFAULT_FILE)).map(|(config, _)| config)
    }
}

/// Why there is no command.
#[derive(Debug)]
pub(crate) enum CliError {
    Config(ConfigError),
    /// Also `--help` and `--version`.
    Usage(clap::Error),
}

impl CliError {
    /// Tells the user. 2 if something was wrong, 0 if help was asked for.
    pub(crate) fn exit(&self) -> ExitCode {
        match self {
            Self::Config(error) => {
                use std::io::Write as _;
                let _ = writeln!(std::io::stderr(), "helios: {error}");
                ExitCode::from(2)
            }
            Self::Usage(error) => {
                let _ = error.print();
                if error.use_stderr() {
                    ExitCode::from(2)
                } else {
                    ExitCode::SUCCESS
                }
            }
        }
    }
}

/// Reads the command line, and the configuration it leads to.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, CliError> {
    let cli = Cli::try_parse_from(args).map_err(CliError::Usage)?;
    let source = |options| Source::new(options).map_err(CliError::Config);
    Ok(match cli.command {
        Verb::Check { options } => Command::Check(source(options)?),
        Verb::Explain { options, statement } => Command::Explain(source(options)?, statement),
        Verb::Migrate { file } => {
            let (config, notes) = pgbouncer::from_file(&file).map_err(CliError::Config)?;
            config.validate().map_err(CliError::Config)?;
            Command::Migrate(Box::new((config, notes)))
        }
        Verb::Query { options } => Command::Query(options),
        Verb::Serve { options } => Command::Serve(source(options)?),
    })
}

const DEFAULT_FILE: &str = "helios.toml";

/// A gateway for PostgreSQL: thousands of clients share a few server connections, and a repeated read is answered from
/// memory, never stale, with no change to the application.
#[derive(Debug, Parser)]
#[command(name = "helios", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

const EXAMPLES: &str = "\
Examples:
  helios serve                                           embedded PostgreSQL, data in ./helios-data
  helios serve --upstream postgres://app@db:5432/shop    in front of a server
  helios serve --pgbouncer-ini /etc/pgbouncer/pgbouncer.ini   in PgBouncer's place
  helios check                                           is helios.toml valid, does the server answer?
  psql -h 127.0.0.1 -p 6432                              connect to it
  psql -h 127.0.0.1 -p 6432 helios -c 'SHOW CACHE'       the admin console (SHOW HELP lists the rest)
  helios explain 'SELECT * FROM orders'                  would it be cached, and if not, why?
  helios query 'SELECT * FROM orders WHERE id = $1' -p 7 ask a running helios, over HIDB
  kill -HUP PID                                          reload helios.toml

Order of precedence: flags, environment, helios.toml, defaults.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Listen for clients until SIGINT or SIGTERM
    Serve {
        #[command(flatten)]
        options: Options,
    },
    /// Check the configuration, and that the server can be logged in to and its catalog read
    Check {
        #[command(flatten)]
        options: Options,
    },
    /// Say whether a statement would be cached, what its answer depends on, what it writes, or why not
    Explain {
        #[command(flatten)]
        options: Options,
        /// The statement, in quotes
        #[arg(value_name = "SQL")]
        statement: String,
    },
    /// Print the helios.toml that means the same as a pgbouncer.ini, with notes on what has no counterpart
    Migrate {
        /// PgBouncer's configuration file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Ask a running helios over HIDB: one statement, or those that are typed or piped in
    Query {
        #[command(flatten)]
        options: QueryOptions,
    },
}

#[derive(Debug, Clone, Default, Args)]
struct Options {
    /// Configuration file [default: ./helios.toml if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// PgBouncer's configuration file, read instead of a helios.toml, with PgBouncer's defaults
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    pgbouncer_ini: Option<PathBuf>,
    /// Log to the file that the configuration names, and not to standard error
    #[arg(short, long)]
    quiet: bool,
    /// Log more; twice: still more
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Address for PostgreSQL clients; may be repeated [default: 127.0.0.1:6432]
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "HELIOS_LISTEN",
        value_delimiter = ','
    )]
    listen: Vec<SocketAddr>,
    /// Server to stand in front of, postgres://user:password@host:port/database [default: the embedded PostgreSQL]
    #[arg(
        long,
        value_name = "URL",
        env = "HELIOS_UPSTREAM",
        hide_env_values = true
    )]
    upstream: Option<String>,
    /// Folder of the embedded PostgreSQL's data [default: ./helios-data]
    #[arg(long, value_name = "FOLDER", env = "HELIOS_DATA")]
    data: Option<PathBuf>,
    /// Address for /metrics and /health, or "off" [default: 127.0.0.1:6480]
    #[arg(long, value_name = "ADDRESS", env = "HELIOS_HTTP", value_parser = parse_http_flag)]
    http: Option<Http>,
    /// Address for HIDB clients, or "off"; may be repeated [default: 127.0.0.1:6433]
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "HELIOS_HIDB",
        value_delimiter = ',',
        value_parser = parse_http_flag
    )]
    hidb: Vec<Http>,
    /// What is logged: error, warn, info, debug, trace, or a filter [default: info]
    #[arg(long, value_name = "LEVEL", env = "HELIOS_LOG")]
    log: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Http(Option<SocketAddr>);

fn parse_http_flag(text: &str) -> Result<Http, String> {
    parse_http(text).map(Http)
}

fn load(options: &Options, default_file: &Path) -> Result<(Config, Vec<Note>), ConfigError> {
    let mut notes = Vec::new();
    let mut config = match (&options.pgbouncer_ini, &options.config) {
        (Some(file), _) => {
            let config;
            (config, notes) = pgbouncer::from_file(file)?;
            config
        }
        (None, Some(file)) => Config::from_file(file)?,
        (None, None) if default_file.exists() => Config::from_file(default_file)?,
        (None, None) => Config::default(),
    };
    if !options.listen.is_empty() {
        config.listen.clone_from(&options.listen);
    }
    if let Some(url) = &options.upstream {
        config.upstream.url = Some(url.clone());
    }
    if let Some(data) = &options.data {
        config.data.clone_from(data);
    }
    if let Some(Http(http)) = options.http {
        config.http = http;
    }
    if !options.hidb.is_empty() {
        config.hidb.listen = options
            .hidb
            .iter()
            .filter_map(|Http(address)| *address)
            .collect();
    }
    match (&options.log, options.verbose) {
        (Some(level), _) => config.log.level.clone_from(level),
        (None, 0) => {}
        (None, 1) => "debug".clone_into(&mut config.log.level),
        (None, _) => "trace".clone_into(&mut config.log.level),
    }
    if options.quiet {
        config.log.stderr = false;
    }
    config.validate()?;
    Ok((config, notes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &[&str]) -> Options {
        let args = ["helios", "serve"].iter().chain(args);
        match Cli::try_parse_from(args).expect("valid flags").command {
            Verb::Serve { options } => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_go_over_the_file_and_the_file_over_the_defaults() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("helios.toml");
        std::fs::write(
            &file,
            "http = \"off\"\n[pool]\nsize = 3\n[upstream]\nurl = \"postgres://a@b/c\"\n",
        )
        .expect("written");
        let config = load(&options(&["--upstream", "postgres://x@y/z"]), &file)
            .expect("valid")
            .0;
        assert_eq!(config.pool.size, 3);
        assert_eq!(config.http, None);
        assert_eq!(config.upstream.url.as_deref(), Some("postgres://x@y/z"));
        let absent = folder.path().join("absent.toml");
        assert_eq!(
            load(&options(&[]), &absent).expect("defaults").0,
            Config::default()
        );
        let named = options(&["--config", absent.to_str().expect("UTF-8")]);
        assert!(
            load(&named, &file).is_err(),
            "a file that was named must exist"
        );
    }

    #[test]
    fn several_addresses_and_no_metrics() {
        let options = options(&[
            "--listen",
            "127.0.0.1:1",
            "--listen",
            "127.0.0.1:2",
            "--http",
            "off",
            "--hidb",
            "off",
        ]);
        let (config, _) = load(&options, Path::new("/nonexistent")).expect("valid");
        assert_eq!((config.listen.len(), config.hidb.listen.len()), (2, 0));
        assert_eq!(config.http, None);
    }

    #[test]
    fn the_environment_goes_over_the_file_and_flags_over_the_environment() {
        // Only the owner of a process may set its environment safely, so this test runs itself in another one.
        const CHILD: &str = "HELIOS_TEST_CHILD";
        if std::env::var_os(CHILD).is_some() {
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join("helios.toml");
            std::fs::write(
                &file,
                "listen = [\"127.0.0.1:9\"]\ndata = \"file\"\n[log]\nlevel = \"error\"\n",
            )
            .expect("written");
            let (config, _) = load(&options(&["--data", "flag"]), &file).expect("valid");
            assert_eq!(config.listen, ["127.0.0.1:1", "127.0.0.1:2"].map(address));
            assert_eq!(config.http, None);
            assert_eq!(config.upstream.url.as_deref(), Some("postgres://env@h/d"));
            assert_eq!(config.log.level, "debug");
            assert_eq!(config.data, Path::new("flag"));
            return;
        }
        let output = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args([
                "--exact",
                "cli::tests::the_environment_goes_over_the_file_and_flags_over_the_environment",
            ])
            .env(CHILD, "1")
            .env("HELIOS_LISTEN", "127.0.0.1:1,127.0.0.1:2")
            .env("HELIOS_HTTP", "off")
            .env("HELIOS_UPSTREAM", "postgres://env@h/d")
            .env("HELIOS_DATA", "environment")
            .env("HELIOS_LOG", "debug")
            .output()
            .expect("started");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_command_line_is_consistent_and_its_help_names_everything() {
        use clap::CommandFactory as _;
        let mut command = Cli::command();
        command.clone().debug_assert();
        let help = command.render_long_help().to_string();
        for verb in ["serve", "check", "explain", "migrate", "query"] {
            assert!(help.contains(&format!("  {verb}")), "{help}");
        }
        let serve = command
            .find_subcommand_mut("serve")
            .expect("a command")
            .render_long_help()
            .to_string();
        for flag in [
            "config",
            "pgbouncer-ini",
            "quiet",
            "verbose",
            "listen",
            "upstream",
            "data",
            "http",
            "hidb",
            "log",
        ] {
            assert!(serve.contains(&format!("--{flag}")), "{serve}");
        }
        for variable in ["LISTEN", "UPSTREAM", "DATA", "HTTP", "HIDB", "LOG"] {
            assert!(serve.contains(&format!("HELIOS_{variable}")), "{serve}");
        }
    }

    #[test]
    fn a_value_that_cannot_work_is_an_error_of_the_configuration() {
        let args = [
            "helios",
            "check",
            "--http",
            "127.0.0.1:7",
            "--listen",
            "127.0.0.1:7",
        ];
        let error = parse(args.map(OsString::from)).expect_err("one address for two");
        assert!(matches!(error, CliError::Config(_)), "{error:?}");
        let error = parse(["helios", "serve", "--upstraem", "x"].map(OsString::from))
            .expect_err("misspelt");
        assert!(matches!(error, CliError::Usage(_)), "{error:?}");
    }
}
