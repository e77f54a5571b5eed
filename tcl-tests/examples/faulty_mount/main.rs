//! A plain loopback file system that can be told to do one thing wrong. Without a fault it is the control that has to
//! pass everything; with one it is a canary: a comparison that does not notice it is worth nothing.
//!
//! `faulty_mount SOURCE MOUNTPOINT [none|drop-write|lose-truncate|grant-locks|end] [N]`; N is which write or truncate of
//! a database is affected.

mod fault;
mod loopback;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use fuser::{Config, MountOption, Session, SessionACL};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SigSet, Signal};

use fault::Fault;
use loopback::Loopback;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (source, mountpoint, fault, nth) = match arguments.as_slice() {
        [source, mountpoint] => (source, mountpoint, "none", 1),
        [source, mountpoint, fault] => (source, mountpoint, fault.as_str(), 1),
        [source, mountpoint, fault, nth] => (source, mountpoint, fault.as_str(), nth.parse().context("N")?),
        _ => bail!("usage: faulty_mount SOURCE MOUNTPOINT [FAULT] [N]"),
    };
    unmount_when_told(PathBuf::from(mountpoint))?;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("faulty_mount".to_string()),
        MountOption::DefaultPermissions,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(2);
    let filesystem = Loopback::new(source.as_ref(), Fault::parse(fault, nth)?)?;
    let session = Session::new(filesystem, mountpoint, &config).context("mount")?;
    session.run().context("serve")
}

/// The signals are blocked before the session makes its threads, so that only this thread sees them.
fn unmount_when_told(mountpoint: PathBuf) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("block signals")?;
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            let _ = umount2(&mountpoint, MntFlags::MNT_DETACH);
        }
    });
    Ok(())
}
