//! How the supervisor gets the right to mount and to configure networks: it has it (root), or it takes a user namespace of its own in
//! which it has it (everybody else). Then the mounts are visible only inside.

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use crate::error::{Error, Result};

/// Must be called before the first thread is started. Returns whether user and mount namespaces were entered.
pub(crate) fn acquire() -> Result<bool> {
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        return Ok(false);
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|errno| {
        let hint = "run as root, or allow user namespaces (sysctl user.max_user_namespaces, and where they exist \
                    kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0)";
        Error::refused(format!("creating a user namespace: {}", errno.desc()), hint)
    })?;
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {user} 1")),
        ("gid_map", format!("0 {group} 1")),
    ];
    for (file, content) in maps {
        let path = format!("/proc/self/{file}");
        std::fs::write(&path, content).map_err(Error::file("writing", path.as_ref()))?;
    }
    Ok(true)
}
