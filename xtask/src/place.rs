//! Where a suite runs, as whom, and with what.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::packages;
use crate::steps::{run, target_dir};

/// A folder of the user that the suite runs as: PostgreSQL refuses root.
#[derive(Debug)]
pub(crate) struct Place {
    folder: PathBuf,
    /// User and group; `None` if we are not root.
    identity: Option<(u32, u32)>,
}

impl Place {
    /// The folder is in `target`.
    pub(crate) fn make(name: &str) -> anyhow::Result<Self> {
        let place = Self {
            folder: target_dir().join(name),
            identity: unprivileged()?,
        };
        std::fs::create_dir_all(&place.folder)?;
        place.hand_over(&place.folder)?;
        // The programs of tests that hang for want of rights are hard to tell from others.
        run(&mut place.command(Path::new("true"))).with_context(|| {
            format!(
                "the user that the suite runs as can't use {}: a folder above it is closed to others. Set CARGO_TARGET_DIR to one \
                 that is not",
                place.folder.display()
            )
        })?;
        Ok(place)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command in the folder, as its user.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.folder)
            .env("HOME", &self.folder)
            .env("LANG", "C.UTF-8");
        // What is set for us is not meant for the helios under test.
        for (name, _) in std::env::vars_os() {
            let is_ours = name.to_string_lossy().starts_with("HELIOS_");
            if is_ours || name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        #[cfg(unix)]
        if let Some((user, group)) = self.identity {
            use std::os::unix::process::CommandExt as _;
            command.uid(user).gid(group);
        }
        command
    }

    /// A copy of parts of a source, since the tests write into it.
    pub(crate) fn copy(
        &self,
        source: &Path,
        name: &str,
        parts: &[&str],
    ) -> anyhow::Result<PathBuf> {
        let copy = self.path(name);
        if copy.exists() {
            std::fs::remove_dir_all(&copy)?;
        }
        std::fs::create_dir(&copy)?;
        self.hand_over(&copy)?;
        for part in parts {
            let mut command = self.command(Path::new("cp"));
            run(command.arg("-R").arg(source.join(part)).arg(&copy))?;
        }
        Ok(copy)
    }

    /// Python with what the suite imports.
    pub(crate) fn python(&self, packages: &[&str]) -> anyhow::Result<PathBuf> {
        let python = self.path("venv/bin/python");
        let made_for = self.path("venv/packages");
        let wanted = packages.join("\n");
        if std::fs::read_to_string(&made_for).is_ok_and(|had| had == wanted) {
            return Ok(python);
        }
        let mut venv = self.command(Path::new("python3"));
        run(venv.args(["-m", "venv", "--clear"]).arg(self.path("venv")))
            .context("there is no python3 with venv that the user of the suite may run")?;
        let mut pip = self.command(&python);
        run(pip
            .args(["-m", "pip", "install", "--quiet"])
            .args(["--disable-pip-version-check", "--no-cache-dir"])
            .args(packages))?;
        std::fs::write(made_for, wanted)?;
        Ok(python)
    }

    /// Writes a file, and one that can be run if it is a script.
    pub(crate) fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, text)?;
        #[cfg(unix)]
        if text.starts_with("#!") {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        }
        Ok(path)
    }

    /// The PATH with the suite's own programs first, then PostgreSQL's.
    pub(crate) fn search_path(&self) -> anyhow::Result<OsString> {
        let servers = packages::folder_of("initdb").context("initdb is not there")?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = [self.path("bin"), servers];
        let folders = folders.into_iter().chain(std::env::split_paths(&path));
        Ok(std::env::join_paths(folders)?)
    }

    #[cfg(unix)]
    fn hand_over(&self, folder: &Path) -> anyhow::Result<()> {
        if let Some((user, group)) = self.identity {
            std::os::unix::fs::chown(folder, Some(user), Some(group))?;
        }
        Ok(())
    }

    #[cfg(not(unix))]
    fn hand_over(&self, _: &Path) -> anyhow::Result<()> {
        bail!("the suite is run on Unix only: it talks to the console over a Unix socket")
    }
}

/// A user and group to run as, if we are root.
fn unprivileged() -> anyhow::Result<Option<(u32, u32)>> {
    if !packages::is_root() {
        return Ok(None);
    }
    let id = |what: &str, user: &str| -> Option<u32> {
        let output = Command::new("id").args([what, user]).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        text.trim().parse().ok()
    };
    for user in ["postgres", "nobody"] {
        if let (Some(user), Some(group)) = (id("-u", user), id("-g", user)) {
            ensure!(user != 0, "a user that is not root is needed");
            return Ok(Some((user, group)));
        }
    }
    bail!(
        "running as root, and there is neither a user `postgres` nor `nobody` to run the suite as"
    )
}
