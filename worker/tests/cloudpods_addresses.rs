//! Address pools: exclusion ranges, IPv6 beside IPv4, rest after release, and
//! the commands that an operator has for them.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use std::collections::HashSet;

use common::{
    stage::{ends, program},
    *,
};
use mpanel_worker::adapters::db::{
    self,
    pools::{self, AddressState, Taken},
};
use sqlx::PgPool;
use uuid::Uuid;

/// `cloudpods pools …` on this database: exit code, and everything it wrote.
async fn pools_command(url: &str, args: &[&str]) -> (i32, String) {
    let args: Vec<&str> = ["cloudpods", "pools"].into_iter().chain(args.iter().copied()).collect();
    ends(program(&args).env("DATABASE_URL", url.to_owned())).await
}

async fn done(url: &str, args: &[&str]) -> String {
    let (code, text) = pools_command(url, args).await;
    assert_eq!(code, 0, "{args:?}: {text}");
    text
}

async fn one(db: &PgPool, sql: &str) -> String {
    let sql = format!("SELECT COALESCE((SELECT ({sql})::text), '-')");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(db).await.unwrap()
}

/// Takes an address of a family in a transaction of its own.
async fn take(db: &PgPool, v6: bool, pod_id: Uuid) -> Taken {
    let mut tx = db::begin(db).await.unwrap();
    let taken = if v6 {
        pools::take_v6(&mut tx, 1, (None, None), pod_id, 1).await.unwrap()
    } else {
        pools::take_any(&mut tx, 1, pod_id, 1).await.unwrap()
    };
    db::commit(tx).await.unwrap();
    taken
}

#[tokio::test]
async fn a_pod_gets_an_address_of_each_family_and_none_that_is_excluded() {
    let world = World::new().await;
    world.quota(-1, -1, -1, -1).await;
    let v4 = ["add", "10.20.0.0/24", "--gateway", "10.20.0.1", "--exclude", "10.20.0.2-10.20.0.49"];
    done(&world.url, &v4).await;
    let v6 = [
        "add",
        "2001:db8:1::/64",
        "--gateway",
        "2001:db8:1::1",
        "--exclude",
        "2001:db8:1::10-2001:db8:1::1f",
    ];
    done(&world.url, &v6).await;
    for (vmid, ip, ip6) in [(121, "10.20.0.50", "2001:db8:1::20"), (122, "10.20.0.51", "2001:db8:1::21")] {
        let result = world.attempt(&format!("create-{vmid}-1"), &payload(vmid)).await.unwrap();
        assert_eq!(result.ip, ip);
        let card = world.sim.guest(vmid).unwrap().config["net0"].clone();
        for part in [
            format!("ip={ip}/24"),
            "gw=10.20.0.1".to_owned(),
            format!("ip6={ip6}/64"),
            "gw6=2001:db8:1::1".to_owned(),
        ] {
            assert!(card.contains(&part), "{part} is not in {card}");
        }
    }
    assert_eq!(world.one("SELECT count(*) FROM fleet_ips WHERE state = 'used'").await, "4");
    // Named by the payload, yet kept for something else.
    let mut data = payload(123);
    data["ip"] = "10.20.0.7".into();
    let error = world.attempt("create-123-1", &data).await.unwrap_err().to_string();
    assert!(error.contains("10.20.0.7") && error.contains("exclusion range"), "{error}");
}

