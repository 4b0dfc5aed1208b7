//! What is needed from the system, and how to get it.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::bail;

use crate::steps::{run, show};

/// Something that cargo can't fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Libclang,
    Pgbench,
    Pgbouncer,
    Pgpool,
    Postgres,
    PythonVenv,
    Redis,
}

impl Need {
    /// What it is for, in words.
    fn purpose(self) -> &'static str {
        match self {
            Self::Libclang => "libclang, to build the SQL parser",
            Self::Pgbench => "pgbench, for load",
            Self::Pgbouncer => "PgBouncer, to measure against",
            Self::Pgpool => "pgpool-II, to measure against",
            Self::Postgres => "a PostgreSQL server, to test against",
            Self::PythonVenv => "Python's venv, to test a Python driver",
            Self::Redis => "a Redis server, to test against",
        }
    }

    fn is_there(self) -> bool {
        match self {
            Self::Libclang => has_libclang(),
            Self::Pgbench => on_path("pgbench") || postgres_folder_has("pgbench"),
            Self::Pgbouncer => on_path("pgbouncer") || Path::new("/usr/sbin/pgbouncer").exists(),
            Self::Pgpool => on_path("pgpool") || Path::new("/usr/sbin/pgpool").exists(),
            Self::Postgres => {
                (on_path("initdb") && on_path("postgres")) || postgres_folder_has("initdb")
            }
            Self::PythonVenv => succeeds("python3", &["-c", "import venv, ensurepip"]),
            Self::Redis => on_path("redis-server"),
        }
    }

    /// The package that holds it.
    fn package(self, manager: Manager) -> &'static str {
        use Manager::{Apk, Apt, Brew, Dnf, Pacman, Zypper};
        match (self, manager) {
            (Self::Libclang, Apt) => "libclang-dev",
            (Self::Libclang, Dnf | Zypper) => "clang-devel",
            (Self::Libclang, Pacman) => "clang",
            (Self::Libclang, Apk) => "clang-dev",
            (Self::Libclang, Brew) => "llvm",
            (Self::Postgres, Apt | Apk | Pacman) => "postgresql",
            (Self::Postgres, Dnf | Zypper) => "postgresql-server",
            (Self::Postgres | Self::Pgbench, Brew) => "postgresql@17",
            (Self::Pgbench, Dnf | Zypper) => "postgresql-contrib",
            (Self::Pgbench, Apk) => "postgresql-contrib",
            (Self::Pgbench, Apt | Pacman) => "postgresql",
            (Self::Redis, Apt) => "redis-server",
            (Self::Redis, _) => "redis",
            (Self::PythonVenv, Apt) => "python3-venv",
            (Self::PythonVenv, Dnf | Zypper | Apk) => "python3",
            (Self::PythonVenv, Pacman | Brew) => "python",
            (Self::Pgbouncer, _) => "pgbouncer",
            (Self::Pgpool, Apt) => "pgpool2",
            (Self::Pgpool, Dnf | Zypper | Apk | Pacman | Brew) => "pgpool-II",
        }
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
            .find(|(_, program)| on_path(program))
            .map(|(manager, _)| manager)
    }

    /// The words that install packages without a question.
    fn install(self) -> &'static [&'static str] {
        match self {
            Self::Apk => &["apk", "add"],
            Self::Apt => &["apt-get", "install", "-y", "--no-install-recommends"],
            Self::Brew => &["brew", "install"],
            Self::Dnf => &["dnf", "install", "-y"],
            Self::Pacman => &["pacman", "-S", "--noconfirm", "--needed"],
            Self::Zypper => &["zypper", "--non-interactive", "install"],
        }
    }
}

