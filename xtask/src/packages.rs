//! What is needed from the system, and how to get it.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::bail;

use crate::libclang;
use crate::steps::run;

/// Something that cargo can't fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Libclang,
    Openssl,
    Pgbench,
    Pgbouncer,
    Pgpool,
    Postgres,
    PythonVenv,
    Redis,
    Socat,
}

impl Need {
    /// What it is for, in words.
    fn purpose(self) -> &'static str {
        match self {
            Self::Libclang => "libclang, to build the SQL parser",
            Self::Openssl => "openssl, to make certificates for tests",
            Self::Pgbench => "pgbench and psql, for load and as clients",
            Self::Pgbouncer => "PgBouncer, to measure against",
            Self::Pgpool => "pgpool-II, to measure against",
            Self::Postgres => "a PostgreSQL server, to test against",
            Self::PythonVenv => "Python's venv, to test a Python driver",
            Self::Redis => "a Redis server, to test against",
            Self::Socat => "socat, to cut connections in tests",
        }
    }

    fn is_there(self) -> bool {
        match self {
            Self::Libclang => libclang::is_there(),
            Self::Openssl => has_programs(&["openssl"]),
            Self::Pgbench => has_programs(&["pgbench", "psql"]),
            Self::Pgbouncer => has_programs(&["pgbouncer"]),
            Self::Pgpool => has_programs(&["pgpool"]),
            Self::Postgres => has_programs(&["initdb", "postgres"]),
            Self::PythonVenv => succeeds("python3", &["-c", "import venv, ensurepip"]),
            Self::Redis => has_programs(&["redis-server"]),
            Self::Socat => has_programs(&["socat"]),
        }
    }

    /// The package that holds it, if the manager has one.
    fn package(self, manager: Manager) -> Option<&'static str> {
        use Manager::{Apk, Apt, Brew, Dnf, Pacman, Zypper};
        Some(match (self, manager) {
            (Self::Libclang, Apt) => "libclang-dev",
            (Self::Libclang, Dnf | Zypper) => "clang-devel",
            (Self::Libclang, Pacman) => "clang",
            (Self::Libclang, Apk) => "clang-dev",
            (Self::Libclang, Brew) => "llvm",
            (Self::Postgres, Dnf | Zypper) => "postgresql-server",
            (Self::Pgbench, Dnf | Zypper | Apk) => "postgresql-contrib",
            (Self::Postgres | Self::Pgbench, Brew) => "postgresql@17",
            (Self::Postgres | Self::Pgbench, _) => "postgresql",
            (Self::Redis, Apt) => "redis-server",
            (Self::Redis, _) => "redis",
            (Self::PythonVenv, Apt) => "python3-venv",
            (Self::PythonVenv, Dnf | Zypper | Apk) => "python3",
            (Self::PythonVenv, Pacman | Brew) => "python",
            (Self::Openssl, _) => "openssl",
            (Self::Pgbouncer, _) => "pgbouncer",
            (Self::Socat, _) => "socat",
            (Self::Pgpool, Apt) => "pgpool2",
            (Self::Pgpool, Dnf | Zypper) => "pgpool-II",
            (Self::Pgpool, Apk) => "pgpool",
            (Self::Pgpool, Brew) => "pgpool-ii",
            (Self::Pgpool, Pacman) => return None,
        })
    }
}

/// A package manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manager {
    Apk,
    Apt,
    Brew,
    Dnf,
    Pacman,
    Zypper,
}

impl Manager {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Apt, "apt-get"),
        (Self::Dnf, "dnf"),
        (Self::Pacman, "pacman"),
        (Self::Zypper, "zypper"),
        (Self::Apk, "apk"),
        (Self::Brew, "brew"),
    ];

    fn detect() -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|(_, program)| has_programs(&[program]))
            .map(|(manager, _)| manager)
    }

    /// The words that install packages without a question.
    fn install(self) -> &'static str {
        match self {
            Self::Apk => "apk add",
            Self::Apt => "apt-get install -y --no-install-recommends",
            Self::Brew => "brew install",
            Self::Dnf => "dnf install -y",
            Self::Pacman => "pacman -S --noconfirm --needed",
            Self::Zypper => "zypper --non-interactive install",
        }
    }

    /// What a fresh image, without lists of packages, needs first.
    fn refresh(self) -> Option<&'static str> {
        match self {
            Self::Apk => Some("apk update"),
            Self::Apt => Some("apt-get update"),
            Self::Pacman => Some("pacman -Sy"),
            Self::Brew | Self::Dnf | Self::Zypper => None,
        }
    }
}

