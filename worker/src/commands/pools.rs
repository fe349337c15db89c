//! `cloudpods pools …`.

use serde_json::json;
use sqlx::PgPool;

use super::{note, print_json, print_table};
use crate::{
    adapters::db::pool_admin::{self as pools, Excluded, PoolRecord, Released, Removed},
    cli::{PoolAdd, PoolExclude, PoolId, PoolInclude, PoolRelease, Pools},
    exit::{Exit, Failed},
};

mod ranges;

/// Lists, adds, changes or removes address pools.
///
/// # Errors
/// With the exit code of what went wrong.
pub async fn pools(db: &PgPool, command: &Pools) -> Result<(), Failed> {
    match command {
        Pools::List(args) => list(&pools::all(db).await?, args.json),
        Pools::Show(args) => show(db, args).await,
        Pools::Add(args) => add(db, args).await,
        Pools::Exclude(args) => exclude(db, args).await,
        Pools::Include(args) => include(db, args).await,
        Pools::Release(args) => release(db, args).await,
        Pools::Remove(args) => remove(db, args).await,
    }
}

fn no_pool(id: i32) -> Failed {
    Failed::new(Exit::NotFound, format!("no pool {id}; `mpanel-worker cloudpods pools list` shows all"))
}

fn list(pools: &[PoolRecord], json: bool) -> Result<(), Failed> {
    if json {
        let rows: Vec<_> = pools
            .iter()
            .map(|pool| {
                json!({
                    "id": pool.id, "cluster": pool.cluster, "cidr": pool.cidr, "gateway": pool.gateway,
                    "bridge": pool.bridge, "vlan": pool.vlan, "total": pool.total, "free": pool.free,
                    "resting": pool.resting, "quarantined": pool.quarantined, "exclusions": pool.exclusions,
                    "restSeconds": pool.rest_s,
                })
            })
            .collect();
        return print_json(&json!({ "version": 1, "pools": rows }));
    }
    if pools.is_empty() {
        note("no pools yet: pods with autoIp use DHCP; add one: mpanel-worker cloudpods pools add --help");
    }
    let rows = pools
        .iter()
        .map(|pool| {
            [
                pool.id.to_string(),
                pool.cluster.clone(),
                pool.cidr.clone(),
                pool.gateway.clone().unwrap_or_default(),
                pool.bridge.clone().unwrap_or_default(),
                pool.vlan.map(|vlan| vlan.to_string()).unwrap_or_default(),
                format!("{} / {}", pool.free, pool.total),
                pool.resting.to_string(),
                pool.quarantined.to_string(),
                pool.exclusions.to_string(),
            ]
        })
        .collect();
    let header = [
        "id",
        "cluster",
        "network",
        "gateway",
        "bridge",
        "VLAN",
        "free",
        "resting",
        "quarantined",
        "exclusions",
    ];
    print_table(header, rows)
}

async fn show(db: &PgPool, args: &PoolId) -> Result<(), Failed> {
    if !pools::all(db).await?.iter().any(|pool| pool.id == args.id) {
        return Err(no_pool(args.id));
    }
    let (exclusions, addresses) =
        (pools::exclusions(db, args.id).await?, pools::addresses(db, args.id).await?);
    if args.json {
        let exclusions: Vec<_> = exclusions
            .iter()
            .map(|range| json!({ "first": range.first, "last": range.last, "note": range.note }))
            .collect();
        let addresses: Vec<_> = addresses
            .iter()
            .map(|address| {
                json!({
                    "ip": address.ip, "state": address.state, "podId": address.pod_id,
                    "hostname": address.hostname, "restsUntil": address.rests_until,
                })
            })
            .collect();
        return print_json(
            &json!({ "version": 1, "id": args.id, "exclusions": exclusions, "addresses": addresses }),
        );
    }
    let mut rows: Vec<[String; 4]> = exclusions
        .into_iter()
        .map(|range| {
            let note = range.note.unwrap_or_default();
            [format!("{} - {}", range.first, range.last), "excluded".to_owned(), String::new(), note]
        })
        .collect();
    rows.extend(addresses.into_iter().map(|address| {
        let pod = address.pod_id.map(|id| id.to_string()).unwrap_or_default();
        let more = address.hostname.or(address.rests_until.map(|until| format!("until {until}")));
        [address.ip, address.state, pod, more.unwrap_or_default()]
    }));
    print_table(["address", "state", "pod", ""], rows)
}

