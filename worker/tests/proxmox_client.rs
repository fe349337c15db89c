//! Every call of the Proxmox client against the simulator, which checks each
//! request by Proxmox's own description of its API.

#![allow(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod common;

use std::time::Duration;

use common::{operations::ends_well, sim_config};
use mpanel_testkit::pve::{Fault, FaultAction, PveSim, PveSimConfig};
use mpanel_worker::{
    adapters::proxmox::{
        Advice, Backup, Class, CloneSpec, ContainerSpec, GuestAt, GuestKind, Outcome, Power, Pve, PveClient,
    },
    config::{Login, ProxmoxConfig, TlsTrust, proxmox::base_url},
};

fn client(sim: &PveSim, login: Login) -> PveClient {
    let digits: String = sim.fingerprint().chars().filter(|c| *c != ':').collect();
    let mut pin = [0; 32];
    for (byte, pair) in pin.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    }
    let config = ProxmoxConfig {
        api_url: None,
        fallback_url: None,
        login,
        trust: TlsTrust::Pinned(vec![pin]),
        settle: Duration::from_secs(2),
    };
    Pve::new(&config).unwrap().at(&base_url(&sim.url()).unwrap())
}

fn by_token(sim: &PveSim) -> Login {
    Login::Token { id: sim.token_id().to_owned(), secret: sim.token_secret().into() }
}

fn by_password(password: &str) -> Login {
    Login::Password { user: "root@pam".to_owned(), password: password.into() }
}

fn container(vmid: u32) -> ContainerSpec {
    ContainerSpec {
        vmid,
        ostemplate: mpanel_testkit::pve::LXC_TEMPLATE.to_owned(),
        hostname: "shop".to_owned(),
        cores: 1,
        memory_mb: 512,
        swap_mb: 0,
        rootfs: "clients-main:4".to_owned(),
        net0: "name=eth0,bridge=vmbr0,ip=dhcp".to_owned(),
        pool: None,
        tags: vec!["mpanel".to_owned()],
        description: "whose it is".to_owned(),
    }
}

/// The calls that both kinds of guest take.
async fn every_call(client: &PveClient, at: &GuestAt) {
    let config = client.guest_config(at).await.unwrap().unwrap();
    let stale = "0".repeat(40);
    match client.set_guest_config(at, Some(&stale), &[("memory", "768")]).await {
        Outcome::NotDone(error) => assert_eq!(error.class.advice(), Advice::Conflict),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        client.set_guest_config(at, config.digest.as_deref(), &[("memory", "768")]).await,
        Outcome::Done(())
    ));
    ends_well(client, client.take_snapshot(at, "one", "note").await).await;
    assert_eq!(client.snapshots(at).await.unwrap()[0].description.as_deref(), Some("note"));
    ends_well(client, client.roll_back(at, "one").await).await;
    ends_well(client, client.delete_snapshot(at, "one").await).await;
    assert!(client.snapshots(at).await.unwrap().is_empty());
    let disk = if at.kind == GuestKind::Lxc { "rootfs" } else { "scsi0" };
    ends_well(client, client.grow_disk(at, disk, 50).await).await;
    match client.grow_disk(at, disk, 2).await {
        Outcome::NotDone(error) => {
            assert_eq!((error.class, error.class.advice()), (Class::NoShrink, Advice::Never))
        }
        other => panic!("{other:?}"),
    }
    for power in [Power::Start, Power::Reboot { patience_s: 10 }, Power::Suspend, Power::Resume] {
        ends_well(client, client.power(at, power).await).await;
    }
    assert!(client.guest_status(at).await.unwrap().works());
    client.guest_pending(at).await.unwrap();
    assert!(!client.guest_history(at).await.unwrap().is_empty());
    assert!(matches!(client.set_firewall(at, true).await, Outcome::Done(_)));
    let rule = [("type", "in"), ("action", "ACCEPT"), ("comment", "mpanel:1"), ("enable", "1")];
    assert!(matches!(client.add_firewall_rule(at, &rule).await, Outcome::Done(_)));
    let rules = client.firewall_rules(at).await.unwrap();
    let digest = rules[0]["digest"].as_str().unwrap();
    assert!(matches!(client.delete_firewall_rule(at, 0, digest).await, Outcome::Done(_)));
    let backup = Backup { vmid: at.vmid, mode: "snapshot", storage: "local", note: "mine" };
    ends_well(client, client.back_up(&at.node, backup).await).await;
    let volumes = client.backups(&at.node, "local", at.vmid).await.unwrap();
    assert_eq!(volumes[0].notes.as_deref(), Some("mine"));
    assert!(matches!(client.delete_volume(&at.node, "local", &volumes[0].volid).await, Outcome::Done(_)));
    ends_well(client, client.migrate(at, "pve2").await).await;
    let at = GuestAt { node: "pve2".to_owned(), ..at.clone() };
    ends_well(client, client.power(&at, Power::Shutdown { patience_s: 5 }).await).await;
    ends_well(client, client.destroy_guest(&at).await).await;
    assert_eq!(client.guest_config(&at).await.unwrap(), None);
}

