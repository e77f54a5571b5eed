//! Ctrl-C, SIGTERM and the end of the terminal: the run ends soon, kills what it started, unmounts, and still tells what it has.
//! Asking again changes nothing: a terminal that is closed sends more than one signal, and leaving mounts behind helps nobody.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// A handler, not blocked signals: child processes inherit what is blocked, but start with default handlers.
pub fn watch() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but an atomic store, which is allowed there.
        let before = unsafe { sigaction(signal, &action) }.with_context(|| format!("handle {signal}"))?;
        if matches!(before.handler(), SigHandler::SigIgn) {
            // Started with nohup, or in the background: what was to be ignored stays ignored.
            // SAFETY: the disposition is the one that was there before.
            unsafe { sigaction(signal, &before) }.with_context(|| format!("ignore {signal}"))?;
        }
    }
    Ok(())
}

extern "C" fn note(_signal: libc::c_int) {
    REQUESTED.store(true, Ordering::SeqCst);
}

pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
