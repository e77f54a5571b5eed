//! The SQLite versions that can be fetched by name, each with the checksum of its tarball.

use anyhow::{Result, anyhow};

/// One version of SQLite as Debian publishes it.
#[derive(Debug, Clone, Copy)]
pub struct Pin {
    pub version: &'static str,
    /// Debian's version of the source package.
    pub package: &'static str,
    pub suite: &'static str,
    /// Of the orig tarball, which is the upstream tree.
    pub sha256: &'static str,
}

impl Pin {
    pub fn file_name(&self) -> String {
        format!("sqlite3_{}.orig.tar.xz", self.version)
    }
}

/// Oldest first; the last one is `newest`.
const PINS: &[Pin] = &[
    Pin {
        version: "3.40.1",
        package: "3.40.1-2+deb12u2",
        suite: "bookworm",
        sha256: "aaa776260ab4dc976db34aa7891819484c8676b5b2783123ebc6301e2ca5d655",
    },
    Pin {
        version: "3.53.4",
        package: "3.53.4-2",
        suite: "sid",
        sha256: "05366adc8ee80c6b1faa71285b49d133c2121238ca58934b077fdeb95934abd4",
    },
];

pub fn pins() -> &'static [Pin] {
    PINS
}

pub(super) fn find(name: &str) -> Result<&'static Pin> {
    if name == "newest" {
        return Ok(PINS.last().expect("the table is not empty"));
    }
    PINS.iter().find(|pin| pin.version == name).ok_or_else(|| {
        let known: Vec<_> = PINS.iter().map(|pin| pin.version).collect();
        anyhow!(
            "SQLite {name} is not pinned (known: newest, {}); use --tarball FILE",
            known.join(", ")
        )
    })
}
