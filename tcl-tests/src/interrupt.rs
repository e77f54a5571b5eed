//! Ctrl-C and SIGTERM: the run ends soon, kills what it started, unmounts, and still tells what it has.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// A handler, not blocked signals: child processes inherit what is blocked, but start with default handlers.
pub fn watch() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but an atomic swap and, the second time, _exit: both are allowed there.
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
    if REQUESTED.swap(true, Ordering::SeqCst) {
        // Asked twice: the user does not want to wait for an orderly end.
        // SAFETY: _exit is async-signal-safe and does not return.
        unsafe { libc::_exit(130) };
    }
}

pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
