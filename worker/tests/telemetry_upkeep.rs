//! Telemetry's tables stay bounded, and what goes is counted as hours; nodes are
//! looked at through Proxmox.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::{World, config, telemetry::Watch};
use mpanel_worker::{adapters::proxmox::Pve, services::telemetry::clock::Collector};

#[tokio::test]
async fn old_rows_become_hours_exactly_and_new_ones_stay() {
    let watch = Watch::new(&[("MPANEL_FLEET_TELEMETRY__KEEP_DAYS", "2")]).await;
    // Three days before the clock's 2027-01-15 08:00, 13,000 rows of an hour and a half; and one of now.
    watch
        .execute(
            "INSERT INTO monitoring_service_status (service_name, status, latency_ms, checked_at)
             SELECT 'old', CASE WHEN n % 10 = 0 THEN 'down' ELSE 'up' END, CASE WHEN n % 10 <> 0 THEN n % 7 END,
                    timestamp '2027-01-12 08:00' + n * interval '0.4 s'
             FROM generate_series(0, 12999) n;
             INSERT INTO monitoring_service_status (service_name, status, checked_at)
             VALUES ('old', 'up', timestamp '2027-01-15 07:59');
             INSERT INTO monitoring_slow_queries (query_hash, sample_query, avg_duration_ms, calls, last_seen_at)
             VALUES ('a', 'SELECT 1', 5, 1, '2027-01-12'), ('b', 'SELECT 2', 5, 1, '2027-01-15');
             INSERT INTO fleet_queue_samples VALUES ('q', '2027-01-12', 0, 0, 0, 0), ('q', '2027-01-15', 0, 0, 0, 0)",
        )
        .await;
    watch.tick(Collector::Redis).await;
    let left = "SELECT count(*) FROM monitoring_service_status WHERE service_name = 'old'";
    assert_eq!(watch.one(left).await, "1");
    let hours = "SELECT string_agg(concat_ws(' ', timezone('utc', hour), up, down, latency_count, latency_max_ms), ';'
                   ORDER BY hour) FROM fleet_telemetry_status_hourly";
    assert_eq!(
        watch.one(hours).await,
        "2027-01-12 08:00:00 8100 900 8100 6;2027-01-12 09:00:00 3600 400 3600 6"
    );
    assert_eq!(watch.one("SELECT string_agg(query_hash, ' ') FROM monitoring_slow_queries").await, "b");
    assert_eq!(watch.one("SELECT count(*) FROM fleet_queue_samples").await, "1");
}

#[tokio::test]
async fn nodes_are_seen() {
    let world = World::new().await;
    let watch = Watch::new(&[]).await;
    // The nodes' database is the world's; the watch lends its Redis and clock.
    let proxmox = config(&world.url, &world.sim, world.sim.token_secret(), &[]).proxmox.unwrap();
    let service = watch.another_on(&world.url, &world.db).with_proxmox(Pve::new(&proxmox).unwrap(), &proxmox);
    assert!(service.collectors().contains(&Collector::Pods));
    service.tick(watch.due(Collector::Pods)).await.unwrap();
    let services = "SELECT string_agg(service_name || ' ' || status, ';' ORDER BY service_name)
                    FROM monitoring_service_status";
    assert_eq!(world.one(services).await, "node-node-1 up;node-node-2 up");
}
