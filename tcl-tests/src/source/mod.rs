//! SQLite's source with its tests: from Debian's source packages, or from a tarball the user has.
//!
//! Debian's "orig" tarball is the upstream tree with `test/`. Debian's patches are never applied: one of them
//! raises a page size limit and changes results. First step of the path fetch -> build -> run.

mod apt;
mod pin;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

pub use pin::{Pin, pins};

use crate::cache::Cache;

/// An unpacked source tree.
#[derive(Debug, Clone)]
pub struct Source {
    pub version: String,
    pub directory: PathBuf,
}

/// What the user asked for: `3.40.1`, `newest`, or a tarball.
#[derive(Debug, Clone)]
pub enum Request {
    Pinned(String),
    Tarball { file: PathBuf, version: Option<String> },
}

/// Makes sure that the source is unpacked in the cache and returns it.
pub fn fetch(cache: &Cache, request: &Request, mirror: Option<&str>) -> Result<Source> {
    match request {
        Request::Pinned(name) => fetch_pinned(cache, pin::find(name)?, mirror),
        Request::Tarball { file, version } => {
            let tarball = Tarball::open(file, version.as_deref())?;
            unpack(cache, file, &tarball.version, &tarball.name)
        }
    }
}

/// The version that a request stands for, without touching the network.
pub fn resolve(request: &Request) -> Result<String> {
    match request {
        Request::Pinned(name) => Ok(pin::find(name)?.version.to_string()),
        Request::Tarball { file, version } => Ok(Tarball::open(file, version.as_deref())?.name),
    }
}

/// A tarball that the user has.
struct Tarball {
    version: String,
    /// As which version it is known: with a part of its checksum, because a changed tree must not pass for the release that it says it is.
    name: String,
}

impl Tarball {
    /// `expected`: the version that it has to hold.
    fn open(file: &Path, expected: Option<&str>) -> Result<Tarball> {
        let sha256 = sha256(file)?;
        let version = version_in_tarball(file)?;
        if let Some(expected) = expected.filter(|expected| *expected != "newest") {
            ensure!(
                version == expected,
                "{} holds SQLite {version}, not {expected}",
                file.display()
            );
        }
        let name = match pins().iter().any(|pin| pin.sha256 == sha256) {
            true => version.clone(),
            false => format!("{version}-{}", &sha256[..8]),
        };
        Ok(Tarball { version, name })
    }
}

fn fetch_pinned(cache: &Cache, pin: &Pin, mirror: Option<&str>) -> Result<Source> {
    if let Some(source) = unpacked(cache, pin.version) {
        return Ok(source);
    }
    let tarballs = cache.tarballs();
    std::fs::create_dir_all(&tarballs).with_context(|| format!("create {}", tarballs.display()))?;
    let file = tarballs.join(pin.file_name());
    if !file.exists() {
        apt::download(pin, mirror, &tarballs)?;
    }
    let found = sha256(&file)?;
    if found != pin.sha256 {
        // Kept under another name: a wrong file must neither be used nor be downloaded over in silence.
        let rejected = file.with_extension("rejected");
        std::fs::rename(&file, &rejected).with_context(|| format!("rename {}", file.display()))?;
        bail!(
            "{}: sha256 is {found}, pinned is {} (kept as {})",
            file.display(),
            pin.sha256,
            rejected.display()
        );
    }
    unpack(cache, &file, pin.version, pin.version)
}

fn unpacked(cache: &Cache, version: &str) -> Option<Source> {
    let directory = cache.source(version);
    directory.join("test/tester.tcl").exists().then(|| Source {
        version: version.to_string(),
        directory,
    })
}

/// Unpacks next to the final place and renames, so that a tree with the final name is complete.
fn unpack(cache: &Cache, tarball: &Path, version: &str, name: &str) -> Result<Source> {
    if let Some(source) = unpacked(cache, name) {
        return Ok(source);
    }
    let directory = cache.source(name);
    let parent = directory
        .parent()
        .expect("the cache layout puts sources below src");
    std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    let staging = parent.join(format!(".{name}.{}", std::process::id()));
    std::fs::create_dir_all(&staging).with_context(|| format!("create {}", staging.display()))?;
    let status = Command::new("tar")
        .arg("xf")
        .arg(tarball)
        .args(["--strip-components=1", "--no-same-owner", "-C"])
        .arg(&staging)
        .status()
        .context("run tar")?;
    ensure!(status.success(), "tar xf {}: {status}", tarball.display());
    let found = std::fs::read_to_string(staging.join("VERSION")).with_context(|| {
        format!(
            "{}: no VERSION file, is it SQLite's full source tree?",
            tarball.display()
        )
    })?;
    ensure!(
        found.trim() == version,
        "{} holds SQLite {}, not {version}",
        tarball.display(),
        found.trim()
    );
    ensure!(
        staging.join("test/permutations.test").exists(),
        "{} has no test/ directory (the amalgamation cannot be tested)",
        tarball.display()
    );
    std::fs::rename(&staging, &directory).with_context(|| format!("rename to {}", directory.display()))?;
    Ok(Source {
        version: name.to_string(),
        directory,
    })
}

