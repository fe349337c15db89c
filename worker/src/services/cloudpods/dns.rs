//! Names of pods at the name server, brought up to date again and again: what
//! the database says is compared with what was written last.
//!
//! No job waits for it, and no crash can leave a record behind: the row that
//! says what is to be written is there before the record is, and goes after it.
//! Several workers at once do the same thing twice, which changes nothing.

use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;

use super::names::{Wanted, changes, full_name};
use crate::{
    adapters::{
        db::{
            DbError,
            dns::{self, DnsRow, Outdated, State},
        },
        powerdns::{DnsError, PowerDns, RrSet},
    },
    config::DnsConfig,
};

/// Most pods in one round.
const BATCH: i64 = 200;
/// When a name that is someone else's is looked at again.
const TAKEN_AGAIN: Duration = Duration::from_secs(300);

/// What a round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round {
    /// Names that lead to their pods now.
    pub written: u32,
    /// Names that were taken away.
    pub removed: u32,
    /// Names that belong to someone else.
    pub taken: u32,
}

/// Keeps the names of pods.
#[derive(Debug, Clone)]
pub struct Names {
    db: PgPool,
    server: PowerDns,
    config: DnsConfig,
}

/// A round could not be finished; the next one goes on.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// The database refused, or did not answer.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The name server refused, or did not answer.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// The zone is not there, and nobody said which name servers it would have.
    #[error("PowerDNS has no zone {0}; make it, or set MPANEL_FLEET_DNS__NAMESERVERS so that we do")]
    NoZone(String),
}

impl Names {
    /// For this zone at this server.
    ///
    /// # Errors
    /// [`DnsError::Setup`].
    pub fn new(db: PgPool, config: DnsConfig) -> Result<Self, DnsError> {
        Ok(Self { db, server: PowerDns::new(&config.api_url, &config.api_key)?, config })
    }

    /// Brings up to date what has changed since the last round.
    ///
    /// # Errors
    /// [`NamesError`].
    pub async fn round(&self) -> Result<Round, NamesError> {
        let mut round = Round::default();
        for pod in dns::outdated(&self.db, &self.config.zone, BATCH).await? {
            match self.bring_up_to_date(&pod).await {
                Ok(State::Written) => round.written += 1,
                Ok(State::Taken { .. }) => round.taken += 1,
                Ok(_) => {}
                Err(error) => refused(pod.pod_id, error)?,
            }
        }
        for (pod_id, row) in dns::orphaned(&self.db, BATCH).await? {
            match self.remove(pod_id, &row).await {
                Ok(()) => {
                    dns::forget(&self.db, pod_id).await?;
                    round.removed += 1;
                }
                Err(error) => refused(pod_id, error)?,
            }
        }
        Ok(round)
    }

    async fn bring_up_to_date(&self, pod: &Outdated) -> Result<State, NamesError> {
        let name = full_name(&pod.hostname, &self.config.zone);
        // A pod whose host name changed gives its old name back first.
        if let Some(old) = &pod.written
            && Some(&old.name) != name.as_ref()
        {
            self.remove(pod.pod_id, old).await?;
        }
        let Some(name) = name else {
            let row = pod.row("", &self.config.zone);
            dns::note(&self.db, pod.pod_id, &row, State::Elsewhere, None).await?;
            return Ok(State::Elsewhere);
        };
        let row = pod.row(&name, &self.config.zone);
        dns::note(&self.db, pod.pod_id, &row, State::Pending, None).await?;
        let wanted = Wanted { v4: row.v4.clone(), v6: row.v6.clone(), ttl: self.config.ttl_s };
        let there = self.there(&row).await?;
        match changes(&there, &name, pod.pod_id, &wanted) {
            Ok(changes) => {
                if !changes.is_empty() {
                    self.server.change(&row.zone, &changes).await?;
                }
                dns::note(&self.db, pod.pod_id, &row, State::Written, None).await?;
                Ok(State::Written)
            }
            Err(taken) => {
                tracing::warn!(pod = %pod.pod_id, "DNS: {taken}");
                let state = State::Taken { again: TAKEN_AGAIN };
                dns::note(&self.db, pod.pod_id, &row, state, Some(&taken.to_string())).await?;
                Ok(state)
            }
        }
    }

    /// What is at a name; makes the zone when there is none.
    async fn there(&self, row: &DnsRow) -> Result<Vec<RrSet>, NamesError> {
        if let Some(sets) = self.server.rrsets(&row.zone, &row.name).await? {
            return Ok(sets);
        }
        if self.config.nameservers.is_empty() {
            return Err(NamesError::NoZone(row.zone.clone()));
        }
        tracing::info!(zone = %row.zone, "PowerDNS has no such zone yet; making it");
        self.server.create_zone(&row.zone, &self.config.nameservers).await?;
        Ok(Vec::new())
    }

    async fn remove(&self, pod_id: Uuid, row: &DnsRow) -> Result<(), NamesError> {
        if row.name.is_empty() {
            return Ok(());
        }
        let Some(there) = self.server.rrsets(&row.zone, &row.name).await? else { return Ok(()) };
        // Nothing is wanted, so nobody else's records are in the way.
        let changes = changes(&there, &row.name, pod_id, &Wanted::default()).unwrap_or_default();
        if !changes.is_empty() {
            self.server.change(&row.zone, &changes).await?;
        }
        Ok(())
    }
}

/// One name that the server refuses must not keep the others from it.
fn refused(pod_id: Uuid, error: NamesError) -> Result<(), NamesError> {
    match error {
        NamesError::Dns(DnsError::Refused { .. }) => {
            tracing::warn!(pod = %pod_id, %error, "the pod's name is not up to date; trying again");
            Ok(())
        }
        error => Err(error),
    }
}
