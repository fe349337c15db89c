//! The Proxmox VE simulator, seen by an HTTP client: the life of a guest, refusals, faults, dead nodes.

use std::time::{Duration, Instant};

use hyper::ext::ReasonPhrase;
use mpanel_testkit::pve::{Fault, FaultAction, LXC_TEMPLATE, PveSim, PveSimConfig, VM_TEMPLATE};
use reqwest::{Certificate, Method};
use serde_json::{Value, json};

type Form<'a> = &'a [(&'a str, &'a str)];

struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

/// An answer that arrived.
#[derive(Debug)]
struct Answer {
    status: u16,
    reason: String,
    body: Value,
}

impl Client {
    fn new(sim: &PveSim) -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .tls_certs_only([Certificate::from_pem(sim.ca_pem().as_bytes()).expect("the CA is PEM")])
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(20))
            .build()
            .expect("a client can be built");
        let token = format!("PVEAPIToken={}={}", sim.token_id(), sim.token_secret());
        Self { http, base: format!("{}/api2/json", sim.url()), token }
    }

    async fn send(&self, method: Method, path: &str, form: Form<'_>) -> Result<Answer, reqwest::Error> {
        let mut request = self
            .http
            .request(method.clone(), format!("{}{path}", self.base))
            .header("Authorization", &self.token);
        if method == Method::POST || method == Method::PUT {
            request = request.form(form);
        } else if !form.is_empty() {
            request = request.query(form);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let reason = response
            .extensions()
            .get::<ReasonPhrase>()
            .map(|reason| String::from_utf8_lossy(reason.as_bytes()).into_owned())
            .unwrap_or_default();
        let text = response.text().await?;
        Ok(Answer { status, reason, body: serde_json::from_str(&text).unwrap_or(Value::Null) })
    }

    async fn call(&self, method: Method, path: &str, form: Form<'_>) -> Answer {
        self.send(method, path, form).await.expect("an answer arrives")
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.call(Method::GET, path, &[]).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.body["data"].clone()
    }

    /// Sends a request that has to succeed and returns its data.
    async fn good(&self, method: Method, path: &str, form: Form<'_>) -> Value {
        let answer = self.call(method, path, form).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.body["data"].clone()
    }

    /// Waits for the end of a task and returns its exit status.
    async fn wait(&self, upid: &Value) -> String {
        let upid = upid.as_str().expect("a UPID");
        let node = upid.split(':').nth(1).expect("a UPID names its node");
        let path = format!("/nodes/{node}/tasks/{upid}/status");
        let mut exit = String::new();
        until("the task ends", async || {
            let status = self.get(&path).await;
            exit = status["exitstatus"].as_str().unwrap_or_default().to_owned();
            status["status"] == "stopped"
        })
        .await;
        exit
    }

    async fn run(&self, method: Method, path: &str, form: Form<'_>) -> String {
        let upid = self.good(method, path, form).await;
        self.wait(&upid).await
    }

    async fn create(&self, node: &str, vmid: &str, more: Form<'_>) -> Answer {
        let mut form = vec![
            ("vmid", vmid),
            ("ostemplate", LXC_TEMPLATE),
            ("rootfs", "local-lvm:2"),
            ("net0", "name=eth0,bridge=vmbr0,ip=dhcp"),
            ("unprivileged", "1"),
        ];
        form.extend_from_slice(more);
        self.call(Method::POST, &format!("/nodes/{node}/lxc"), &form).await
    }

    async fn created(&self, node: &str, vmid: &str, more: Form<'_>) {
        let answer = self.create(node, vmid, more).await;
        assert_eq!(self.wait(&answer.body["data"]).await, "OK", "{answer:?}");
    }
}

/// Polls until a condition holds; gives up loudly.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn start() -> (PveSim, Client) {
    start_with(PveSimConfig::default()).await
}

async fn start_with(config: PveSimConfig) -> (PveSim, Client) {
    let sim =
        PveSim::start(PveSimConfig { nodes: 2, task_ms: 20, auth_delay_ms: 0, dhcp_delay_ms: 10, ..config })
            .await
            .expect("the simulator starts");
    let client = Client::new(&sim);
    (sim, client)
}