/// Installs what is lacking, or says what to type where it may not.
pub(crate) fn ensure(needs: &[Need]) -> anyhow::Result<()> {
    let lacking: Vec<Need> = needs
        .iter()
        .copied()
        .filter(|need| !need.is_there())
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let purposes = lacking
        .iter()
        .map(|need| need.purpose())
        .collect::<Vec<_>>()
        .join("; ");
    let Some(manager) = Manager::detect() else {
        bail!(
            "needed and not found: {purposes}. No known package manager is here: install them by hand"
        );
    };
    let words = install_words(manager, &lacking);
    let Some(mut command) = privileged(manager, &words) else {
        bail!(
            "needed and not found: {purposes}. Type:\n\n    sudo {}\n",
            words.join(" ")
        );
    };
    println!("xtask: needed and not found: {purposes}");
    println!("xtask: installing by: {}", show(&command));
    if manager == Manager::Apt {
        keep_debian_from_starting_a_cluster(&lacking);
        command.env("DEBIAN_FRONTEND", "noninteractive");
    }
    if run(&mut command).is_err() && manager == Manager::Apt {
        // A fresh image has no package lists.
        let update = ["apt-get".to_owned(), "update".to_owned()];
        if let Some(mut update) = privileged(manager, &update) {
            run(&mut update)?;
        }
        run(&mut command)?;
    }
    let still: Vec<&str> = lacking
        .iter()
        .filter(|need| !need.is_there())
        .map(|need| need.purpose())
        .collect();
    if !still.is_empty() {
        bail!(
            "still not found after the installation: {}",
            still.join("; ")
        );
    }
    Ok(())
}

fn install_words(manager: Manager, lacking: &[Need]) -> Vec<String> {
    let mut words: Vec<String> = manager
        .install()
        .iter()
        .map(|word| (*word).to_owned())
        .collect();
    for need in lacking {
        let package = need.package(manager).to_owned();
        if !words.contains(&package) {
            words.push(package);
        }
    }
    words
}

/// The command with the rights it needs; `None` if they can't be had without a question.
fn privileged(manager: Manager, words: &[String]) -> Option<Command> {
    let (program, args) = words.split_first()?;
    if manager == Manager::Brew || is_root() {
        let mut command = Command::new(program);
        command.args(args);
        return Some(command);
    }
    if !succeeds("sudo", &["-n", "true"]) {
        return None;
    }
    let mut command = Command::new("sudo");
    command
        .args(["-n", "--preserve-env=DEBIAN_FRONTEND"])
        .args(words);
    Some(command)
}

/// Debian's package starts a cluster of its own on port 5432 unless told otherwise; the tests make theirs.
fn keep_debian_from_starting_a_cluster(lacking: &[Need]) {
    let folder = Path::new("/etc/postgresql-common");
    let file = folder.join("createcluster.conf");
    if is_root()
        && lacking.contains(&Need::Postgres)
        && !file.exists()
        && std::fs::create_dir_all(folder).is_ok()
    {
        let _ = std::fs::write(file, "create_main_cluster = false\n");
    }
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn has_libclang() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let is_libclang = |name: &str| {
        name.starts_with("libclang.so")
            || name.starts_with("libclang-") && name.contains(".so")
            || name == "libclang.dylib"
    };
    // `libclang-cpp` is another library.
    let holds = |folder: &Path| {
        std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                is_libclang(&name) && !name.starts_with("libclang-cpp")
            })
    };
    let llvm = std::fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("lib"));
    let fixed = [
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
    ];
    let brew = ["/opt/homebrew/opt/llvm/lib", "/usr/local/opt/llvm/lib"];
    llvm.chain(fixed.into_iter().chain(brew).map(Into::into))
        .any(|folder| holds(&folder))
}

fn postgres_folder_has(program: &str) -> bool {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    versions
        .map(|version| version.path().join("bin").join(program))
        .any(|path| path.exists())
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
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
        let words = install_words(
            Manager::Apt,
            &[Need::Postgres, Need::Pgbench, Need::Libclang],
        );
        assert_eq!(
            words,
            [
                "apt-get",
                "install",
                "-y",
                "--no-install-recommends",
                "postgresql",
                "libclang-dev"
            ]
        );
    }

    #[test]
    fn every_manager_knows_every_need() {
        let needs = [
            Need::Libclang,
            Need::Pgbench,
            Need::Pgbouncer,
            Need::Pgpool,
            Need::Postgres,
            Need::PythonVenv,
            Need::Redis,
        ];
        for (manager, _) in Manager::ALL {
            for need in needs {
                assert!(!need.package(manager).is_empty());
            }
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_not_found() {
        assert!(on_path("sh"));
        assert!(!on_path("no-such-program-anywhere"));
        assert!(!succeeds("no-such-program-anywhere", &[]));
    }
}
