//! In a Cluster: each key at its node, also while slots move and nodes fail.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use mpanel_connect::{Conn, Redis, is_broken};
use mpanel_protocol::keys::slot;
use mpanel_testkit::{Cluster, eventually, redis_server::RedisServerBuilder, tls::Authority};
use redis::RedisResult;

const PATIENCE: Duration = Duration::from_secs(20);

async fn on<T: redis::FromRedisValue>(conn: &mut Conn, command: &[&str]) -> RedisResult<T> {
    redis::cmd(command[0]).arg(&command[1..]).query_async(conn).await
}

async fn conn(redis: &Redis, key: &str) -> Conn {
    redis.shared_for(key).await.unwrap().conn
}

/// How often the nodes have told of a redirection of this kind.
async fn told(cluster: &Cluster, code: &str) -> u64 {
    let mut told = 0;
    for node in cluster.nodes() {
        let client = redis::Client::open(node.url()).unwrap();
        let mut conn = client.get_multiplexed_async_connection().await.unwrap();
        let stats: String = redis::cmd("INFO").arg("errorstats").query_async(&mut conn).await.unwrap();
        let prefix = format!("errorstat_{code}:count=");
        told +=
            stats.lines().filter_map(|l| l.strip_prefix(&prefix)?.trim().parse::<u64>().ok()).sum::<u64>();
    }
    told
}

#[tokio::test]
async fn keys_go_to_their_nodes_and_redirections_are_followed() {
    let cluster = Cluster::start(false).await.unwrap();
    let redis = Redis::open(&cluster.url()).unwrap();
    assert!(redis.is_cluster().await.unwrap());
    // Slots 9263, 3300 and 15495: one on each node.
    let keys = ["{bull}", "{b}", "{a}"];
    for key in keys {
        on::<()>(&mut conn(&redis, key).await, &["SET", key, key]).await.unwrap();
    }
    let places: Vec<_> = {
        let mut places = Vec::new();
        for key in keys {
            places.push(redis.place_of(key).await.unwrap());
        }
        places
    };
    assert!(places[0] != places[1] && places[1] != places[2] && places[0] != places[2], "{places:?}");
    assert_eq!(redis.shared_all().await.unwrap().len(), 3);

    // A slot that has moved: a connection from before follows.
    let mut before = conn(&redis, "{a}").await;
    let mut own = redis.dedicated("{a}", None, PATIENCE).await.unwrap();
    let owner = cluster.owner(slot("{a}")).await.unwrap();
    let to = &cluster.nodes()[0];
    assert_ne!(owner.port(), to.port());
    cluster.move_slot(slot("{a}"), to).await.unwrap();
    let moved = told(&cluster, "MOVED").await;
    assert_eq!(on::<String>(&mut before, &["GET", "{a}"]).await.unwrap(), "{a}");
    assert!(told(&cluster, "MOVED").await > moved);
    assert_eq!(redis.place_of("{a}").await.unwrap(), redis.place_of("{b}").await.unwrap());
    // One of one's own stays with its server: it says so, and the next is right.
    let error = on::<String>(&mut own, &["GET", "{a}"]).await.unwrap_err();
    assert!(error.code() == Some("MOVED") && is_broken(&error), "{error}");
    let mut own = redis.dedicated("{a}", None, PATIENCE).await.unwrap();
    assert_eq!(on::<String>(&mut own, &["GET", "{a}"]).await.unwrap(), "{a}");
}

