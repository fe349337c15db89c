//! Names of pods at a real PowerDNS: written once, moved with the pod, gone
//! with it, and nobody else's touched.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use common::*;
use mpanel_testkit::powerdns::PowerDnsServer;
use mpanel_worker::{
    adapters::powerdns::{Change, PowerDns, Record, RrSet},
    config::{Config, Needs, Sources},
    services::cloudpods::dns::{Names, NamesError, Round},
};

const ZONE: &str = "pods.example.";

struct Setting {
    world: World,
    server: PowerDnsServer,
    names: Names,
    client: PowerDns,
}

impl Setting {
    async fn new(nameservers: Option<&str>) -> Self {
        let world = World::new().await;
        world.quota(-1, -1, -1, -1).await;
        let server = PowerDnsServer::start().await.unwrap();
        let config = config_for(&world, &server.url(), PowerDnsServer::KEY, nameservers).dns.unwrap();
        let client = PowerDns::new(&config.api_url, &config.api_key).unwrap();
        let names = Names::new(world.db.clone(), config).unwrap();
        Self { world, server, names, client }
    }

    /// Type and contents of what is at a name; empty when there is nothing.
    async fn at(&self, name: &str) -> Vec<String> {
        let sets = self.client.rrsets(ZONE, name).await.unwrap().unwrap_or_default();
        let mut texts: Vec<String> = sets
            .iter()
            .map(|set| {
                let contents: Vec<&str> = set.records.iter().map(|record| record.content.as_str()).collect();
                format!("{} {}", set.kind, contents.join(","))
            })
            .collect();
        texts.sort();
        texts
    }

    async fn pod(&self, vmid: u32, hostname: &str) -> String {
        let mut data = payload(vmid);
        data["hostname"] = hostname.into();
        self.world.attempt(&format!("create-{vmid}-1"), &data).await.unwrap().ip
    }
}

fn config_for(world: &World, url: &str, key: &str, nameservers: Option<&str>) -> Config {
    let mut sources = Sources::default();
    let values = [
        ("DATABASE_URL", world.url.as_str()),
        ("PDNS_API_URL", url),
        ("PDNS_API_KEY", key),
        ("MPANEL_FLEET_DNS__ZONE", "Pods.Example"),
        ("MPANEL_FLEET_DNS__NAMESERVERS", nameservers.unwrap_or_default()),
    ];
    for (name, value) in values {
        sources.env.insert(name.to_owned(), value.to_owned());
    }
    Config::from_sources(&sources, Needs::Database).unwrap()
}

#[tokio::test]
async fn a_pod_has_a_name_from_its_creation_to_its_end() {
    let setting = Setting::new(Some("ns1.example,ns2.example")).await;
    let world = &setting.world;
    world.execute("INSERT INTO fleet_ip_pools (cluster_id, cidr, next_ip, range_last) VALUES (1, 'fd00:1::/64', 'fd00:1::10', 'fd00:1::20')").await;
    let ip = setting.pod(121, "shop").await;
    setting.pod(122, "www.elsewhere.example").await;
    // The zone is made with the first name.
    let round = setting.names.round().await.unwrap();
    assert_eq!(round, Round { written: 1, ..Round::default() });
    assert_eq!(setting.at("shop.pods.example.").await, ["A ".to_owned() + &ip, "AAAA fd00:1::10".to_owned()]);
    let authorities = &setting.at(ZONE).await;
    assert!(authorities.iter().any(|set| set.contains("ns1.example.,ns2.example.") || set.contains("ns2.example.,ns1.example.")), "{authorities:?}");
    // A resolver sees it too.
    assert!(resolves(setting.server.dns_port(), "shop.pods.example", &ip).await);
    // Nothing changed: nothing is done.
    assert_eq!(setting.names.round().await.unwrap(), Round::default());

    world.execute("UPDATE cloud_pods SET hostname = 'store', ip = '10.7.7.7' WHERE vmid = 121").await;
    setting.names.round().await.unwrap();
    assert_eq!(setting.at("shop.pods.example.").await, [""; 0]);
    assert_eq!(setting.at("store.pods.example.").await[0], "A 10.7.7.7");

    world.execute("UPDATE fleet_pods SET phase = 'released'").await;
    assert_eq!(setting.names.round().await.unwrap().removed, 2);
    assert_eq!(setting.at("store.pods.example.").await, [""; 0]);
    assert_eq!(world.one("SELECT count(*) FROM fleet_dns").await, "0");
}

