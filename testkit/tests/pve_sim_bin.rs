//! The `pve-sim` binary: what it announces, what it writes, how it reads faults, how it ends.

use std::process::Stdio;
use std::time::Duration;

use hyper::ext::ReasonPhrase;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const TOKEN: &str = "root@pam!fleet=11111111-2222-3333-4444-555555555555";
const PATIENCE: Duration = Duration::from_secs(20);

fn pve_sim(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_pve-sim"))
        .args(["--listen", "127.0.0.1:0", "--token", TOKEN])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("pve-sim starts")
}

#[tokio::test]
async fn it_announces_itself_and_ends_cleanly_on_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let certs = folder.path().join("certs");
    let faults = folder.path().join("faults.json");
    std::fs::write(
        &faults,
        r#"[{"method":"GET","path":"/version","nth":2,"do":"status","status":500,"text":"boom"}]"#,
    )
    .unwrap();
    let mut child = pve_sim(&[
        "--node-names",
        "alpha,beta",
        "--control",
        "127.0.0.1:0",
        "--cert-dir",
        certs.to_str().unwrap(),
        "--faults",
        faults.to_str().unwrap(),
    ]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    let words: Vec<&str> = first.split(' ').collect();
    let ["listening", url, "fingerprint", fingerprint] = words[..] else { panic!("{first}") };
    assert_eq!(fingerprint.len(), 32 * 3 - 1);
    assert_eq!(std::fs::read_to_string(certs.join("fingerprint")).unwrap().trim(), fingerprint);

    // Another test of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ca = reqwest::Certificate::from_pem(&std::fs::read(certs.join("ca.pem")).unwrap()).unwrap();
    let http = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
    let get = async |path: &str| {
        let request = http
            .get(format!("{url}/api2/json{path}"))
            .header("Authorization", format!("PVEAPIToken={TOKEN}"));
        request.send().await.unwrap()
    };
    assert_eq!(get("/version").await.status(), 200);
    let struck = get("/version").await;
    assert_eq!(struck.extensions().get::<ReasonPhrase>().unwrap().as_bytes(), b"boom");
    let nodes: serde_json::Value = get("/nodes").await.json().await.unwrap();
    assert_eq!(nodes["data"][1]["node"], "beta");

    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn nonsense_is_refused_at_start() {
    for arguments in
        [&["--nodes", "0"][..], &["--node-names", "a,a"], &["--faults", "/nonexistent/faults.json"]]
    {
        let output =
            tokio::time::timeout(PATIENCE, pve_sim(arguments).wait_with_output()).await.unwrap().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("pve-sim: "));
    }
}