/// Installs what is lacking, or says what to type where it may not.
pub(crate) fn ensure(needs: &[Need]) -> anyhow::Result<()> {
    let lacking = lacking(needs);
    if lacking.is_empty() {
        return Ok(());
    }
    let purposes = purposes(&lacking);
    let Some(manager) = Manager::detect() else {
        bail!(
            "needed and not found: {purposes}. No known package manager is here: install them by hand"
        );
    };
    let install = install_command(manager, &lacking)?;
    let Some(mut command) = privileged(manager, &script(manager, &install)) else {
        let refresh = manager
            .refresh()
            .map(|refresh| format!("sudo {refresh} && "));
        bail!(
            "needed and not found: {purposes}. Type:\n\n    {}sudo {install}\n",
            refresh.unwrap_or_default()
        );
    };
    println!("xtask: needed and not found: {purposes}");
    println!("xtask: installing by: {install}");
    if manager == Manager::Apt {
        println!(
            "xtask: (services are not started, and no PostgreSQL cluster is made: the tests make their own)"
        );
    }
    run(&mut command)?;
    let still = self::lacking(&lacking);
    if !still.is_empty() {
        bail!(
            "still not found after the installation: {}",
            self::purposes(&still)
        );
    }
    Ok(())
}

/// Installs what it can of that which is good to have, and says what has to be done without.
pub(crate) fn offer(needs: &[Need]) {
    for need in needs {
        if let Err(error) = ensure(&[*need]) {
            println!("xtask: going on without it: {error:#}");
        }
    }
}

fn lacking(needs: &[Need]) -> Vec<Need> {
    needs
        .iter()
        .copied()
        .filter(|need| !need.is_there())
        .collect()
}

fn purposes(needs: &[Need]) -> String {
    let purposes: Vec<&str> = needs.iter().map(|need| need.purpose()).collect();
    purposes.join("; ")
}

fn install_command(manager: Manager, lacking: &[Need]) -> anyhow::Result<String> {
    let mut packages: Vec<&str> = Vec::new();
    for need in lacking {
        let Some(package) = need.package(manager) else {
            bail!(
                "needed and not found: {}. No package of it is known here: install it by hand",
                need.purpose()
            );
        };
        if !packages.contains(&package) {
            packages.push(package);
        }
    }
    Ok(format!("{} {}", manager.install(), packages.join(" ")))
}

/// Installs, with fresh lists of packages if it does not work with those that are there.
fn script(manager: Manager, install: &str) -> String {
    let install = match manager.refresh() {
        Some(refresh) => format!("{install} || {{ {refresh} && {install}; }}"),
        None => install.to_owned(),
    };
    if manager == Manager::Apt {
        format!("{DEBIAN_QUIETLY}\n{install}")
    } else {
        install
    }
}

/// Debian starts what it installs, and makes a PostgreSQL cluster on port 5432. For the time of the installation both
/// are switched off, by the means that Debian has for it; what is there already stays as it is.
const DEBIAN_QUIETLY: &str = "\
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
cluster=/etc/postgresql-common/createcluster.d/helios.conf
made=
trap 'rm -f $made' EXIT
trap 'exit 1' HUP INT TERM
if [ ! -e $policy ]; then
    made=$policy
    printf '#!/bin/sh\\nexit 101\\n' >$policy && chmod 755 $policy
