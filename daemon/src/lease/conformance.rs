//! What every lease back-end does: one test for all of them, and Consul's own promises after it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::imitation::Imitation;
use super::*;

const TTL: Duration = Duration::from_millis(600);
const LOCK_DELAY: Duration = Duration::from_millis(200);

fn holder(hostname: &str, epoch: u64) -> Holder {
    let advertise_url = format!("http://{hostname}:20202");
    Holder {
        hostname: hostname.to_string(),
        advertise_url,
        epoch,
        node_id: "AB".to_string(),
    }
}

fn consul(imitation: &Imitation) -> ConsulLease {
    let key = "litefs/primary".to_string();
    ConsulLease::new(ConsulOptions {
        url: imitation.url(),
        key,
        ttl: TTL,
        lock_delay: LOCK_DELAY,
    })
    .unwrap()
}

fn held(acquired: Acquired) -> Grant {
    match acquired {
        Acquired::Held(grant) => grant,
        Acquired::Refused => panic!("the lease was refused"),
    }
}

/// A node takes a free lease, keeps it, records the cluster's state, lets go of it, and another takes its place.
pub(super) async fn conforms(lease: &dyn Lease, rival: &dyn Lease) {
    assert_eq!(lease.holder().await.unwrap().holder, None);
    let grant = held(lease.acquire(&holder("one", 1)).await.unwrap());
    assert!(grant.deadline.remaining() > Duration::ZERO);
    assert!(grant.deadline.remaining() <= lease.ttl());
    assert_eq!(rival.acquire(&holder("two", 1)).await.unwrap(), Acquired::Refused);
    assert!(rival.holder().await.unwrap().holder.is_some());

    let renewed = lease.renew(&grant).await.unwrap();
    assert_eq!(renewed.id, grant.id);
    assert!(renewed.deadline >= grant.deadline || lease.kind() == "static");
    let updated = lease.take_over(&grant.id, &holder("one", 2)).await.unwrap();
    assert_eq!(updated.id, grant.id);

    let id = lease.claim_cluster_id("LFSC0000000000000001").await.unwrap();
    assert_eq!(id, "LFSC0000000000000001");

    assert_eq!(lease.state().await.unwrap(), Recorded::default());
    let positions = BTreeMap::from([("a".to_string(), "0000000000000001/8000000000000000".to_string())]);
    let mut state = ClusterState {
        epoch: 2,
        primary: "one".to_string(),
        positions,
    };
    let version = lease.record(&state, 0).await.unwrap();
    state.epoch = 3;
    let version = lease.record(&state, version).await.unwrap();
    assert_eq!(
        lease.state().await.unwrap(),
        Recorded {
            state: Some(state),
            version
        }
    );

    lease.release(&renewed).await.unwrap();
    assert_eq!(lease.holder().await.unwrap().holder, None);
    held(lease.acquire(&holder("one", 4)).await.unwrap());
}

#[tokio::test]
async fn the_static_lease_conforms() {
    let replica = StaticLease::replica("one".to_string(), "http://one:20202".to_string());
    conforms(&StaticLease::primary(), &replica).await;
    let refused = replica.take_over("", &holder("two", 1)).await;
    assert_eq!(
        refused,
        Err(LeaseError::Unsupported("static lease does not support handoff"))
    );
}

#[tokio::test]
async fn consul_conforms() {
    let imitation = Imitation::start().await;
    conforms(&consul(&imitation), &consul(&imitation)).await;
}

/// With `LITEFS_TEST_CONSUL=http://localhost:8500` against the real one, which takes no time-to-live below 10 s.
#[tokio::test]
async fn a_real_consul_conforms_where_there_is_one() {
    let Ok(url) = std::env::var("LITEFS_TEST_CONSUL") else {
        return;
    };
    let url: url::Url = url.parse().unwrap();
    let key = format!("litefs-test-{:016x}/primary", rand::random::<u64>());
    let lease = || {
        let ttl = Duration::from_secs(10);
        let options = ConsulOptions {
            url: url.clone(),
            key: key.clone(),
            ttl,
            lock_delay: Duration::from_secs(1),
        };
        ConsulLease::new(options).unwrap()
    };
    conforms(&lease(), &lease()).await;
    let (old, new) = (lease(), lease());
    let gone = Grant::since(
        "2d0ac1d3-46d0-4c2b-8d25-b1b2f4b37a29",
        BootTime::now(),
        Duration::from_secs(10),
    );
    assert_eq!(old.renew(&gone).await, Err(LeaseError::Gone));
    assert_eq!(
        old.take_over(&gone.id, &holder("two", 9)).await,
        Err(LeaseError::Gone)
    );
    let mut seen = new.holder().await.unwrap();
    assert!(seen.holder.is_some(), "the last part of the test left its lease");
    let asked = Instant::now();
    seen = new.changed(&seen, Duration::from_millis(300)).await.unwrap();
    assert!(
        asked.elapsed() >= Duration::from_millis(250),
        "nothing has changed: {seen:?}"
    );
}

