//! Lays a cable (a veth pair) from the switch's namespace to a station's, and gives the station its address.

use std::net::IpAddr;

use rtnetlink::{Handle, LinkUnspec, LinkVeth};

use super::namespace::NetNamespace;
use crate::error::{Error, Result};
use crate::station::Station;

/// The station's end of its cable, inside its namespace.
pub(crate) const DEVICE: &str = "eth0";

const PREFIX_LENGTH: u8 = 24;

/// After this the station has `lo` and [`DEVICE`] up, and the switch's namespace a device named after the station.
pub(crate) fn lay(switch: &NetNamespace, namespace: &NetNamespace, station: Station) -> Result<()> {
    let name = station.to_string();
    switch.run(|| {
        without_ipv6();
        netlink(async |handle| {
            let far = format!("{name}-far");
            handle
                .link()
                .add(LinkVeth::new(&name, &far).build())
                .execute()
                .await?;
            let moved = LinkUnspec::new_with_name(&far)
                .setns_by_fd(namespace.raw_fd())
                .build();
            handle.link().set(moved).execute().await?;
            handle
                .link()
                .set(LinkUnspec::new_with_name(&name).up().build())
                .execute()
                .await
        })
    })??;
    namespace.run(|| {
        without_ipv6();
        netlink(async |handle| {
            let far = nix::net::if_::if_nametoindex(format!("{name}-far").as_str()).unwrap_or(0);
            let mac = station.mac().to_vec();
            let device = LinkUnspec::new_with_index(far).name(DEVICE).address(mac);
            handle.link().set(device.build()).execute().await?;
            handle
                .address()
                .add(far, IpAddr::V4(station.ip()), PREFIX_LENGTH)
                .execute()
                .await?;
            for name in [DEVICE, "lo"] {
                handle
                    .link()
                    .set(LinkUnspec::new_with_name(name).up().build())
                    .execute()
                    .await?;
            }
            Ok(())
        })
    })?
}

/// Its neighbour discovery would be noise in every count of frames. Kernels without IPv6 have no such file.
fn without_ipv6() {
    for scope in ["all", "default"] {
        if let Err(error) = std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1") {
            tracing::debug!(%error, "IPv6 stays as it is");
        }
    }
}

/// Runs netlink requests in the namespace of the calling thread.
fn netlink(requests: impl AsyncFnOnce(Handle) -> Result<(), rtnetlink::Error>) -> Result<()> {
    let failed = || Error::system("configuring the cluster's network");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(failed())?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed())?;
        tokio::spawn(connection);
        requests(handle)
            .await
            .map_err(|error| failed()(std::io::Error::other(error.to_string())))
    })
}
