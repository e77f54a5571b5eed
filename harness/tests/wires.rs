//! The contract of the wires, with real sockets through real namespaces. Needs the right to create network namespaces.
//!
//! Times are checked by generous bounds (other work runs beside the tests); what can be counted is counted.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use litefs_dev::Station;
use litefs_dev::net::Network;
use litefs_dev::wire::{Direction, LinkPolicy};
use nix::sys::socket::{setsockopt, sockopt};

const PORT: u16 = 7000;
const LONG: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(300);

fn station(number: usize) -> Station {
    Station::node(number).unwrap()
}

fn direction(from: usize, to: usize) -> Direction {
    Direction::new(station(from), station(to))
}

fn both(a: usize, b: usize) -> [Direction; 2] {
    [direction(a, b), direction(b, a)]
}

fn address(number: usize) -> SocketAddr {
    (station(number).ip(), PORT).into()
}

/// The network, or `None` with the reason printed where namespaces are not permitted.
fn network(nodes: usize) -> Option<Network> {
    match Network::build(nodes, 42) {
        Ok(network) => Some(network),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn udp(network: &Network, number: usize) -> UdpSocket {
    let bound = network
        .namespace(station(number))
        .unwrap()
        .run(|| UdpSocket::bind(address(number)));
    let socket = bound.unwrap().unwrap();
    // Bursts are sent before anybody reads; the default holds some 250 small datagrams.
    setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20)).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket
}

fn send(socket: &UdpSocket, to: usize, numbers: std::ops::Range<u32>) {
    for number in numbers {
        socket.send_to(&number.to_be_bytes(), address(to)).unwrap();
    }
}

/// Everything that arrives until `SILENCE` passes.
fn collect(socket: &UdpSocket) -> Vec<u32> {
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    let mut buffer = [0; 4];
    std::iter::from_fn(|| {
        socket
            .recv(&mut buffer)
            .is_ok()
            .then(|| u32::from_be_bytes(buffer))
    })
    .collect()
}

/// As [`collect`], in the order of the numbers. A sender that the scheduler moves to another CPU is overtaken by itself: the kernel has a
/// queue of arriving frames for each CPU.
fn collect_sorted(socket: &UdpSocket) -> Vec<u32> {
    let mut numbers = collect(socket);
    numbers.sort_unstable();
    numbers
}

fn round_trip(from: &UdpSocket, to: &UdpSocket, number: usize) -> Duration {
    let mut buffer = [0; 4];
    let start = Instant::now();
    from.send_to(b"ping", address(number)).unwrap();
    let (_, sender) = to.recv_from(&mut buffer).unwrap();
    to.send_to(b"pong", sender).unwrap();
    from.recv(&mut buffer).unwrap();
    start.elapsed()
}

#[test]
fn frames_arrive_complete_in_order_and_soon() {
    let Some(network) = network(2) else { return };
    let (a, b) = (udp(&network, 1), udp(&network, 2));
    let mut times: Vec<_> = (0..1000).map(|_| round_trip(&a, &b, 2)).collect();
    times.sort();
    println!("round trip: median {:?}, 99% {:?}", times[500], times[990]);
    assert!(times[500] < Duration::from_millis(5), "median {:?}", times[500]);
    send(&a, 2, 0..200);
    let arrived = collect(&b);
    let overtaken = arrived.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(overtaken <= 2, "{arrived:?}");
    let complete: BTreeSet<u32> = arrived.iter().copied().collect();
    assert!(arrived.len() == 200 && complete.len() == 200, "{arrived:?}");
    assert_eq!(network.controls().traffic(direction(1, 2)).dropped, 0);
}

#[test]
fn a_large_tcp_transfer_arrives_unchanged_whatever_the_frame_size() {
    let Some(network) = network(2) else { return };
    for policy in [
        LinkPolicy::default(),
        LinkPolicy {
            rate: "100gbit".parse().ok(),
            ..LinkPolicy::default()
        },
    ] {
        network.link(&both(1, 2), policy).unwrap();
        let listener = network
            .namespace(station(2))
            .unwrap()
            .run(|| TcpListener::bind(address(2)));
        let listener = listener.unwrap().unwrap();
        let data: Vec<u8> = (0..64_u32 << 18).flat_map(u32::to_be_bytes).collect();
        let start = Instant::now();
        let received = std::thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let mut received = Vec::new();
                listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
                received
            });
            let connected = network
                .namespace(station(1))
                .unwrap()
                .run(|| TcpStream::connect(address(2)));
            connected.unwrap().unwrap().write_all(&data).unwrap();
            receiver.join().unwrap()
        });
        let megabits = data.len() as f64 * 8.0 / 1e6 / start.elapsed().as_secs_f64();
        println!("{policy}: {megabits:.0} Mbit/s");
        assert!(received == data, "the bytes differ");
    }
}

#[test]
fn delay_applies_to_each_direction_on_its_own() {
    let Some(network) = network(2) else { return };
    let (a, b) = (udp(&network, 1), udp(&network, 2));
    let delayed = LinkPolicy {
        delay: Duration::from_millis(30),
        ..LinkPolicy::default()
    };
    network.link(&[direction(1, 2)], delayed).unwrap();
    let one_way = round_trip(&a, &b, 2);
    assert!(
        one_way >= Duration::from_millis(30) && one_way < Duration::from_millis(500),
        "{one_way:?}"
    );
    network.link(&both(1, 2), delayed).unwrap();
    let two_way = round_trip(&a, &b, 2);
    assert!(
        two_way >= Duration::from_millis(60) && two_way < Duration::from_millis(500),
        "{two_way:?}"
    );
    network.heal(true).unwrap();
    let best = (0..20).map(|_| round_trip(&a, &b, 2)).min().unwrap();
    assert!(best < Duration::from_millis(30), "{best:?}");
}