async fn add(db: &PgPool, args: &PoolAdd) -> Result<(), Failed> {
    let new = ranges::new_pool(args).map_err(|problem| Failed::new(Exit::Usage, problem))?;
    let added = pools::add(db, &new).await.map_err(|error| match error.constraint() {
        Some("fleet_ip_pools_no_overlap") => Failed::new(
            Exit::Precondition,
            format!("{} overlaps another pool of cluster {} in that VLAN", args.cidr, args.cluster),
        ),
        _ => error.into(),
    })?;
    let Some(id) = added else {
        return Err(Failed::new(
            Exit::NotFound,
            format!("no cluster {}; `cloudpods nodes add --cluster` makes one", args.cluster),
        ));
    };
    if args.json {
        return print_json(&json!({ "version": 1, "id": id, "cidr": new.cidr }));
    }
    note(&format!("pool {id} of {} added; `cloudpods pools list` shows its addresses", new.cidr));
    Ok(())
}

async fn exclude(db: &PgPool, args: &PoolExclude) -> Result<(), Failed> {
    let (first, last) = ranges::range(&args.range).map_err(|problem| Failed::new(Exit::Usage, problem))?;
    let (first, last) = (first.to_string(), last.to_string());
    match pools::exclude(db, args.id, &first, &last, args.note.as_deref()).await? {
        Excluded::Yes(in_use) if args.json => {
            print_json(&json!({ "version": 1, "id": args.id, "first": first, "last": last, "inUse": in_use }))
        }
        Excluded::Yes(in_use) => {
            let stay =
                if in_use > 0 { format!("; {in_use} of them are in use and stay so") } else { String::new() };
            note(&format!("{first} to {last} of pool {} are not handed out any more{stay}", args.id));
            Ok(())
        }
        Excluded::NotFound => Err(no_pool(args.id)),
        Excluded::Outside(cidr) => {
            Err(Failed::new(Exit::Usage, format!("{} is not within pool {}, {cidr}", args.range, args.id)))
        }
        Excluded::Overlaps(other) => Err(Failed::new(
            Exit::Precondition,
            format!("{} overlaps the excluded range that begins with {other}", args.range),
        )),
    }
}

async fn include(db: &PgPool, args: &PoolInclude) -> Result<(), Failed> {
    if !pools::include(db, args.id, &args.first.to_string()).await? {
        return Err(Failed::new(
            Exit::NotFound,
            format!(
                "no excluded range of pool {} begins with {}; `pools show` lists them",
                args.id, args.first
            ),
        ));
    }
    if args.json {
        return print_json(&json!({ "version": 1, "id": args.id, "first": args.first }));
    }
    note(&format!("the range of pool {} from {} is handed out again", args.id, args.first));
    Ok(())
}

async fn release(db: &PgPool, args: &PoolRelease) -> Result<(), Failed> {
    match pools::release(db, args.id, &args.ip.to_string(), args.now).await? {
        Released::Yes if args.json => {
            print_json(&json!({ "version": 1, "id": args.id, "ip": args.ip, "rests": !args.now }))
        }
        Released::Yes => {
            note(&format!("{} {}", args.ip, if args.now { "is free" } else { "rests, then it is free" }));
            Ok(())
        }
        Released::NotFound => Err(Failed::new(
            Exit::NotFound,
            format!("pool {} has no address {} that is not free", args.id, args.ip),
        )),
        Released::InUse(state) => Err(Failed::new(
            Exit::Precondition,
            format!("{} is {state}: a pod has it; destroy that pod instead", args.ip),
        )),
    }
}

async fn remove(db: &PgPool, args: &PoolId) -> Result<(), Failed> {
    match pools::remove(db, args.id).await? {
        Removed::Yes if args.json => print_json(&json!({ "version": 1, "removed": args.id })),
        Removed::Yes => {
            note(&format!("pool {} removed", args.id));
            Ok(())
        }
        Removed::NotFound => Err(no_pool(args.id)),
        Removed::InUse(count) => Err(Failed::new(
            Exit::Precondition,
            format!("{count} addresses of pool {} are in use; destroy those pods first", args.id),
        )),
    }
}