fn version_in_tarball(tarball: &Path) -> Result<String> {
    let output = Command::new("tar")
        .arg("xf")
        .arg(tarball)
        .args(["--wildcards", "--no-wildcards-match-slash", "-O", "*/VERSION"])
        .output()
        .context("run tar")?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_string();
    ensure!(
        !version.is_empty() && version.chars().all(|c| c.is_ascii_digit() || c == '.'),
        "{}: cannot tell SQLite's version: {}",
        tarball.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(version)
}

pub fn sha256(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum")
        .arg("--")
        .arg(file)
        .output()
        .context("run sha256sum")?;
    ensure!(
        output.status.success(),
        "sha256sum {}: {} ({})",
        file.display(),
        String::from_utf8_lossy(&output.stderr).trim(),
        output.status
    );
    let text = String::from_utf8(output.stdout).context("sha256sum's answer")?;
    Ok(text
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .trim_start_matches('\\')
        .to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tarball(directory: &Path, version: &str) -> PathBuf {
        let tree = directory.join("sqlite3");
        std::fs::create_dir_all(tree.join("test")).unwrap();
        std::fs::write(tree.join("VERSION"), format!("{version}\n")).unwrap();
        std::fs::write(tree.join("test/tester.tcl"), "").unwrap();
        std::fs::write(tree.join("test/permutations.test"), "").unwrap();
        let file = directory.join("sqlite.tar");
        let status = Command::new("tar")
            .arg("cf")
            .arg(&file)
            .arg("-C")
            .arg(directory)
            .arg("sqlite3")
            .status()
            .unwrap();
        assert!(status.success());
        file
    }

    #[test]
    fn a_local_tarball_is_unpacked_under_the_version_it_holds() {
        let directory = tempfile::tempdir().unwrap();
        let file = tarball(directory.path(), "3.99.1");
        let cache = Cache::at(directory.path().join("cache"));
        let request = Request::Tarball { file, version: None };
        let name = resolve(&request).unwrap();
        assert!(name.starts_with("3.99.1-"), "{name}");
        let source = fetch(&cache, &request, None).unwrap();
        assert_eq!(source.directory, cache.source(&name));
        assert!(source.directory.join("test/tester.tcl").exists());
    }

    #[test]
    fn a_changed_tarball_is_another_version_and_a_missing_one_is_an_error() {
        let name = |content: &str| {
            let directory = tempfile::tempdir().unwrap();
            let file = tarball(directory.path(), "3.99.1");
            let mut bytes = std::fs::read(&file).unwrap();
            bytes.extend_from_slice(content.as_bytes());
            std::fs::write(&file, bytes).unwrap();
            resolve(&Request::Tarball { file, version: None }).unwrap()
        };
        assert_ne!(name("one"), name("two"));
        let file = PathBuf::from("/no/such.tar");
        let error = resolve(&Request::Tarball { file, version: None }).unwrap_err();
        assert!(error.to_string().contains("/no/such.tar"), "{error}");
    }

    #[test]
    fn a_tarball_of_another_version_than_named_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = tarball(directory.path(), "3.99.1");
        let cache = Cache::at(directory.path().join("cache"));
        let error = fetch(
            &cache,
            &Request::Tarball {
                file,
                version: Some("3.40.1".into()),
            },
            None,
        )
        .unwrap_err();
        assert!(error.to_string().contains("holds SQLite 3.99.1"), "{error}");
        assert!(!cache.source("3.40.1").exists());
    }

    #[test]
    fn a_file_with_a_wrong_checksum_is_set_aside_and_never_unpacked() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path());
        let pin = pin::find("3.40.1").unwrap();
        std::fs::create_dir_all(cache.tarballs()).unwrap();
        std::fs::write(cache.tarballs().join(pin.file_name()), "not SQLite").unwrap();
        let error = fetch_pinned(&cache, pin, None).unwrap_err();
        assert!(error.to_string().contains("sha256"), "{error}");
        assert!(!cache.tarballs().join(pin.file_name()).exists());
        assert!(!cache.source("3.40.1").exists());
    }
}