#[test]
fn loss_and_duplication_are_counted_where_they_happen() {
    let Some(network) = network(2) else { return };
    let (a, b) = (udp(&network, 1), udp(&network, 2));
    round_trip(&a, &b, 2);
    network
        .link(
            &[direction(1, 2)],
            LinkPolicy {
                loss: "20%".parse().unwrap(),
                ..LinkPolicy::default()
            },
        )
        .unwrap();
    send(&a, 2, 0..1000);
    let arrived = collect(&b);
    assert!((700..900).contains(&arrived.len()), "{}", arrived.len());
    let traffic = network.controls().traffic(direction(1, 2));
    assert_eq!(arrived.len() as u64 + traffic.dropped, 1000);

    network
        .link(
            &[direction(1, 2)],
            LinkPolicy {
                duplicate: "100%".parse().unwrap(),
                ..LinkPolicy::default()
            },
        )
        .unwrap();
    send(&a, 2, 0..100);
    assert_eq!(
        collect_sorted(&b),
        (0..100).flat_map(|number| [number, number]).collect::<Vec<_>>()
    );
}

#[test]
fn reordering_loses_nothing() {
    let Some(network) = network(2) else { return };
    let (a, b) = (udp(&network, 1), udp(&network, 2));
    network
        .link(
            &[direction(1, 2)],
            LinkPolicy {
                reorder: "20%".parse().unwrap(),
                ..LinkPolicy::default()
            },
        )
        .unwrap();
    send(&a, 2, 0..200);
    let mut arrived = collect(&b);
    assert_ne!(arrived, (0..200).collect::<Vec<_>>());
    arrived.sort();
    assert_eq!(arrived, (0..200).collect::<Vec<_>>());
}

#[test]
fn a_one_way_partition_lets_the_other_way_through() {
    let Some(network) = network(3) else { return };
    let (a, b, c) = (udp(&network, 1), udp(&network, 2), udp(&network, 3));
    network.cut(&[direction(1, 2)]).unwrap();
    send(&a, 2, 0..10);
    send(&b, 1, 0..10);
    send(&a, 3, 0..10);
    assert_eq!(collect_sorted(&a), (0..10).collect::<Vec<_>>());
    assert_eq!(collect_sorted(&c), (0..10).collect::<Vec<_>>());
    assert!(collect(&b).is_empty());
    network.heal(false).unwrap();
    send(&a, 2, 10..20);
    assert_eq!(collect_sorted(&b), (10..20).collect::<Vec<_>>());
}

#[test]
fn what_is_under_way_when_a_link_is_cut_does_not_arrive() {
    let Some(network) = network(2) else { return };
    let (a, b) = (udp(&network, 1), udp(&network, 2));
    let delay = Duration::from_millis(200);
    network
        .link(
            &[direction(1, 2)],
            LinkPolicy {
                delay,
                ..LinkPolicy::default()
            },
        )
        .unwrap();
    send(&a, 2, 0..10);
    network.cut(&[direction(1, 2)]).unwrap();
    assert!(collect(&b).is_empty());
}

#[test]
fn a_connection_survives_a_partition_shorter_than_its_patience() {
    let Some(network) = network(2) else { return };
    let listener = network
        .namespace(station(2))
        .unwrap()
        .run(|| TcpListener::bind(address(2)))
        .unwrap()
        .unwrap();
    let mut client = network
        .namespace(station(1))
        .unwrap()
        .run(|| TcpStream::connect(address(2)))
        .unwrap()
        .unwrap();
    let mut server = listener.accept().unwrap().0;
    client.write_all(b"one").unwrap();
    let mut buffer = [0; 3];
    server.read_exact(&mut buffer).unwrap();

    network.cut(&both(1, 2)).unwrap();
    client.write_all(b"two").unwrap();
    server.set_read_timeout(Some(SILENCE)).unwrap();
    assert!(
        server.read_exact(&mut buffer).is_err(),
        "nothing passes a partition"
    );
    network.heal(false).unwrap();
    server.set_read_timeout(Some(LONG)).unwrap();
    server.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"two");
}

#[test]
fn a_rate_limit_holds_back_a_burst() {
    let Some(network) = network(2) else { return };
    let (a, b) = (udp(&network, 1), udp(&network, 2));
    round_trip(&a, &b, 2);
    // 100 frames of 1,042 bytes: 83 ms at 10 Mbit/s.
    network
        .link(
            &[direction(1, 2)],
            LinkPolicy {
                rate: "10mbit".parse().ok(),
                ..LinkPolicy::default()
            },
        )
        .unwrap();
    let start = Instant::now();
    for _ in 0..100 {
        a.send_to(&[0; 1000], address(2)).unwrap();
    }
    let mut buffer = [0; 1000];
    for _ in 0..100 {
        b.recv(&mut buffer).unwrap();
    }
    assert!(
        start.elapsed() >= Duration::from_millis(75),
        "{:?}",
        start.elapsed()
    );
}
