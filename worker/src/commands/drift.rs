//! `cloudpods drift`: what the reconciler found, and what the operator should do.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{note, print_json, print_table};
use crate::{
    adapters::db::{
        drift::{self, DriftRow},
        rounds::{self, LastRound},
    },
    exit::{Exit, Failed},
    services::cloudpods::reconcile::{DUTY, judge::PassedOver},
};

/// Shows the findings.
///
/// # Errors
/// Exit 4 when something waits for the operator, and those of the database.
pub async fn drift(db: &PgPool, as_json: bool) -> Result<(), Failed> {
    let rows = drift::list(db).await?;
    let last = rounds::last(db, DUTY).await?;
    let waiting = rows.iter().filter(|row| waits(row)).count();
    if as_json {
        print_json(&document(&rows, last.as_ref(), waiting))?;
    } else {
        table(&rows)?;
        tell_of_round(last.as_ref());
    }
    if waiting > 0 {
        let text = match waiting {
            1 => "one difference waits for you; see what to do beside it".to_owned(),
            many => format!("{many} differences wait for you; see what to do beside each"),
        };
        return Err(Failed::new(Exit::Precondition, text));
    }
    Ok(())
}

/// Whether nobody but the operator can end it.
fn waits(row: &DriftRow) -> bool {
    row.state == "open" && !row.advice.is_empty()
}

fn moment(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn table(rows: &[DriftRow]) -> Result<(), Failed> {
    if rows.is_empty() {
        note("nothing differs, and nothing did in the last day");
        return Ok(());
    }
    let rows = rows
        .iter()
        .map(|row| {
            let done = row.action.clone().unwrap_or_default();
            let todo = match row.state.as_str() {
                "open" => row.advice.clone(),
                "suspected" => "nothing yet: it must be seen again first".to_owned(),
                _ => String::new(),
            };
            [row.state.clone(), row.kind.clone(), moment(row.first_seen_at), row.what.clone(), done, todo]
        })
        .collect();
    print_table(["state", "kind", "since (UTC)", "what", "done by itself", "what to do"], rows)
}

fn tell_of_round(last: Option<&LastRound>) {
    let Some(last) = last else {
        note(
            "no worker has compared pods with Proxmox yet: is one running (mpanel-worker run), and \
             cloudpods.reconcile_seconds not 0?",
        );
        return;
    };
    note(&format!("last compared {}", moment(last.finished_at.unwrap_or(last.started_at))));
    if let Some(error) = &last.error {
        note(&format!("the last comparison failed: {error}"));
    }
    for PassedOver { cluster, why } in passed_over(last) {
        note(&format!("nothing was concluded about the guests of cluster {cluster}: {why}"));
    }
}

fn passed_over(last: &LastRound) -> Vec<PassedOver> {
    let list = last.report.as_ref().and_then(|report| report.get("passedOver").cloned());
    list.and_then(|list| serde_json::from_value(list).ok()).unwrap_or_default()
}

fn document(rows: &[DriftRow], last: Option<&LastRound>, waiting: usize) -> Value {
    let findings: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "kind": row.kind, "subject": row.subject, "podId": row.pod_id, "state": row.state,
                "waits": waits(row), "what": row.what, "advice": row.advice, "action": row.action,
                "since": moment(row.first_seen_at), "lastSeen": moment(row.last_seen_at),
                "closed": row.closed_at.map(moment), "data": row.data,
            })
        })
        .collect();
    let last = last.map(|last| {
        json!({
            "started": moment(last.started_at), "finished": last.finished_at.map(moment),
            "error": last.error, "report": last.report,
        })
    });
    json!({ "version": 1, "waiting": waiting, "lastRound": last, "findings": findings })
}
