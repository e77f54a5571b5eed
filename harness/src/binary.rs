//! Finds the programs a cluster needs, and builds `litefs` when run from its workspace.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use terminal::interrupt;

use crate::error::{Error, Result};

/// How to come by the `litefs` binary.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Exactly this one.
    pub binary: Option<PathBuf>,
    /// The release profile, also where this program was built with the debug one.
    pub release: bool,
}

/// A binary that was built elsewhere, for tests that would build one.
const GIVEN: &str = "LITEFS_BINARY";

impl Wanted {
    /// The binary: the given one, or the one that `LITEFS_BINARY` names, or the workspace's (built if necessary, with the profile of this
    /// program), or the one beside this program or in the `PATH`.
    pub fn find(&self) -> Result<PathBuf> {
        if let Some(binary) = &self.binary {
            return binary.canonicalize().map_err(Error::file("finding", binary));
        }
        if let Some(given) = std::env::var_os(GIVEN) {
            let given = PathBuf::from(given);
            return given.canonicalize().map_err(Error::file("finding", &given));
        }
        if let Some(workspace) = workspace()? {
            // What is measured or debugged here is not mixed of two profiles without being asked for.
            return build(&workspace, self.release || !cfg!(debug_assertions));
        }
        beside("litefs").or_else(|| in_path("litefs")).ok_or_else(|| {
            let hint = "run inside the workspace, give --binary PATH, or put litefs beside this program or into the PATH";
            Error::refused("the litefs binary was not found", hint)
        })
    }
}

/// The `consul` binary.
pub fn consul() -> Result<PathBuf> {
    in_path("consul").ok_or_else(|| {
        let hint = "Debian bullseye has it: download the package consul 1.8.7+dfsg1-2 and unpack it with `dpkg -x`, or get a binary \
                    from the vendor; put it into the PATH. Without --consul the embedded lease server is used";
        Error::refused("the consul binary was not found", hint)
    })
}

static IS_LITEFS_DEV: AtomicBool = AtomicBool::new(false);

/// Says that this program is `litefs-dev`, whatever its file is called.
pub fn announce_litefs_dev() {
    IS_LITEFS_DEV.store(true, Ordering::Relaxed);
}

/// What to type to run `litefs-dev` again, for hints.
pub(crate) fn typed() -> String {
    match IS_LITEFS_DEV.load(Ordering::Relaxed) {
        true => terminal::typed("litefs-dev"),
        false => "litefs-dev".to_owned(),
    }
}

/// The `litefs-dev` binary, which supervises clusters: this program, or the one beside a test program.
pub fn litefs_dev() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("LITEFS_DEV_BIN") {
        return Ok(given.into());
    }
    let program = std::env::current_exe().map_err(Error::system("finding this program"))?;
    if IS_LITEFS_DEV.load(Ordering::Relaxed) {
        return Ok(program);
    }
    beside("litefs-dev")
        .or_else(|| in_path("litefs-dev"))
        .ok_or_else(|| {
            Error::refused(
                "the litefs-dev binary was not found",
                "build it (cargo build -p litefs-dev) or set LITEFS_DEV_BIN",
            )
        })
}

/// In the directory of this program, or its parent: cargo puts test programs one level deeper.
fn beside(name: &str) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// The program of that name in the `PATH`.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// The nearest directory upwards that is a workspace with the daemon in it.
fn workspace() -> Result<Option<PathBuf>> {
    let current = std::env::current_dir().map_err(Error::system("finding the current directory"))?;
    let is_workspace = |directory: &&Path| {
        let manifest = std::fs::read_to_string(directory.join("Cargo.toml")).unwrap_or_default();
        manifest.contains("[workspace]") && directory.join("daemon/Cargo.toml").is_file()
    };
    Ok(current.ancestors().find(is_workspace).map(Path::to_owned))
}

fn build(workspace: &Path, release: bool) -> Result<PathBuf> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args([
        "build",
        "--package",
        "litefs",
        "--bin",
        "litefs",
        "--message-format",
        "json-render-diagnostics",
    ]);
    if release {
        command.arg("--release");
    }
    let output = command
        .current_dir(workspace)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .output();
    let output = output.map_err(|error| {
        let hint = "run in a shell where cargo works, or give --binary PATH";
        let message = format!("litefs cannot be built: running cargo: {error}");
        Error::refused(message, hint)
    })?;
    if interrupt::requested() {
        return Err(Error::Interrupted);
    }
    if !output.status.success() {
        return Err(Error::refused(
            "litefs cannot be built",
            "see cargo's messages above, or give --binary PATH",
        ));
    }
    executable(&String::from_utf8_lossy(&output.stdout))
        .ok_or_else(|| Error::Invalid("cargo does not say where it put litefs".into()))
}

/// The path of the last executable among cargo's messages.
fn executable(messages: &str) -> Option<PathBuf> {
    messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/debug/litefs\"}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/t/debug/litefs")));
        assert_eq!(executable(""), None);
    }
}
