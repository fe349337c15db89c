//! `cloudpods pools …`.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde_json::json;
use sqlx::PgPool;

use super::{note, print_json, print_table};
use crate::{
    adapters::db::pools::{self, NewPool, POOL_SIZE_MAX, PoolRecord, Removed},
    cli::{PoolAdd, Pools},
    exit::{Exit, Failed},
};

/// Lists, adds or removes address pools.
///
/// # Errors
/// With the exit code of what went wrong.
pub async fn pools(db: &PgPool, command: &Pools) -> Result<(), Failed> {
    match command {
        Pools::List(args) => list(&pools::all(db).await?, args.json),
        Pools::Add(args) => add(db, args).await,
        Pools::Remove(args) => match pools::remove(db, args.id).await? {
            Removed::Yes if args.json => print_json(&json!({ "version": 1, "removed": args.id })),
            Removed::Yes => {
                note(&format!("pool {} removed", args.id));
                Ok(())
            }
            Removed::NotFound => Err(Failed::new(
                Exit::NotFound,
                format!("no pool {}; `mpanel-worker cloudpods pools list` shows all", args.id),
            )),
            Removed::InUse(count) => Err(Failed::new(
                Exit::Precondition,
                format!("{count} addresses of pool {} are in use; destroy those pods first", args.id),
            )),
        },
    }
}

fn list(pools: &[PoolRecord], json: bool) -> Result<(), Failed> {
    if json {
        let rows: Vec<_> = pools
            .iter()
            .map(|pool| {
                json!({
                    "id": pool.id, "cluster": pool.cluster, "cidr": pool.cidr, "gateway": pool.gateway,
                    "bridge": pool.bridge, "vlan": pool.vlan, "total": pool.total, "free": pool.free,
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
            ]
        })
        .collect();
    print_table(["id", "cluster", "network", "gateway", "bridge", "VLAN", "free"], rows)
}

async fn add(db: &PgPool, args: &PoolAdd) -> Result<(), Failed> {
    let new = new_pool(args).map_err(|problem| Failed::new(Exit::Usage, problem))?;
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

/// The pool that the arguments mean; pure.
fn new_pool(args: &PoolAdd) -> Result<NewPool, String> {
    let network: Ipv4Network =
        args.cidr.parse().map_err(|_| format!("`{}` is no IPv4 network such as 10.20.0.0/24", args.cidr))?;
    if network.ip() != network.network() {
        return Err(format!(
            "`{}` has host bits; the network is {}/{}",
            args.cidr,
            network.network(),
            network.prefix()
        ));
    }
    if network.prefix() > 30 {
        return Err(format!("`{}` is too small: /30 is the least", args.cidr));
    }
    let address = |text: &str| -> Result<Ipv4Addr, String> {
        let ip: Ipv4Addr = text.trim().parse().map_err(|_| format!("`{text}` is no IPv4 address"))?;
        if network.contains(ip) { Ok(ip) } else { Err(format!("{ip} is not in {}", args.cidr)) }
    };
    let gateway = args.gateway.as_deref().map(address).transpose()?;
    let hosts = (u32::from(network.network()) + 1, u32::from(network.broadcast()) - 1);
    let (first, last) = match &args.range {
        None => hosts,
        Some(range) => {
            let (first, last) = range.split_once('-').ok_or("--range must be FIRST-LAST")?;
            let (first, last) = (u32::from(address(first)?), u32::from(address(last)?));
            if first > last || first < hosts.0 || last > hosts.1 {
                return Err(format!("--range {range} must go up, without network and broadcast address"));
            }
            (first, last)
        }
    };
    let count = u64::from(last - first) + 1;
    if count > POOL_SIZE_MAX {
        return Err(format!(
            "{count} addresses are too many for one pool (at most {POOL_SIZE_MAX}): use --range"
        ));
    }
    Ok(NewPool {
        cluster: args.cluster.clone(),
        cidr: format!("{}/{}", network.network(), network.prefix()),
        gateway: gateway.map(|ip| ip.to_string()),
        bridge: args.bridge.clone(),
        vlan: args.vlan,
        first: Ipv4Addr::from(first).to_string(),
        count: i64::try_from(count).unwrap_or(i64::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(cidr: &str, gateway: Option<&str>, range: Option<&str>) -> PoolAdd {
        PoolAdd {
            cidr: cidr.to_owned(),
            gateway: gateway.map(str::to_owned),
            range: range.map(str::to_owned),
            bridge: None,
            vlan: None,
            cluster: "default".to_owned(),
            json: false,
        }
    }

    #[test]
    fn a_network_hands_out_its_hosts_or_a_range_of_them() {
        let pool = new_pool(&args("10.20.0.0/24", Some("10.20.0.1"), None)).unwrap();
        assert_eq!((pool.first.as_str(), pool.count), ("10.20.0.1", 254));
        let pool = new_pool(&args("10.20.0.0/24", None, Some("10.20.0.50-10.20.0.59"))).unwrap();
        assert_eq!((pool.first.as_str(), pool.count), ("10.20.0.50", 10));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let bad = [
            args("10.20.0.5/24", None, None),
            args("fd00::/64", None, None),
            args("10.0.0.0/8", None, None),
            args("10.20.0.0/31", None, None),
            args("10.20.0.0/24", Some("10.21.0.1"), None),
            args("10.20.0.0/24", None, Some("10.20.0.9-10.20.0.1")),
            args("10.20.0.0/24", None, Some("10.20.0.0-10.20.0.9")),
            args("10.20.0.0/24", None, Some("10.20.0.9")),
        ];
        for args in bad {
            assert!(new_pool(&args).is_err(), "{args:?}");
        }
    }
}
