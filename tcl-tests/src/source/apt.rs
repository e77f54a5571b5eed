//! Downloads a source package with apt, leaving the system's own package sources and lists alone.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::Pin;

/// Signs the archive; part of every Debian system.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Puts the pinned orig tarball into `directory`. The caller checks its sum.
pub(super) fn download(pin: &Pin, mirror: Option<&str>, directory: &Path) -> Result<()> {
    let mirror = match mirror.filter(|mirror| !mirror.is_empty()) {
        Some(mirror) => mirror.to_owned(),
        None => system_mirror()?,
    };
    let work = tempfile::tempdir().context("create a directory for apt")?;
    let work = work.path();
    for sub in ["parts", "lists/partial", "cache/archives/partial", "out"] {
        std::fs::create_dir_all(work.join(sub)).with_context(|| format!("create {sub}"))?;
    }
    std::fs::write(work.join("parts/sqlite.sources"), sources_list(pin, &mirror))
        .context("write sources list")?;
    apt(work, &["update"])?;
    apt(
        work,
        &[
            "source",
            "--download-only",
            "--tar-only",
            &format!("sqlite3={}", pin.package),
        ],
    )
    .with_context(|| {
        format!(
            "SQLite {} (Debian {}) is not in {} any more: get its source with tests and use --tarball FILE",
            pin.version, pin.package, pin.suite
        )
    })?;
    let name = pin.file_name();
    let from = work.join("out").join(&name);
    ensure!(from.exists(), "apt-get source did not bring {name}");
    // Copied under a passing name: the final name stands for a complete file.
    let partial = directory.join(format!(".{name}.{}", std::process::id()));
    std::fs::copy(&from, &partial).with_context(|| format!("copy to {}", partial.display()))?;
    std::fs::rename(&partial, directory.join(&name)).with_context(|| format!("rename to {name}"))
}

/// The Debian archive that this system's own packages come from.
fn system_mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
        .output()
        .context("ask apt-get for the system's package sources")?;
    let targets = String::from_utf8_lossy(&output.stdout);
    let archive = find_archive(&targets).context(
        "this system has no Debian archive among its package sources: name one with --debian URL, or use --tarball FILE",
    )?;
    Ok(archive.to_owned())
}

/// The first source that is an archive of Debian itself, by the last part of its path.
fn find_archive(targets: &str) -> Option<&str> {
    targets
        .lines()
        .map(|uri| uri.trim_end_matches('/'))
        .find(|uri| uri.rsplit('/').next() == Some("debian"))
}

fn sources_list(pin: &Pin, mirror: &str) -> String {
    format!(
        "Types: deb-src\nURIs: {mirror}\nSuites: {}\nComponents: main\nSigned-By: {KEYRING}\n",
        pin.suite
    )
}

fn apt(work: &Path, arguments: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .current_dir(work.join("out"))
        .args(["-q", "-o", "Dir::Etc::sourcelist=/dev/null"])
        .arg("-o")
        .arg(format!("Dir::Etc::sourceparts={}", work.join("parts").display()))
        .arg("-o")
        .arg(format!("Dir::State::lists={}", work.join("lists").display()))
        .arg("-o")
        .arg(format!("Dir::Cache={}", work.join("cache").display()))
        // apt's own unprivileged user cannot enter a private temporary directory.
        .args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"])
        .args(arguments)
        .output()
        .context("run apt-get (needed to fetch SQLite's source; or use --tarball FILE)")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!(
            "apt-get {}: {}\n{}",
            arguments.join(" "),
            output.status,
            words.trim()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_told_from_other_sources() {
        let targets = "https://example.org/node_20.x/\nhttp://mirror.example/debian-security/\nhttp://mirror.example/debian/\n";
        assert_eq!(find_archive(targets), Some("http://mirror.example/debian"));
        assert_eq!(find_archive("https://example.org/apt/\n"), None);
    }
}
