//! What happens to the pods, read from mPanel's tables as its pages would.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use sqlx::{Connection, FromRow, PgConnection, Row, postgres::PgRow};

use super::stage::{PODS, Stage};
use crate::TestkitError;

/// How often the tables are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// The demo gives up after this.
const LONGEST: Duration = Duration::from_secs(180);

/// A pod as mPanel's tables and ours show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRow {
    /// Hostname.
    pub hostname: String,
    /// VMID.
    pub vmid: i32,
    /// Node.
    pub node: Option<String>,
    /// Address.
    pub ip: Option<String>,
    /// Attempts that the job took.
    pub attempts: Option<i32>,
    /// `cloud_pods.status`.
    pub status: String,
    /// `cloud_pod_jobs.status`.
    pub job_status: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
}

impl FromRow<'_, PgRow> for PodRow {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            hostname: row.try_get("hostname")?,
            vmid: row.try_get("vmid")?,
            node: row.try_get("node")?,
            ip: row.try_get("ip")?,
            attempts: row.try_get("attempts")?,
            status: row.try_get("status")?,
            job_status: row.try_get("job_status")?,
            error: row.try_get("error")?,
        })
    }
}

impl PodRow {
    fn is_settled(&self) -> bool {
        matches!(self.job_status.as_deref(), Some("success" | "failed"))
    }
}

const PODS_SQL: &str = "\
SELECT p.hostname, p.vmid, n.node_name AS node, p.ip, j.attempts, p.status, j.status AS job_status, j.error
  FROM cloud_pods p
  LEFT JOIN fleet_pods f ON f.pod_id = p.id AND f.phase NOT IN ('quarantined', 'released')
  LEFT JOIN cloud_pod_nodes n ON n.id = f.node_id
  LEFT JOIN LATERAL (SELECT attempts, status, error FROM cloud_pod_jobs
                      WHERE cloud_pod_id = p.id AND type = 'CREATE' ORDER BY created_at LIMIT 1) j ON true
 ORDER BY p.vmid";

fn failed(error: impl std::fmt::Display) -> TestkitError {
    TestkitError::failed("look at the pods", error.to_string())
}

/// Shows the pods come up until all are settled; gives back their rows.
///
/// # Errors
/// When the worker ends early, the database fails, or it takes too long.
pub async fn until_settled(stage: &Stage) -> Result<Vec<PodRow>, TestkitError> {
    let mut db = PgConnection::connect(&stage.database_url).await.map_err(failed)?;
    let bar = ProgressBar::new(u64::from(PODS));
    let style = ProgressStyle::with_template("{elapsed_precise} [{bar:30}] {pos}/{len} {wide_msg}")
        .map_err(failed)?;
    bar.set_style(style);
    let began = Instant::now();
    let mut told: Vec<i32> = Vec::new();
    loop {
        let rows: Vec<PodRow> = sqlx::query_as(PODS_SQL).fetch_all(&mut db).await.map_err(failed)?;
        for row in rows.iter().filter(|r| r.is_settled()) {
            if !told.contains(&row.vmid) {
                told.push(row.vmid);
                tell(&bar, row);
            }
        }
        bar.set_position(told.len() as u64);
        let retried = rows
            .iter()
            .filter(|r| !r.is_settled() && r.attempts.unwrap_or(0) > 0 && r.error.is_some())
            .count();
        let running = rows.iter().filter(|r| !r.is_settled()).count();
        bar.set_message(format!("{running} being created, {retried} after a fault"));
        if told.len() >= PODS as usize {
            bar.finish_and_clear();
            return Ok(rows);
        }
        if let Some(status) = stage.worker.exited() {
            bar.abandon();
            let tail: Vec<String> =
                stage.worker.lines().iter().rev().take(15).map(|line| line.text.clone()).collect();
            let log: Vec<String> = tail.into_iter().rev().collect();
            return Err(TestkitError::failed(
                "mpanel-worker",
                format!("ended with {status}\n{}", log.join("\n")),
            ));
        }
        if began.elapsed() > LONGEST {
            bar.abandon();
            return Err(failed(format!("after {LONGEST:?} only {} of {PODS} pods are settled", told.len())));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn tell(bar: &ProgressBar, row: &PodRow) {
    let attempts = row.attempts.unwrap_or(0);
    let line = match &row.error {
        Some(error) if row.status != "active" => {
            format!("{} {}: {} ({error})", row.vmid, row.hostname, row.status)
        }
        _ => format!(
            "{} {}: {} on {} with {}{}",
            row.vmid,
            row.hostname,
            row.status,
            row.node.as_deref().unwrap_or("?"),
            row.ip.as_deref().unwrap_or("no address"),
            if attempts > 1 { format!(", attempt {attempts}") } else { String::new() }
        ),
    };
    if bar.is_hidden() {
        // No terminal: one plain line each.
        #[expect(clippy::print_stdout, reason = "the demo's output")]
        {
            println!("{line}");
        }
    } else {
        bar.println(line);
    }
}