#[tokio::test]
async fn a_name_that_is_someone_elses_is_left_alone_until_it_is_free() {
    let setting = Setting::new(Some("ns1.example")).await;
    let world = &setting.world;
    setting.client.create_zone(ZONE, &["ns1.example.".to_owned()]).await.unwrap();
    // Twice is once.
    setting.client.create_zone(ZONE, &["ns1.example.".to_owned()]).await.unwrap();
    let by_hand = RrSet {
        name: "shop.pods.example.".to_owned(),
        kind: "A".to_owned(),
        ttl: 60,
        records: vec![Record { content: "192.0.2.1".to_owned(), disabled: false }],
        comments: Vec::new(),
    };
    setting.client.change(ZONE, &[Change::Replace(by_hand)]).await.unwrap();
    let ip = setting.pod(121, "shop").await;
    assert_eq!(setting.names.round().await.unwrap(), Round { taken: 1, ..Round::default() });
    assert_eq!(setting.at("shop.pods.example.").await, ["A 192.0.2.1"]);
    assert!(world.one("SELECT error FROM fleet_dns").await.contains("not this pod's"));
    // Not looked at again at once.
    assert_eq!(setting.names.round().await.unwrap(), Round::default());
    let delete = Change::Delete { name: "shop.pods.example.".to_owned(), kind: "A".to_owned() };
    setting.client.change(ZONE, &[delete]).await.unwrap();
    world.execute("UPDATE fleet_dns SET retry_at = now() - interval '1 second'").await;
    assert_eq!(setting.names.round().await.unwrap().written, 1);
    assert_eq!(setting.at("shop.pods.example.").await, [format!("A {ip}")]);
}

#[tokio::test]
async fn a_crash_between_note_and_record_is_made_good() {
    let setting = Setting::new(Some("ns1.example")).await;
    let ip = setting.pod(121, "shop").await;
    setting.names.round().await.unwrap();
    // As if it had ended after the note and before the record was written, or before it was noted as written.
    for lost in [true, false] {
        setting.world.execute("UPDATE fleet_dns SET state = 'pending'").await;
        if lost {
            let delete = Change::Delete { name: "shop.pods.example.".to_owned(), kind: "A".to_owned() };
            setting.client.change(ZONE, &[delete]).await.unwrap();
        }
        assert_eq!(setting.names.round().await.unwrap().written, 1);
        assert_eq!(setting.at("shop.pods.example.").await, [format!("A {ip}")]);
    }
}

#[tokio::test]
async fn what_is_wrong_is_told_and_nothing_is_lost() {
    let setting = Setting::new(None).await;
    setting.pod(121, "shop").await;
    let error = setting.names.round().await.unwrap_err();
    assert!(matches!(error, NamesError::NoZone(_)), "{error}");
    for (url, key, names) in [
        (setting.server.url(), "wrong", "PDNS_API_KEY"),
        ("http://127.0.0.1:9".to_owned(), "k", "cannot be reached"),
    ] {
        let config = config_for(&setting.world, &url, key, None).dns.unwrap();
        let error = Names::new(setting.world.db.clone(), config).unwrap().round().await.unwrap_err();
        assert!(error.to_string().contains(names), "{error}");
    }
    setting.client.create_zone(ZONE, &["ns1.example.".to_owned()]).await.unwrap();
    assert_eq!(setting.names.round().await.unwrap().written, 1);
}

#[tokio::test]
async fn without_a_zone_it_is_off_and_a_zone_without_a_key_is_refused() {
    let mut sources = Sources::default();
    sources.env.insert("DATABASE_URL".to_owned(), "postgresql://a:b@127.0.0.1/c".to_owned());
    sources.env.insert("PDNS_API_URL".to_owned(), "http://127.0.0.1:8081".to_owned());
    assert!(Config::from_sources(&sources, Needs::Database).unwrap().dns.is_none());
    sources.env.insert("MPANEL_FLEET_DNS__ZONE".to_owned(), "pods.example".to_owned());
    let error = Config::from_sources(&sources, Needs::Database).unwrap_err().to_string();
    assert!(error.contains("PDNS_API_KEY"), "{error}");
}

/// Asks the server itself, by a query for an A record over UDP.
async fn resolves(port: u16, name: &str, ip: &str) -> bool {
    let mut query = vec![0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&query, ("127.0.0.1", port)).await.unwrap();
    let mut answer = [0; 512];
    let length = tokio::time::timeout(std::time::Duration::from_secs(10), socket.recv(&mut answer))
        .await
        .unwrap()
        .unwrap();
    // The last four bytes of the only answer are its address.
    let wanted: std::net::Ipv4Addr = ip.parse().unwrap();
    answer[..length].windows(4).any(|bytes| bytes == wanted.octets())
}