#[tokio::test]
async fn the_value_is_readable_for_litefs() {
    let imitation = Imitation::start().await;
    let lease = consul(&imitation);
    held(lease.acquire(&holder("one", 7)).await.unwrap());
    let value: serde_json::Value = serde_json::from_str(&imitation.value("litefs/primary").unwrap()).unwrap();
    assert_eq!(value["hostname"], "one");
    assert_eq!(value["advertise-url"], "http://one:20202");
    assert_eq!(value["epoch"], 7);
    // And the reverse: a holder that runs LiteFS has no epoch.
    let theirs: Holder = serde_json::from_str(r#"{"hostname":"h","advertise-url":"http://h:1"}"#).unwrap();
    assert_eq!((theirs.epoch, theirs.node_id.as_str()), (0, ""));
}

#[tokio::test]
async fn a_waiter_learns_at_once_that_the_lease_is_free() {
    let imitation = Imitation::start().await;
    let (lease, rival) = (consul(&imitation), consul(&imitation));
    let grant = held(lease.acquire(&holder("one", 1)).await.unwrap());
    let mut seen = rival.holder().await.unwrap();
    let waiting = tokio::spawn(async move {
        while seen.holder.is_some() {
            seen = rival.changed(&seen, Duration::from_secs(5)).await.unwrap();
        }
        held(rival.acquire(&holder("two", 2)).await.unwrap())
    });
    let released = Instant::now();
    lease.release(&grant).await.unwrap();
    waiting.await.unwrap();
    assert!(
        released.elapsed() < Duration::from_millis(500),
        "{:?}",
        released.elapsed()
    );
}

#[tokio::test]
async fn a_grant_ends_before_the_service_gives_the_lease_away() {
    let imitation = Imitation::start().await;
    let (lease, rival) = (consul(&imitation), consul(&imitation));
    let grant = held(lease.acquire(&holder("one", 1)).await.unwrap());
    let taken = tokio::time::timeout(Duration::from_secs(10), async {
        while rival.acquire(&holder("two", 2)).await.unwrap() == Acquired::Refused {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    taken.await.unwrap();
    assert_eq!(grant.deadline.remaining(), Duration::ZERO);
    assert_eq!(lease.renew(&grant).await, Err(LeaseError::Gone));
}

#[tokio::test]
async fn a_session_is_trusted_for_its_own_time_to_live_only() {
    let imitation = Imitation::start().await;
    let grant = held(consul(&imitation).acquire(&holder("one", 1)).await.unwrap());
    let patient = ConsulLease::new(ConsulOptions {
        url: imitation.url(),
        key: "litefs/primary".to_string(),
        ttl: 100 * TTL,
        lock_delay: LOCK_DELAY,
    })
    .unwrap();
    let renewed = patient.renew(&grant).await.unwrap();
    assert!(renewed.deadline.remaining() <= TTL);
    let taken = patient.take_over(&grant.id, &holder("two", 2)).await.unwrap();
    assert!(taken.deadline.remaining() <= TTL);
}

#[tokio::test]
async fn a_lease_that_was_taken_away_is_gone() {
    let imitation = Imitation::start().await;
    let lease = consul(&imitation);
    let grant = held(lease.acquire(&holder("one", 1)).await.unwrap());
    imitation.put("litefs/primary", b"");
    assert_eq!(lease.renew(&grant).await, Err(LeaseError::Gone));
    imitation.end_sessions();
    assert_eq!(lease.renew(&grant).await, Err(LeaseError::Gone));
    assert_eq!(
        lease.take_over(&grant.id, &holder("one", 1)).await,
        Err(LeaseError::Gone)
    );
}

#[tokio::test]
async fn of_two_cluster_ids_one_wins_for_everybody() {
    let imitation = Imitation::start().await;
    let (one, two) = (consul(&imitation), consul(&imitation));
    let (a, b) = tokio::join!(
        one.claim_cluster_id("LFSCAAAAAAAAAAAAAAAA"),
        two.claim_cluster_id("LFSCBBBBBBBBBBBBBBBB")
    );
    assert_eq!(a.unwrap(), b.unwrap());
}

#[tokio::test]
async fn a_record_that_somebody_else_replaced_is_not_overwritten() {
    let imitation = Imitation::start().await;
    let (one, two) = (consul(&imitation), consul(&imitation));
    let version = one
        .record(
            &ClusterState {
                epoch: 1,
                ..ClusterState::default()
            },
            0,
        )
        .await
        .unwrap();
    two.record(
        &ClusterState {
            epoch: 2,
            ..ClusterState::default()
        },
        version,
    )
    .await
    .unwrap();
    assert_eq!(
        one.record(
            &ClusterState {
                epoch: 1,
                ..ClusterState::default()
            },
            version
        )
        .await,
        Err(LeaseError::Gone)
    );
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_an_error_in_time() {
    let imitation = Imitation::start().await;
    let lease = consul(&imitation);
    let grant = held(lease.acquire(&holder("one", 1)).await.unwrap());
    imitation.silence(true);
    let asked = Instant::now();
    assert!(matches!(
        lease.renew(&grant).await,
        Err(LeaseError::Unavailable { .. })
    ));
    assert!(asked.elapsed() < TTL);
    imitation.silence(false);
    lease.renew(&grant).await.unwrap();
}

#[tokio::test]
async fn a_handed_over_lease_changes_its_value_and_not_its_id() {
    let imitation = Imitation::start().await;
    let (old, new) = (consul(&imitation), consul(&imitation));
    let grant = held(old.acquire(&holder("one", 1)).await.unwrap());
    let taken = new.take_over(&grant.id, &holder("two", 2)).await.unwrap();
    assert_eq!(taken.id, grant.id);
    assert_eq!(new.holder().await.unwrap().holder, Some(holder("two", 2)));
}
