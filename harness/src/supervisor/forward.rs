//! Carries connections from a port on the host's loopback address to a station's API, past the wires: a node that is cut off from its
//! peers still answers `status`.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use tokio::net::TcpStream;

use crate::error::{Error, Result};
use crate::net::NetNamespace;
use crate::station::Station;

/// Listens in the calling thread's namespace, on `port` if it is free.
pub(crate) fn listen(port: Option<u16>) -> Result<TcpListener> {
    let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = bind(port.unwrap_or(0)).or_else(|_| bind(0));
    let listener = listener.map_err(Error::system("listening on the loopback address"))?;
    listener
        .set_nonblocking(true)
        .map_err(Error::system("listening on the loopback address"))?;
    Ok(listener)
}

/// Starts a thread inside the station's namespace; only its outgoing connections belong to it, the listener stays the host's.
pub(crate) fn start(listener: TcpListener, station: Station, namespace: &NetNamespace) -> Result<()> {
    let forward = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let served = runtime.and_then(|runtime| runtime.block_on(serve(listener, station.local_service())));
        if let Err(error) = served {
            tracing::error!(%station, %error, "the port on the host is closed");
        }
    };
    namespace.spawn(&format!("forward-{station}"), forward).map(drop)
}

async fn serve(listener: TcpListener, service: SocketAddr) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (mut outside, _) = listener.accept().await?;
        tokio::spawn(async move {
            // A station that does not listen closes the connection, as it would without us.
            if let Ok(mut inside) = TcpStream::connect(service).await {
                let _ = (outside.set_nodelay(true), inside.set_nodelay(true));
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            }
        });
    }
}