#[tokio::test]
async fn a_slot_on_the_move_is_asked_for_on_both_sides() {
    let cluster = Cluster::start(false).await.unwrap();
    let redis = Redis::open(&cluster.url()).unwrap();
    let key = |n: u32| format!("{{a}}:{n}");
    let mut conn = conn(&redis, "{a}").await;
    for n in 0..10 {
        on::<()>(&mut conn, &["SET", &key(n), &n.to_string()]).await.unwrap();
    }
    let (slot, to) = (slot("{a}"), &cluster.nodes()[0]);
    cluster.begin_move(slot, to).await.unwrap();
    assert_eq!(cluster.move_keys(slot, to, 5).await.unwrap(), 5);
    let asked = told(&cluster, "ASK").await;
    let mut pipe = redis::pipe();
    for n in 0..10 {
        pipe.get(key(n));
        assert_eq!(on::<u32>(&mut conn, &["GET", &key(n)]).await.unwrap(), n);
    }
    let together: Vec<u32> = pipe.query_async(&mut conn).await.unwrap();
    assert_eq!(together, (0..10).collect::<Vec<_>>());
    assert_eq!(told(&cluster, "ASK").await, asked + 10);
    // A new key is made where the slot is going.
    on::<()>(&mut conn, &["SET", "{a}:new", "1"]).await.unwrap();

    // What needs keys of both sides waits for the end of the move, whole.
    let (first, second) = {
        let mut halves = (Vec::new(), Vec::new());
        for n in 0..10 {
            let client = redis::Client::open(to.url()).unwrap();
            let mut there = client.get_multiplexed_async_connection().await.unwrap();
            let mut pipe = redis::pipe();
            pipe.cmd("ASKING").ignore().exists(key(n));
            let (exists,): (bool,) = pipe.query_async(&mut there).await.unwrap();
            if exists { halves.1.push(key(n)) } else { halves.0.push(key(n)) }
        }
        (halves.0.swap_remove(0), halves.1.swap_remove(0))
    };
    let mut script = redis::cmd("EVAL");
    let text = "redis.call('SET', KEYS[1], 'x'); redis.call('SET', KEYS[2], 'x'); return 1";
    script.arg(text).arg(2).arg(&first).arg(&second);
    let mut transaction = redis::pipe();
    transaction.atomic().set(&first, "y").ignore().set(&second, "y").ignore();
    let ended = async {
        eventually("a refusal for the time of the move", PATIENCE, || async {
            let refused = told(&cluster, "TRYAGAIN").await;
            if refused > 0 { Ok(()) } else { Err("none".to_owned()) }
        })
        .await
        .unwrap();
        while cluster.move_keys(slot, to, 100).await.unwrap() > 0 {}
        cluster.end_move(slot, to).await.unwrap();
    };
    let mut other = conn.clone();
    let (done, ended, committed) =
        tokio::join!(script.query_async::<u32>(&mut conn), ended, transaction.query_async::<()>(&mut other));
    assert_eq!(((), done.unwrap()), (ended, 1));
    committed.unwrap();
    let values: Vec<String> = on(&mut conn, &["MGET", &first, &second, "{a}:new"]).await.unwrap();
    assert!(values[0] == values[1] && values[2] == "1", "{values:?}");
}

#[tokio::test]
async fn every_node_is_reached_by_tls() {
    let authority = Authority::new().unwrap();
    let with_tls = |node: RedisServerBuilder| {
        node.tls(&authority).config("tls-cluster yes").config("tls-auth-clients no")
    };
    let cluster = Cluster::with(false, with_tls).await.unwrap();
    let (port, ca) = (cluster.nodes()[0].tls_port().unwrap(), authority.ca());
    let redis = Redis::open(&format!("rediss+cluster://127.0.0.1:{port}?ca={}", ca.display())).unwrap();
    for key in ["{bull}", "{b}", "{a}"] {
        on::<()>(&mut conn(&redis, key).await, &["SET", key, key]).await.unwrap();
    }
    let to = &cluster.nodes()[0];
    cluster.move_slot(slot("{a}"), to).await.unwrap();
    assert_eq!(on::<String>(&mut conn(&redis, "{a}").await, &["GET", "{a}"]).await.unwrap(), "{a}");
}

#[tokio::test]
async fn a_replica_takes_over_for_a_node_that_froze() {
    let cluster = Cluster::start(true).await.unwrap();
    let redis = Redis::open(&cluster.url()).unwrap();
    let old = cluster.owner(slot("{a}")).await.unwrap();
    on::<()>(&mut conn(&redis, "{a}").await, &["SET", "{a}", "1"]).await.unwrap();
    let mut blocked = redis.dedicated("{a}list", None, Duration::from_secs(60)).await.unwrap();
    let blocked =
        tokio::spawn(async move { on::<redis::Value>(&mut blocked, &["BLPOP", "{a}list", "50"]).await });
    old.sigstop().unwrap();
    // The other nodes serve on.
    on::<()>(&mut conn(&redis, "{b}").await, &["SET", "{b}", "1"]).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, blocked).await.unwrap().unwrap();
    assert!(is_broken(&ended.unwrap_err()));
    eventually("a write to the slot", PATIENCE, || async {
        let mut shared = redis.shared_for("{a}").await.map_err(|e| e.to_string())?;
        let wrote = on::<()>(&mut shared.conn, &["SET", "{a}", "2"]).await;
        if let Err(error) = &wrote {
            redis.report(&shared, error).await;
        }
        wrote.map_err(|e| e.to_string())
    })
    .await
    .unwrap();
    assert_ne!(cluster.owner_after(slot("{a}"), old.port()).await.unwrap().port(), old.port());
}
