//! Puts a child process where a node lives: into its network namespace and, where the cluster has its own, user and mount namespaces.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, setns};

use crate::control::{StationState, SupervisorState};
use crate::error::{Error, Result};

/// Makes `command` start inside the station's namespaces, in `directory` as seen from there.
pub(crate) fn enter(
    command: &mut Command,
    supervisor: &SupervisorState,
    station: &StationState,
    directory: &Path,
) -> Result<()> {
    let process = PathBuf::from(format!("/proc/{}", supervisor.pid));
    let mut namespaces = Vec::new();
    if supervisor.user_namespace {
        // The user namespace first: it gives the right to enter the others.
        namespaces.push((open(process.join("ns/user"))?, CloneFlags::CLONE_NEWUSER));
        namespaces.push((open(process.join("ns/mnt"))?, CloneFlags::CLONE_NEWNS));
    }
    let network = process.join("fd").join(station.namespace_fd.to_string());
    namespaces.push((open(network)?, CloneFlags::CLONE_NEWNET));
    let directory = std::ffi::CString::new(directory.as_os_str().as_bytes())
        .map_err(|error| Error::file("entering", directory)(error.into()))?;
    let enter = move || {
        for (namespace, kind) in &namespaces {
            setns(namespace, *kind)?;
        }
        nix::unistd::chdir(directory.as_c_str())?;
        io::Result::Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, on descriptors and a string prepared before.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

fn open(path: PathBuf) -> Result<File> {
    File::open(&path).map_err(Error::file("opening", &path))
}