fi
mkdir -p ${cluster%/*}
made=\"$made $cluster\"
echo 'create_main_cluster = false' >$cluster";

/// The shell script with the rights it needs; `None` if they can't be had.
fn privileged(manager: Manager, script: &str) -> Option<Command> {
    let with = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).arg(script);
        Some(command)
    };
    if manager == Manager::Brew || is_root() {
        with("sh", &["-c"])
    } else if succeeds("sudo", &["-n", "true"]) {
        with("sudo", &["-n", "sh", "-c"])
    } else if has_programs(&["sudo"]) && std::io::stdin().is_terminal() {
        with(
            "sudo",
            &["-p", "xtask: sudo's password, to install: ", "sh", "-c"],
        )
    } else {
        None
    }
}

pub(crate) fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// The folder that holds the program, of the places where programs are.
pub(crate) fn folder_of(program: &str) -> Option<PathBuf> {
    let mut folders = program_folders().into_iter();
    folders.find(|folder| folder.join(program).is_file())
}

/// Whether each of these programs is somewhere where programs are.
fn has_programs(programs: &[&str]) -> bool {
    let folders = program_folders();
    programs
        .iter()
        .all(|program| folders.iter().any(|folder| folder.join(program).is_file()))
}

/// The PATH, and where servers are that are not on it.
fn program_folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let named = std::env::var_os("HELIOS_PG_BIN").map(PathBuf::from);
    let versions = ["/usr/lib/postgresql", "/usr"]
        .into_iter()
        .flat_map(std::fs::read_dir)
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"));
    let fixed = [
        "/usr/sbin",
        "/usr/local/sbin",
        "/opt/homebrew/opt/postgresql@17/bin",
        "/usr/local/opt/postgresql@17/bin",
    ];
    std::env::split_paths(&path)
        .chain(named)
        .chain(versions)
        .chain(fixed.map(PathBuf::from))
        .filter(|folder| folder != Path::new(""))
        .collect()
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_package_is_named_once() {
        let needs = [Need::Postgres, Need::Pgbench, Need::Libclang];
        assert_eq!(
            install_command(Manager::Apt, &needs).expect("packages of all"),
            "apt-get install -y --no-install-recommends postgresql libclang-dev"
        );
    }

    #[test]
    fn what_has_no_package_is_said() {
        let error = install_command(Manager::Pacman, &[Need::Redis, Need::Pgpool])
            .expect_err("there is none");
        assert!(error.to_string().contains("pgpool-II"), "{error}");
    }

    #[test]
    fn stale_lists_are_refreshed_and_debian_is_kept_quiet() {
        assert_eq!(
            script(Manager::Apk, "apk add x"),
            "apk add x || { apk update && apk add x; }"
        );
        assert_eq!(script(Manager::Dnf, "dnf install x"), "dnf install x");
        let debian = script(Manager::Apt, "true");
        assert!(debian.contains("policy-rc.d") && debian.contains("create_main_cluster = false"));
        assert!(succeeds("sh", &["-n", "-c", &debian]), "{debian}");
    }

    #[test]
    fn debian_is_as_it_was_afterwards() {
        let folder = std::env::temp_dir().join(format!("xtask-test-{}", std::process::id()));
        let inside = |name: &str| folder.join(name);
        let quietly = DEBIAN_QUIETLY
            .replace("/usr/sbin/", &format!("{}/sbin/", folder.display()))
            .replace("/etc/", &format!("{}/etc/", folder.display()));
        let works = |install: &str| succeeds("sh", &["-c", &format!("{quietly}\n{install}")]);
        std::fs::create_dir_all(inside("sbin")).expect("a folder");
        let (policy, clusters) = (
            inside("sbin/policy-rc.d"),
            inside("etc/postgresql-common/createcluster.d"),
        );
        let during = format!(
            "! {0} && test \"$(cat {1}/*)\" = 'create_main_cluster = false'",
            policy.display(),
            clusters.display()
        );
        assert!(works(&during), "switched off");
        assert!(!works("false"), "failures show");
        assert!(!policy.exists());
        assert_eq!(std::fs::read_dir(&clusters).expect("left").count(), 0);
        // A policy of the machine's own is neither replaced nor removed.
        std::fs::write(&policy, "own").expect("written");
        assert!(works("true"));
        assert_eq!(std::fs::read_to_string(&policy).expect("kept"), "own");
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn a_program_that_is_not_there_is_not_found() {
        assert!(has_programs(&["sh"]));
        assert!(!has_programs(&["sh", "no-such-program-anywhere"]));
        assert!(!succeeds("no-such-program-anywhere", &[]));
    }
}
