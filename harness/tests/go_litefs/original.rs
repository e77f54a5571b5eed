//! The original LiteFS, as the Go module proxy has it: built when a test first wants it and kept in the build directory.
//!
//! The version is pinned and Go checks the modules against its checksum database. `LITEFS_GO` names a binary to take instead.

use std::path::{Path, PathBuf};
use std::process::Command;

const VERSION: &str = "v0.5.14";
const MODULE: &str = "github.com/superfly/litefs";

/// The program, or why there is none.
pub(crate) fn litefs() -> Result<PathBuf, String> {
    if let Some(given) = std::env::var_os("LITEFS_GO") {
        return Ok(given.into());
    }
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("go-litefs-{VERSION}"));
    let binary = directory.join("litefs");
    if binary.is_file() {
        return Ok(binary);
    }
    if Command::new("go").arg("version").output().is_err() {
        return Err(
            "there is no `go`: install Go and a C compiler, or name a LiteFS 0.5 binary with LITEFS_GO"
                .into(),
        );
    }
    std::fs::create_dir_all(&directory).unwrap();
    // A module that requires it, because `go install` also wants the list of all versions, which not every proxy has.
    let module = format!("module original\n\ngo 1.21\n\nrequire {MODULE} {VERSION}\n");
    std::fs::write(directory.join("go.mod"), module).unwrap();
    let package = format!("{MODULE}/cmd/litefs");
    let built = Command::new("go")
        .args(["build", "-mod=mod", "-o", "litefs.new", &package])
        .current_dir(&directory)
        .status()
        .unwrap();
    assert!(
        built.success(),
        "go cannot build {package}@{VERSION}; its messages are above\nhint: it needs a C compiler and a Go module proxy; or name a \
         LiteFS 0.5 binary with LITEFS_GO"
    );
    std::fs::rename(directory.join("litefs.new"), &binary).unwrap();
    Ok(binary)
}
