//! Accepts connections and serves the API on them: HTTP/1.1, and HTTP/2 with prior knowledge, on one port.
//!
//! An own loop rather than `warp::serve`: peers that are gone must be noticed, windows must be large enough for a
//! snapshot, and the end must not wait for streams that never end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use super::{Api, routes};

const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Default windows of 64 KiB make uploads stall now and then.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const MAX_HEADERS: u32 = 64 << 10;
/// How long a client may take to send the head of an HTTP/1.1 request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests that are under way at the end may take.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed accept: usually there are too many files open, and that does not change at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound port that is not served yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Binds `address`, which may lack its host as in Go: `:20202` is every address of this machine.
    pub async fn bind(address: &str) -> std::io::Result<Self> {
        let listener = match address.strip_prefix(':') {
            Some(port) => match TcpListener::bind(format!("[::]:{port}")).await {
                Ok(listener) => listener,
                // A machine without IPv6.
                Err(_) => TcpListener::bind(format!("0.0.0.0:{port}")).await?,
            },
            None => TcpListener::bind(address).await?,
        };
        let address = listener.local_addr()?;
        Ok(Server { listener, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then waits briefly for what is under way.
    pub async fn serve(self, api: Api, shutdown: CancellationToken) {
        let routes = routes::routes(&api);
        let builder = builder();
        let graceful = GracefulShutdown::new();
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        if let Some(unlogged) = api.store.repeats().note_only("accept") {
                            tracing::warn!(%error, unlogged, "cannot accept a connection, trying again");
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
                () = shutdown.cancelled() => break,
            };
            serve_connection(&builder, &graceful, stream, routes.clone());
        }
        drop(self.listener);
        if tokio::time::timeout(END_TIMEOUT, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::debug!("connections were still open at the end");
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADERS);
    builder
}

fn serve_connection(
    builder: &auto::Builder<TokioExecutor>,
    graceful: &GracefulShutdown,
    stream: TcpStream,
    routes: BoxedFilter<(Response,)>,
) {
    // Small frames must not wait for more: a heartbeat or an acknowledgement is all there is.
    let _ = stream.set_nodelay(true);
    let end = ConnectionEnd::default();
    let answering = end.clone();
    let service =
        hyper::service::service_fn(move |request| answer(routes.clone(), answering.clone(), request));
    let socket = stream.as_raw_fd();
    let connection = builder
        .serve_connection(TokioIo::new(stream), service)
        .into_owned();
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        tokio::pin!(connection);
        tokio::select! {
            ended = &mut connection => if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            },
            // SAFETY: the connection has the socket, and lives.
            () = end.0.cancelled() => reset_at_close(unsafe { BorrowedFd::borrow_raw(socket) }),
        }
    });
}

/// What was sent and not read is dropped, and the peer has an error instead of an end.
fn reset_at_close(socket: BorrowedFd<'_>) {
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    if let Err(error) = setsockopt(&socket, sockopt::Linger, &at_once) {
        tracing::debug!(%error, "reset a connection");
    }
}

/// Breaks a connection off. A peer that does not read cannot be told of an error: what was sent before stands in its way.
#[derive(Clone, Default)]
pub(super) struct ConnectionEnd(CancellationToken);

impl ConnectionEnd {
    pub(super) fn break_off(&self) {
        self.0.cancel();
    }
}

/// The HTTP version and the connection's end are told as extensions, for the endpoints that depend on them.
async fn answer(
    routes: BoxedFilter<(Response,)>,
    end: ConnectionEnd,
    mut request: Request<Incoming>,
) -> Result<Response, Infallible> {
    use hyper::service::Service;
    let version = request.version();
    request.extensions_mut().insert(version);
    request.extensions_mut().insert(end);
    let service = hyper_util::service::TowerToHyperService::new(warp::service(routes));
    service.call(request).await
}