#[tokio::test]
async fn addresses_are_handed_out_once_however_many_ask() {
    let (url, db) = database().await;
    // 64 in the range; 8 excluded, one is the gateway.
    for (cidr, gateway, range, exclude) in [
        ("10.20.0.0/24", "10.20.0.70", "10.20.0.64-10.20.0.127", "10.20.0.80-10.20.0.87"),
        ("fd00:1::/64", "fd00:1::70", "fd00:1::40-fd00:1::7f", "fd00:1::50-fd00:1::57"),
    ] {
        done(&url, &["add", cidr, "--gateway", gateway, "--range", range, "--exclude", exclude]).await;
    }
    for v6 in [false, true] {
        let asked = (0..80).map(|_| take(&db, v6, Uuid::new_v4()));
        let all = futures_util::future::join_all(asked).await;
        let taken: Vec<&str> = all
            .iter()
            .filter_map(|taken| match taken {
                Taken::Address(address) => Some(address.ip.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(taken.len(), 55, "{all:?}");
        assert_eq!(taken.iter().collect::<HashSet<_>>().len(), 55);
        assert_eq!(all.iter().filter(|taken| **taken == Taken::Exhausted).count(), 25);
        let excluded = if v6 { "fd00:1::5" } else { "10.20.0.8" };
        let kept: Vec<&&str> = taken.iter().filter(|ip| ip.starts_with(excluded)).collect();
        // 10.20.0.88 and .89, and fd00:1::58 to ::5f, are beside the excluded ranges.
        assert_eq!(kept.len(), if v6 { 8 } else { 2 }, "{kept:?}");
    }
    let listed = done(&url, &["list", "--json"]).await;
    let listed: serde_json::Value =
        serde_json::from_str(&listed[listed.find('{').unwrap()..=listed.rfind('}').unwrap()]).unwrap();
    for pool in listed["pools"].as_array().unwrap() {
        assert_eq!((pool["free"].as_i64(), pool["total"].as_i64()), (Some(0), Some(55)), "{pool}");
    }
}

#[tokio::test]
async fn a_released_address_rests_as_long_as_its_pool_says() {
    let (url, db) = database().await;
    for (cidr, hours) in [("10.20.0.0/30", "48"), ("10.21.0.0/30", "0")] {
        let range = cidr.replace(".0/30", ".1");
        done(&url, &["add", cidr, "--range", &format!("{range}-{range}"), "--rest-hours", hours]).await;
    }
    let pods = [Uuid::new_v4(), Uuid::new_v4()];
    for pod in pods {
        assert!(matches!(take(&db, false, pod).await, Taken::Address(_)));
    }
    assert_eq!(take(&db, false, Uuid::new_v4()).await, Taken::Exhausted);
    let mut tx = db::begin(&db).await.unwrap();
    for pod in pods {
        pools::set_state(&mut tx, pod, 1, AddressState::Cooldown).await.unwrap();
    }
    db::commit(tx).await.unwrap();
    let rests =
        one(&db, "SELECT round(extract(epoch FROM max(cooldown_until) - now()) / 3600) FROM fleet_ips").await;
    assert_eq!(rests, "48");
    // The one without rest comes at once, the other not.
    let Taken::Address(address) = take(&db, false, Uuid::new_v4()).await else { panic!("none") };
    assert_eq!(address.ip, "10.21.0.1");
    assert_eq!(take(&db, false, Uuid::new_v4()).await, Taken::Exhausted);
}

#[tokio::test]
async fn an_operator_excludes_includes_and_releases() {
    let (url, db) = database().await;
    done(&url, &["add", "10.20.0.0/29"]).await;
    let pod = Uuid::new_v4();
    assert!(matches!(take(&db, false, pod).await, Taken::Address(_)));
    let text = done(&url, &["exclude", "1", "10.20.0.1-10.20.0.3", "--note", "printers"]).await;
    assert!(text.contains("1 of them are in use"), "{text}");
    let Taken::Address(next) = take(&db, false, Uuid::new_v4()).await else { panic!("none") };
    assert_eq!(next.ip, "10.20.0.4");
    for (args, wanted) in [
        (&["exclude", "1", "10.20.0.3-10.20.0.5"][..], 4),
        (&["exclude", "1", "10.20.9.1"][..], 2),
        (&["exclude", "9", "10.20.0.6"][..], 3),
        (&["exclude", "1", "nonsense"][..], 2),
        (&["include", "1", "10.20.0.2"][..], 3),
        (&["release", "1", "10.20.0.1"][..], 4),
        (&["release", "1", "10.20.0.6"][..], 3),
        (&["show", "9"][..], 3),
        (&["remove", "1"][..], 4),
    ] {
        let (code, text) = pools_command(&url, args).await;
        assert_eq!(code, wanted, "{args:?}: {text}");
    }
    let mut tx = db::begin(&db).await.unwrap();
    pools::set_state(&mut tx, pod, 1, AddressState::Quarantined).await.unwrap();
    db::commit(tx).await.unwrap();
    let shown = done(&url, &["show", "1"]).await;
    assert!(shown.contains("printers") && shown.contains("quarantined"), "{shown}");
    done(&url, &["release", "1", "10.20.0.1"]).await;
    assert_eq!(one(&db, "SELECT state FROM fleet_ips WHERE ip = '10.20.0.1'").await, "cooldown");
    done(&url, &["release", "1", "10.20.0.1", "--now"]).await;
    assert_eq!(one(&db, "SELECT state FROM fleet_ips WHERE ip = '10.20.0.1'").await, "free");
    done(&url, &["include", "1", "10.20.0.1"]).await;
    let Taken::Address(lowest) = take(&db, false, Uuid::new_v4()).await else { panic!("none") };
    assert_eq!(lowest.ip, "10.20.0.1");
}