#[tokio::test]
async fn a_container_lives_from_create_to_destroy() {
    let (sim, client) = start().await;
    let pod = [("hostname", "pod-1"), ("tags", "Mpanel-pod-X;alpha;alpha"), ("description", "a;ü&=+ 1")];
    let answer = client.create("pve1", "100", &pod).await;
    // The configuration exists at once, but holds nothing except its lock.
    let early = client.get("/nodes/pve1/lxc/100/config").await;
    if early["lock"] == "create" {
        assert_eq!(early.get("tags"), None);
    }
    assert_eq!(client.wait(&answer.body["data"]).await, "OK");
    let config = client.get("/nodes/pve1/lxc/100/config").await;
    assert_eq!(config["tags"], "alpha;mpanel-pod-x");
    assert_eq!(config["description"], "a;ü&=+ 1");
    assert_eq!(config["rootfs"], "local-lvm:vm-100-disk-0,size=2G");
    assert_eq!(config["memory"], 512);
    assert!(config["net0"].as_str().unwrap().contains("hwaddr=BC:24:11:"));
    assert_eq!(config.get("lock"), None);

    assert_eq!(client.run(Method::POST, "/nodes/pve1/lxc/100/status/start", &[]).await, "OK");
    let again = client.call(Method::POST, "/nodes/pve1/lxc/100/status/start", &[]).await;
    assert_eq!((again.status, again.reason.as_str()), (500, "CT 100 already running"));
    until("the lease arrives", async || {
        let rows = client.get("/nodes/pve1/lxc/100/interfaces").await;
        rows.as_array().unwrap().iter().any(|row| row["name"] == "eth0" && row["inet"].is_string())
    })
    .await;
    assert_eq!(sim.guest(100).unwrap().addresses.len(), 1);

    let refused = client.call(Method::DELETE, "/nodes/pve1/lxc/100", &[]).await;
    assert_eq!(
        (refused.status, refused.reason.as_str()),
        (500, "unable to destroy CT 100 - container is running")
    );
    assert_eq!(
        client.run(Method::DELETE, "/nodes/pve1/lxc/100", &[("force", "1"), ("purge", "1")]).await,
        "OK"
    );
    let gone = client.call(Method::GET, "/nodes/pve1/lxc/100/config", &[]).await;
    assert_eq!(gone.status, 500);
    assert_eq!(gone.reason, "Configuration file 'nodes/pve1/lxc/100.conf' does not exist");
    assert!(gone.body["message"].as_str().unwrap().starts_with(&gone.reason));
    assert!(sim.guests().is_empty());
    assert!(sim.invariants().ok, "{:?}", sim.invariants());
}

#[tokio::test]
async fn of_racing_creates_with_one_vmid_exactly_one_wins() {
    let (sim, client) = start().await;
    let attempts =
        (0..8).map(|index| client.create(if index % 2 == 0 { "pve1" } else { "pve2" }, "200", &[]));
    let answers = futures_util::future::join_all(attempts).await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!(won.len(), 1);
    for answer in lost {
        assert_eq!(answer.status, 500);
        assert!(answer.reason.starts_with("CT 200 already exists on node 'pve"), "{answer:?}");
    }
    let taken = client.call(Method::GET, "/cluster/nextid", &[("vmid", "200")]).await;
    assert_eq!(taken.status, 400);
    assert_eq!(taken.body["errors"]["vmid"], "VM 200 already exists");
    assert_eq!(sim.guests().len(), 1);
}

#[tokio::test]
async fn a_wrong_request_is_refused_with_every_reason() {
    let (_sim, client) = start().await;
    let form =
        [("vmid", "99"), ("memory", "lots"), ("bogus", "1"), ("net0", "bridge=vmbr0"), ("hostname", "-x")];
    let answer = client.call(Method::POST, "/nodes/pve1/lxc", &form).await;
    assert_eq!((answer.status, answer.reason.as_str()), (400, "Parameter verification failed."));
    let errors = answer.body["errors"].as_object().unwrap();
    let keys: Vec<_> = errors.keys().map(String::as_str).collect();
    assert_eq!(keys, ["bogus", "hostname", "memory", "net0", "ostemplate", "vmid"]);
    assert_eq!(errors["ostemplate"], "property is missing and it is not optional");

    let body = client
        .http
        .delete(format!("{}/nodes/pve1/lxc/100", client.base))
        .header("Authorization", &client.token);
    let answer = body.form(&[("purge", "1")]).send().await.unwrap();
    assert_eq!(answer.status(), 501);
    assert_eq!(answer.headers()["connection"], "close");
    let large = "x".repeat(600 * 1024);
    let answer = client.call(Method::POST, "/nodes/pve1/lxc", &[("description", large.as_str())]).await;
    assert_eq!((answer.status, answer.reason.as_str()), (501, "for data too large"));
    assert_eq!(client.call(Method::GET, "/nope", &[]).await.status, 501);
    let unsimulated = client.call(Method::GET, "/cluster/ha/resources", &[]).await;
    assert_eq!(unsimulated.status, 501);
    assert!(unsimulated.reason.contains("not simulated"));
}