#[tokio::test]
async fn every_call_is_one_that_proxmox_takes() {
    let sim = PveSim::start(sim_config(2)).await.unwrap();
    let client = client(&sim, by_token(&sim));
    client.check().await.unwrap();
    assert!(client.is_quorate().await.unwrap());
    assert!(client.next_id().await.unwrap() >= 100);
    assert!(client.storages("pve1").await.unwrap().iter().any(|s| s.storage == "clients-main" && s.active));
    ends_well(&client, client.create_container("pve1", &container(121)).await).await;
    every_call(&client, &GuestAt { node: "pve1".to_owned(), kind: GuestKind::Lxc, vmid: 121 }).await;
    let clone = CloneSpec {
        template: 9000,
        vmid: 130,
        name: "shop".to_owned(),
        storage: "clients-main".to_owned(),
        pool: None,
        target: "pve1".to_owned(),
        description: "whose it is".to_owned(),
    };
    ends_well(&client, client.clone_machine("pve1", &clone).await).await;
    every_call(&client, &GuestAt { node: "pve1".to_owned(), kind: GuestKind::Vm, vmid: 130 }).await;
    assert!(sim.requests().iter().all(|request| request.status != Some(501)));
}

#[tokio::test]
async fn a_password_buys_tickets_and_a_wrong_one_is_told() {
    let sim = PveSim::start(sim_config(1)).await.unwrap();
    let good = client(&sim, by_password(&PveSimConfig::default().password));
    ends_well(&good, good.create_container("pve1", &container(121)).await).await;
    assert!(good.guests().await.unwrap().iter().any(|guest| guest.vmid == Some(121)));
    let logins = sim.requests().iter().filter(|r| r.path.ends_with("/access/ticket")).count();
    assert_eq!(logins, 1);
    // A ticket that has gone stale is replaced, and the call made again.
    sim.add_fault(Fault::new("GET", "/version", FaultAction::Status).nth(1).status(401, "No ticket"));
    good.check().await.unwrap();
    let error = client(&sim, by_password("wrong")).check().await.unwrap_err();
    assert_eq!((error.class, error.class.advice()), (Class::BadCredentials, Advice::Never));
    assert!(error.to_string().contains("proxmox.password"), "{error}");
}

#[tokio::test]
async fn a_proxy_s_page_and_silence_are_answers_that_say_nothing() {
    let sim = PveSim::start(sim_config(1)).await.unwrap();
    let client = client(&sim, by_token(&sim));
    sim.add_fault(Fault::new("GET", "/version", FaultAction::Status).nth(1).status(502, "Bad Gateway"));
    client.check().await.unwrap();
    sim.add_fault(Fault::new("GET", "/version", FaultAction::DropBefore));
    let error = client.check().await.unwrap_err();
    assert_eq!((error.class, error.class.advice()), (Class::Ambiguous, Advice::Retry));
}
