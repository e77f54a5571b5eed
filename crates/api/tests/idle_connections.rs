//! A connection that the node ended while the client did not look is no failure of the next call.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use litefs_api::{Client, Error};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const PATIENCE: Duration = Duration::from_secs(20);

/// What happened at the node.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Request(String),
    Ended,
}

/// A node that resets the connection on demand, and resets requests to `/promote` and `/export` instead of answering.
struct Node {
    client: Client,
    end: UnboundedSender<()>,
    steps: mpsc::Receiver<Step>,
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

impl Node {
    fn start() -> Node {
        let (address, told) = mpsc::channel();
        let (seen, steps) = mpsc::channel();
        let (end, ends) = unbounded_channel();
        std::thread::spawn(move || runtime().block_on(serve(address, seen, ends)));
        let address = told.recv_timeout(PATIENCE).unwrap();
        let client = Client::new(&format!("http://{address}")).unwrap();
        Node { client, end, steps }
    }

    fn next(&self) -> Step {
        self.steps.recv_timeout(PATIENCE).unwrap()
    }
}

async fn serve(address: mpsc::Sender<SocketAddr>, seen: mpsc::Sender<Step>, mut ends: UnboundedReceiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    address.send(listener.local_addr().unwrap()).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_zero_linger().unwrap();
        let steps = seen.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let path = request.uri().path().to_owned();
            let answers = path == "/metrics";
            let _ = steps.send(Step::Request(path));
            async move {
                match answers {
                    true => Ok(Response::new(Full::new(Bytes::from("text")))),
                    false => Err("no answer"),
                }
            }
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let connection = server.serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            _ = connection => {}
            _ = ends.recv() => {}
        }
        let _ = seen.send(Step::Ended);
    }
}

#[test]
fn a_call_after_the_node_ended_the_idle_connection_succeeds() {
    let node = Node::start();
    let runtime = runtime();
    for _ in 0..3 {
        assert_eq!(runtime.block_on(node.client.metrics()).unwrap(), "text");
        assert_eq!(node.next(), Step::Request("/metrics".to_owned()));
        // Between two calls nobody looks at the client's side of the connection.
        node.end.send(()).unwrap();
        assert_eq!(node.next(), Step::Ended);
    }
}

#[test]
fn only_a_request_that_changes_nothing_is_sent_again() {
    let node = Node::start();
    let runtime = runtime();
    let export = runtime.block_on(node.client.export("db"));
    assert!(matches!(export, Err(Error::Transport { .. })));
    let promotion = runtime.block_on(node.client.promote(false));
    assert!(matches!(promotion, Err(Error::Transport { .. })));
    assert_eq!(runtime.block_on(node.client.metrics()).unwrap(), "text");
    let requests: Vec<Step> = (0..4).map(|_| node.next()).collect();
    let expected = ["/export", "/export", "/promote", "/metrics"];
    assert_eq!(requests, expected.map(|path| Step::Request(path.to_owned())));
}