#[tokio::test]
async fn credentials_are_checked_and_tickets_need_csrf() {
    let config = PveSimConfig { denied_privileges: vec!["VM.PowerMgmt".to_owned()], ..Default::default() };
    let (sim, mut client) = start_with(config).await;
    client.created("pve1", "100", &[]).await;
    let denied = client.call(Method::POST, "/nodes/pve1/lxc/100/status/start", &[]).await;
    assert_eq!(
        (denied.status, denied.reason.as_str()),
        (403, "Permission check failed (/vms/100, VM.PowerMgmt)")
    );

    let login = [("username", "root@pam"), ("password", "pve-sim")];
    let ticket = client.good(Method::POST, "/access/ticket", &login).await;
    client.token = format!("PVEAPIToken={}=wrong", sim.token_id());
    assert_eq!(client.call(Method::GET, "/version", &[]).await.status, 401);
    let cookie = format!("PVEAuthCookie={}", ticket["ticket"].as_str().unwrap());
    let post = || {
        client.http.post(format!("{}/pools", client.base)).header("Cookie", &cookie).form(&[("poolid", "p1")])
    };
    assert_eq!(post().send().await.unwrap().status(), 401);
    let csrf = ticket["CSRFPreventionToken"].as_str().unwrap();
    assert_eq!(post().header("CSRFPreventionToken", csrf).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_stale_digest_changes_nothing() {
    let (_sim, client) = start().await;
    client.created("pve1", "100", &[]).await;
    let path = "/nodes/pve1/lxc/100/config";
    let digest = client.get(path).await["digest"].as_str().unwrap().to_owned();
    client.good(Method::PUT, path, &[("memory", "768"), ("digest", &digest)]).await;
    let stale = client.call(Method::PUT, path, &[("memory", "1024"), ("digest", &digest)]).await;
    assert_eq!(stale.status, 500);
    assert_eq!(stale.reason, "detected modified configuration - file changed by other user? Try again.");
    assert_eq!(client.get(path).await["memory"], 768);

    // What a running container cannot take waits for its next start.
    assert_eq!(client.run(Method::POST, "/nodes/pve1/lxc/100/status/start", &[]).await, "OK");
    client.good(Method::PUT, path, &[("features", "nesting=1"), ("cores", "2")]).await;
    let config = client.get(path).await;
    assert_eq!((config["cores"].clone(), config.get("features")), (json!(2), None));
    assert_eq!(client.run(Method::POST, "/nodes/pve1/lxc/100/status/reboot", &[]).await, "OK");
    assert_eq!(client.get(path).await["features"], "nesting=1");
}

#[tokio::test]
async fn disks_grow_and_a_full_storage_fails_cleanly() {
    let (sim, client) = start_with(PveSimConfig { local_lvm_gib: 5, ..Default::default() }).await;
    client.created("pve1", "100", &[]).await;
    let resize = "/nodes/pve1/lxc/100/resize";
    let shrink = client.call(Method::PUT, resize, &[("disk", "rootfs"), ("size", "1G")]).await;
    assert_eq!((shrink.status, shrink.reason.as_str()), (500, "unable to shrink disk size"));
    assert_eq!(client.run(Method::PUT, resize, &[("disk", "rootfs"), ("size", "4G")]).await, "OK");
    let answer = client.create("pve1", "101", &[]).await;
    let exit = client.wait(&answer.body["data"]).await;
    assert!(exit.contains("no space left on device"), "{exit}");
    assert_eq!(sim.guest(101), None);
    assert!(sim.invariants().ok);
    let missing = client.create("pve1", "102", &[("storage", "local-lvm"), ("mp0", "nowhere:1,mp=/x")]).await;
    assert_eq!((missing.status, missing.reason.as_str()), (500, "storage 'nowhere' does not exist"));
}

#[tokio::test]
async fn snapshots_backups_and_migration() {
    let (sim, client) = start().await;
    client.created("pve1", "100", &[]).await;
    let base = "/nodes/pve1/lxc/100";
    assert_eq!(client.run(Method::POST, &format!("{base}/snapshot"), &[("snapname", "s1")]).await, "OK");
    let twice = client.run(Method::POST, &format!("{base}/snapshot"), &[("snapname", "s1")]).await;
    assert_eq!(twice, "snapshot name 's1' already used");
    client.good(Method::PUT, &format!("{base}/config"), &[("memory", "999")]).await;
    assert_eq!(client.run(Method::POST, &format!("{base}/snapshot/s1/rollback"), &[]).await, "OK");
    assert_eq!(client.get(&format!("{base}/config")).await["memory"], 512);
    let rows = client.get(&format!("{base}/snapshot")).await;
    assert_eq!(rows.as_array().unwrap().last().unwrap()["name"], "current");
    assert_eq!(client.run(Method::DELETE, &format!("{base}/snapshot/s1"), &[]).await, "OK");

    let backup =
        [("vmid", "100"), ("storage", "local"), ("compress", "zstd"), ("notes-template", "job {{vmid}}")];
    assert_eq!(client.run(Method::POST, "/nodes/pve1/vzdump", &backup).await, "OK");
    let content = client.get("/nodes/pve1/storage/local/content?content=backup&vmid=100").await;
    let volid = content[0]["volid"].as_str().unwrap();
    assert_eq!(content[0]["notes"], "job 100");
    let restore = [("vmid", "300"), ("ostemplate", volid), ("restore", "1"), ("storage", "local-lvm")];
    assert_eq!(client.run(Method::POST, "/nodes/pve1/lxc", &restore).await, "OK");
    assert_eq!(
        client.run(Method::DELETE, &format!("/nodes/pve1/storage/local/content/{volid}"), &[]).await,
        "OK"
    );

    assert_eq!(client.run(Method::POST, &format!("{base}/status/start"), &[]).await, "OK");
    let refused = client.call(Method::POST, &format!("{base}/migrate"), &[("target", "pve2")]).await;
    assert_eq!(refused.reason, "can't migrate running container without --online or --restart");
    let moved = [("target", "pve2"), ("restart", "1")];
    assert_eq!(client.run(Method::POST, &format!("{base}/migrate"), &moved).await, "OK");
    let guest = sim.guest(100).unwrap();
    assert_eq!((guest.node.as_str(), guest.status), ("pve2", "running"));
    assert_eq!(client.call(Method::GET, &format!("{base}/config"), &[]).await.status, 500);
    assert!(sim.invariants().ok, "{:?}", sim.invariants());
}

#[tokio::test]
async fn a_virtual_machine_is_cloned_from_the_template() {
    let (sim, client) = start().await;
    let path = format!("/nodes/pve1/qemu/{VM_TEMPLATE}/clone");
    let clone =
        [("newid", "400"), ("full", "1"), ("name", "pod-vm"), ("target", "pve2"), ("pool", "ClientPods")];
    assert_eq!(client.run(Method::POST, &path, &clone).await, "OK");
    let config = [("cores", "2"), ("ipconfig0", "ip=10.0.0.9/24,gw=10.0.0.1"), ("tags", "b;A")];
    assert_eq!(client.run(Method::POST, "/nodes/pve2/qemu/400/config", &config).await, "OK");
    assert_eq!(
        client.run(Method::PUT, "/nodes/pve2/qemu/400/resize", &[("disk", "scsi0"), ("size", "8G")]).await,
        "OK"
    );
    assert_eq!(client.run(Method::POST, "/nodes/pve2/qemu/400/status/start", &[]).await, "OK");
    let agent = "/nodes/pve2/qemu/400/agent/network-get-interfaces";
    until("the agent answers", async || client.call(Method::GET, agent, &[]).await.status == 200).await;
    let rows = client.get(agent).await;
    assert_eq!(rows["result"][1]["ip-addresses"][0]["ip-address"], "10.0.0.9");
    let guest = sim.guest(400).unwrap();
    assert_eq!(
        (guest.tags, guest.disk_gib, guest.pool.as_deref()),
        (vec!["a".into(), "b".into()], 8, Some("ClientPods"))
    );
    assert_eq!(client.run(Method::POST, "/nodes/pve2/qemu/400/status/stop", &[]).await, "OK");
    assert_eq!(client.run(Method::DELETE, "/nodes/pve2/qemu/400", &[("purge", "1")]).await, "OK");
    assert!(sim.guests().is_empty() && sim.invariants().ok);
}

#[tokio::test]
async fn dropped_connections_differ_in_what_was_done() {
    let (sim, client) = start().await;
    let create = |action| Fault::new("POST", "/nodes/*/lxc", action).nth(1);
    sim.add_fault(create(FaultAction::DropBefore));
    assert!(client.send(Method::POST, "/nodes/pve1/lxc", &[("vmid", "100")]).await.is_err());
    assert!(sim.guests().is_empty());
    sim.clear_faults();
    sim.add_fault(create(FaultAction::DropAfter));
    let form = [("vmid", "100"), ("ostemplate", LXC_TEMPLATE), ("rootfs", "local-lvm:2")];
    assert!(client.send(Method::POST, "/nodes/pve1/lxc", &form).await.is_err());
    // The lost UPID is found again in the task list.
    until("the task is listed as ended", async || {
        let tasks = client.get("/nodes/pve1/tasks?vmid=100&typefilter=vzcreate&source=all").await;
        tasks[0]["status"] == "OK"
    })
    .await;
    assert_eq!(sim.guests().len(), 1);
    let last =
        sim.requests().into_iter().find(|request| request.fault == Some(FaultAction::DropAfter)).unwrap();
    assert_eq!((last.status, last.params["vmid"].as_str()), (None, "100"));
}

#[tokio::test]
async fn delays_statuses_and_task_errors_strike_on_time() {
    let (sim, client) = start().await;
    client.created("pve1", "100", &[]).await;
    sim.add_fault(Fault::new("GET", "/version", FaultAction::Delay).ms(60));
    let before = Instant::now();
    client.get("/version").await;
    assert!(before.elapsed() >= Duration::from_millis(60));

    sim.add_fault(
        Fault::new("GET", "/nodes", FaultAction::Status).nth(2).status(596, "Connection timed out"),
    );
    client.get("/nodes").await;
    let struck = client.call(Method::GET, "/nodes", &[]).await;
    assert_eq!((struck.status, struck.reason.as_str()), (596, "Connection timed out"));
    client.get("/nodes").await;

    let start = "/nodes/pve1/lxc/100/status/start";
    sim.add_fault(
        Fault::new("POST", "/nodes/*/lxc/*/status/start", FaultAction::TaskError).nth(1).text("boom"),
    );
    assert_eq!(client.run(Method::POST, start, &[]).await, "boom");
    assert_eq!(sim.guest(100).unwrap().status, "stopped");
    let warning = Fault::new("POST", "/nodes/*/lxc/*/status/start", FaultAction::TaskError).nth(1);
    sim.add_fault(warning.text("WARNINGS: 1"));
    assert_eq!(client.run(Method::POST, start, &[]).await, "WARNINGS: 1");
    assert_eq!(sim.guest(100).unwrap().status, "running");

    sim.add_fault(Fault::new("POST", "/nodes/*/lxc", FaultAction::TaskError).text("unpack failed"));
    let answer = client.create("pve1", "101", &[]).await;
    assert_eq!(client.wait(&answer.body["data"]).await, "unpack failed");
    assert_eq!(sim.guest(101), None);
}

#[tokio::test]
async fn a_node_that_dies_in_a_create_leaves_its_lock() {
    let (sim, client) = start().await;
    client.created("pve1", "100", &[]).await;
    assert_eq!(client.run(Method::POST, "/nodes/pve1/lxc/100/status/start", &[]).await, "OK");
    sim.add_fault(Fault::new("POST", "/nodes/pve1/lxc", FaultAction::NodeDown).nth(1));
    let upid = client.create("pve1", "101", &[("tags", "mpanel-pod-y")]).await.body["data"].clone();
    until("the node is down", async || !sim.state().nodes[0].online).await;
    let relayed = client.call(Method::GET, "/nodes/pve1/lxc/101/config", &[]).await;
    assert_eq!((relayed.status, relayed.reason.as_str()), (595, "No route to host"));
    let rows = client.get("/cluster/resources?type=vm").await;
    let row = rows.as_array().unwrap().iter().find(|row| row["vmid"] == 100).unwrap();
    assert_eq!(row["status"], "unknown");

    assert!(sim.node_up("pve1"));
    assert_eq!(client.wait(&upid).await, "unexpected status");
    let guest = sim.guest(101).unwrap();
    assert_eq!((guest.lock, guest.tags.len()), (Some("create"), 0));
    let refused = client.call(Method::DELETE, "/nodes/pve1/lxc/101", &[]).await;
    assert_eq!(refused.reason, "CT is locked (create)");
    assert_eq!(sim.guest(100).unwrap().status, "stopped");
    assert_eq!(sim.invariants().stuck_locks, [101]);
    assert!(sim.unlock(101));
    assert_eq!(client.run(Method::DELETE, "/nodes/pve1/lxc/101", &[]).await, "OK");
}

#[tokio::test]
async fn an_interrupted_destroy_leaves_only_its_lock() {
    let (sim, client) = start().await;
    client.created("pve1", "100", &[("tags", "mpanel-pod-y")]).await;
    sim.add_fault(Fault::new("DELETE", "/nodes/*/lxc/100", FaultAction::NodeDown));
    let upid = client.good(Method::DELETE, "/nodes/pve1/lxc/100", &[]).await;
    until("the node is down", async || !sim.state().nodes[0].online).await;
    assert!(sim.node_up("pve1"));
    assert_eq!(client.wait(&upid).await, "unexpected status");
    let guest = sim.guest(100).unwrap();
    assert_eq!((guest.lock, guest.config.len()), (Some("destroyed"), 0));
}

#[tokio::test]
async fn a_stopped_task_rolls_nothing_back() {
    let (sim, client) = start_with(PveSimConfig::default()).await;
    sim.add_fault(Fault::new("POST", "/nodes/*/lxc", FaultAction::NodeDown).ms(600_000));
    let upid = client.create("pve1", "100", &[]).await.body["data"].clone();
    client.good(Method::DELETE, &format!("/nodes/pve1/tasks/{}", upid.as_str().unwrap()), &[]).await;
    assert_eq!(client.wait(&upid).await, "interrupted by signal");
    assert_eq!(sim.guest(100).unwrap().lock, Some("create"));
    let log = client.get(&format!("/nodes/pve1/tasks/{}/log", upid.as_str().unwrap())).await;
    assert_eq!(log.as_array().unwrap().last().unwrap()["t"], "TASK ERROR: interrupted by signal");
}

#[tokio::test]
async fn firewall_rules_shift_and_pools_refuse_to_vanish() {
    let (_sim, client) = start().await;
    client.created("pve1", "100", &[("pool", "ClientPods")]).await;
    let rules = "/nodes/pve1/lxc/100/firewall/rules";
    for comment in ["mpanel:a", "mpanel:b"] {
        let rule = [("type", "in"), ("action", "ACCEPT"), ("comment", comment), ("enable", "1")];
        client.good(Method::POST, rules, &rule).await;
    }
    let listed = client.get(rules).await;
    assert_eq!((&listed[0]["comment"], &listed[1]["pos"]), (&json!("mpanel:b"), &json!(1)));
    client.good(Method::DELETE, &format!("{rules}/0"), &[]).await;
    assert_eq!(client.get(rules).await[0]["comment"], "mpanel:a");
    let options = "/nodes/pve1/lxc/100/firewall/options";
    client.good(Method::PUT, options, &[("enable", "1")]).await;
    assert_eq!(client.get(options).await["enable"], 1);
    let refused = client.call(Method::DELETE, "/pools/ClientPods", &[]).await;
    assert_eq!(refused.reason, "pool 'ClientPods' is not empty");
    let rows = client.get("/nodes/pve1/lxc/100/rrddata?timeframe=hour").await;
    assert!(rows.as_array().unwrap().iter().any(|row| row["cpu"].is_null()));
}

#[tokio::test]
async fn too_many_creates_on_one_storage_end_in_a_lock_timeout() {
    let (sim, client) =
        start_with(PveSimConfig { parallel_per_storage: Some(1), ..Default::default() }).await;
    // The first create never ends, so it is certainly still there when the second one comes.
    sim.add_fault(Fault::new("POST", "/nodes/pve1/lxc", FaultAction::NodeDown).nth(1).ms(600_000));
    client.create("pve1", "100", &[]).await;
    let second = client.create("pve1", "101", &[]).await;
    let exit = client.wait(&second.body["data"]).await;
    assert!(exit.starts_with("can't lock file '") && exit.ends_with("' - got timeout"), "{exit}");
    assert_eq!(sim.guest(101), None);
    client.created("pve2", "102", &[]).await;
}

#[tokio::test]
async fn an_effect_outlives_the_client_that_asked_for_it() {
    let (sim, client) = start().await;
    sim.add_fault(Fault::new("POST", "/nodes/*/lxc", FaultAction::Delay).ms(300));
    let form = [("vmid", "100"), ("ostemplate", LXC_TEMPLATE), ("rootfs", "local-lvm:2")];
    tokio::select! {
        answer = client.send(Method::POST, "/nodes/pve1/lxc", &form) => panic!("too early: {answer:?}"),
        () = until("the request has arrived", async || !sim.requests().is_empty()) => {}
    }
    assert!(sim.guests().is_empty());
    until("the guest is there", async || sim.guest(100).is_some_and(|guest| guest.lock.is_none())).await;
}

#[tokio::test]
async fn a_relay_that_times_out_hides_what_was_done() {
    let (sim, client) = start().await;
    let fault = Fault::new("POST", "/nodes/*/lxc", FaultAction::StatusAfter).nth(1);
    sim.add_fault(fault.status(596, "Connection timed out"));
    assert_eq!(client.create("pve1", "100", &[]).await.status, 596);
    until("the guest is there", async || sim.guest(100).is_some_and(|guest| guest.lock.is_none())).await;
}

#[tokio::test]
async fn without_quorum_reads_work_and_writes_fail() {
    let (sim, client) = start().await;
    sim.set_quorum(false);
    assert_eq!(client.get("/cluster/status").await[0]["quorate"], 0);
    let refused = client.create("pve1", "100", &[]).await;
    assert_eq!((refused.status, refused.reason.as_str()), (500, "cluster not ready - no quorum?"));
}

#[tokio::test]
async fn the_control_listener_shows_state_and_takes_faults() {
    let (sim, client) = start().await;
    client.created("pve1", "100", &[("hostname", "c1"), ("tags", "t1")]).await;
    let control = |path: &str| format!("{}{path}", sim.control_url());
    let get = async |path: &str| -> Value {
        client.http.get(control(path)).send().await.unwrap().json().await.unwrap()
    };
    let state = get("/state").await;
    let guest = state["guests"].as_array().unwrap().iter().find(|guest| guest["vmid"] == 100).unwrap();
    assert_eq!(
        (&guest["hostname"], &guest["tags"], &guest["lock"]),
        (&json!("c1"), &json!(["t1"]), &Value::Null)
    );
    assert_eq!(get("/invariants").await["ok"], true);
    assert!(get("/requests").await.as_array().unwrap().iter().any(|row| row["path"] == "/nodes/pve1/lxc"));
    let post = async |path: &str, body: &str| {
        client.http.post(control(path)).body(body.to_owned()).send().await.unwrap().status().as_u16()
    };
    assert_eq!(
        post("/faults", r#"{"do":"status","path":"/version","status":503,"text":"later"}"#).await,
        200
    );
    assert_eq!(post("/faults", r#"[{"do":"nonsense"}]"#).await, 400);
    assert_eq!(client.call(Method::GET, "/version", &[]).await.reason, "later");
    assert_eq!(post("/nodes/pve2/down", "").await, 200);
    assert_eq!(client.call(Method::GET, "/nodes/pve2/status", &[]).await.status, 595);
    assert_eq!(post("/nodes/pve2/up", "").await, 200);
    assert_eq!(client.call(Method::GET, "/nodes/pve2/status", &[]).await.status, 200);
    assert_eq!(post("/nodes/nope/up", "").await, 404);
}

#[tokio::test]
async fn a_dropped_simulator_stops_listening() {
    let (sim, client) = start().await;
    client.get("/version").await;
    drop(sim);
    until("the port is closed", async || client.send(Method::GET, "/version", &[]).await.is_err()).await;
}
