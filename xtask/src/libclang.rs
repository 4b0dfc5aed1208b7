//! Where libclang is.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether the build of the SQL parser's bindings can find libclang.
pub(crate) fn is_there() -> bool {
    where_the_build_looks() || elsewhere().is_some()
}

/// The folder to name in `LIBCLANG_PATH`, if libclang is there only for who asks the dynamic linker, which the build
/// doesn't. `None` where the build finds it by itself: naming it all the same would build everything above it again,
/// as soon as somebody uses cargo directly.
pub(crate) fn path_to_name() -> Option<PathBuf> {
    if where_the_build_looks() {
        return None;
    }
    elsewhere()
}

fn where_the_build_looks() -> bool {
    if let Some(named) = std::env::var_os("LIBCLANG_PATH") {
        // It may name the folder or the library.
        let named = Path::new(&named);
        return holds_libclang(named) || named.is_file();
    }
    let llvm_config = std::env::var_os("LLVM_CONFIG_PATH").unwrap_or_else(|| "llvm-config".into());
    let told = Command::new(llvm_config).arg("--libdir").output();
    if let Ok(told) = told
        && let Ok(folder) = std::str::from_utf8(told.stdout.trim_ascii())
        && !folder.is_empty()
        && holds_libclang(Path::new(folder))
    {
        return true;
    }
    let versions = std::fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("llvm"))
        .map(|entry| entry.path().join("lib"));
    let fixed = [
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/opt/homebrew/opt/llvm/lib",
        "/usr/local/opt/llvm/lib",
        "/Library/Developer/CommandLineTools/usr/lib",
    ];
    versions
        .chain(fixed.map(PathBuf::from))
        .any(|folder| holds_libclang(&folder))
}

/// What the dynamic linker knows.
fn elsewhere() -> Option<PathBuf> {
    let listing = ["ldconfig", "/sbin/ldconfig"]
        .into_iter()
        .find_map(|program| Command::new(program).arg("-p").output().ok())?;
    folder_in_listing(&String::from_utf8_lossy(&listing.stdout))
}

/// Lines are like `libclang-14.so.13 (libc6,x86-64) => /opt/llvm/lib/libclang-14.so.13`.
fn folder_in_listing(listing: &str) -> Option<PathBuf> {
    listing.lines().find_map(|line| {
        let (name, path) = line.split_once(" => ")?;
        let name = name.split_whitespace().next()?;
        let folder = Path::new(path.trim()).parent()?;
        is_libclang(name).then(|| folder.to_owned())
    })
}

fn holds_libclang(folder: &Path) -> bool {
    let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.any(|entry| is_libclang(&entry.file_name().to_string_lossy()))
}

/// `libclang.so`, `libclang.so.13`, `libclang-14.so.1`; not `libclang-cpp.so`, which is another library.
fn is_libclang(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("libclang") else {
        return false;
    };
    let version = rest.strip_prefix('-').unwrap_or(rest);
    let is_versioned = version.starts_with(|first: char| first.is_ascii_digit());
    rest == ".dylib" || rest.starts_with(".so") || is_versioned && version.contains(".so")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libclang_is_told_from_its_neighbours() {
        for name in [
            "libclang.so",
            "libclang.so.13",
            "libclang-14.so.1",
            "libclang-14.0.6.so",
            "libclang.dylib",
        ] {
            assert!(is_libclang(name), "{name}");
        }
        for name in [
            "libclang-cpp.so.14",
            "libclangAST.so",
            "libclang_rt.asan.so",
            "libclang.a",
            "clang.so",
        ] {
            assert!(!is_libclang(name), "{name}");
        }
    }

    #[test]
    fn the_linkers_list_is_read() {
        let listing = "2 libs found in cache `/etc/ld.so.cache'\n\
                       \tlibclang-cpp.so.14 (libc6,x86-64) => /lib/libclang-cpp.so.14\n\
                       \tlibclang-14.so.13 (libc6,x86-64) => /opt/llvm/lib/libclang-14.so.13\n";
        assert_eq!(folder_in_listing(listing), Some("/opt/llvm/lib".into()));
        assert_eq!(folder_in_listing(""), None);
    }
}
