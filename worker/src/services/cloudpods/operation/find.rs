//! Where a pod's guest is, and whether what is at its VMID is the pod's at all.

use reqwest::Url;

use super::super::{
    plan::{Guest, ownership_tag, read_guest},
    sites::Survey,
};
use super::{OpError, OperationService, Work};
use crate::adapters::{
    db::{nodes, operations::PodRecord},
    proxmox::{GuestAt, GuestConfig, GuestKind, PveClient, PveError, tag_set},
};

/// What is at a pod's VMID.
#[derive(Debug)]
pub(super) enum Seen {
    /// Nothing, as far as its node and its cluster know.
    Absent,
    /// The pod's guest.
    Ours(GuestAt, Box<GuestConfig>),
    /// Something else, or half of something.
    Foreign(String),
}

/// Whose guest it is. A guest that a Node worker made carries no tag of ours;
/// then its name must be the pod's.
fn owned(pod: &PodRecord, in_our_books: bool, config: &GuestConfig, node: &str) -> Result<(), String> {
    match read_guest(config, &ownership_tag(pod.id), node) {
        Guest::Ours { .. } => Ok(()),
        Guest::HalfMade | Guest::Absent => Err("a guest that is being created".to_owned()),
        Guest::Foreign(who) => {
            let tagged = tag_set(config.tags.as_deref()).iter().any(|tag| tag.starts_with("mpanel-pod-"));
            let same_name = config.any_name().is_some_and(|name| name.eq_ignore_ascii_case(&pod.hostname));
            if !in_our_books && !tagged && same_name { Ok(()) } else { Err(who) }
        }
    }
}

impl OperationService {
    /// The guest of a pod that we have no record of: the clusters are asked.
    pub(super) async fn seek(
        &self,
        pod: &PodRecord,
        in_our_books: bool,
    ) -> Result<Option<(PveClient, Seen)>, OpError> {
        let survey: Survey = self.sites.survey(&nodes::all(&self.db).await?).await?;
        let mut foreign = None;
        for (base, guest) in &survey.guests {
            if guest.vmid != Some(i64::from(pod.vmid)) {
                continue;
            }
            let Some(kind) = GuestKind::of_segment(&guest.kind) else { continue };
            let client = self.sites.at(base);
            match look_at(&client, pod, in_our_books, &guest.node, kind).await? {
                Some(seen @ Seen::Ours(..)) => return Ok(Some((client, seen))),
                Some(seen) => foreign = Some((client, seen)),
                None => {}
            }
        }
        if foreign.is_none() && survey.is_partial() {
            let what = "not every Proxmox API answers, so nobody knows whether its guest is there".to_owned();
            return Err(OpError::NotYet { vmid: u32::try_from(pod.vmid).unwrap_or_default(), what });
        }
        Ok(foreign)
    }
}

async fn look_at(
    client: &PveClient,
    pod: &PodRecord,
    in_our_books: bool,
    node: &str,
    kind: GuestKind,
) -> Result<Option<Seen>, PveError> {
    let at = GuestAt { node: node.to_owned(), kind, vmid: u32::try_from(pod.vmid).unwrap_or_default() };
    let Some(config) = client.guest_config(&at).await? else { return Ok(None) };
    Ok(Some(match owned(pod, in_our_books, &config, node) {
        Ok(()) => Seen::Ours(at, Box::new(config)),
        Err(who) => Seen::Foreign(who),
    }))
}

impl Work<'_> {
    /// What is at the pod's VMID. `None` for the client means that no API knows the guest.
    pub(super) async fn find(&self) -> Result<(Option<PveClient>, Seen), OpError> {
        let Some(instance) = &self.instance else {
            return Ok(match self.service.seek(&self.pod, self.in_our_books).await? {
                Some((client, seen)) => (Some(client), seen),
                None => (None, Seen::Absent),
            });
        };
        let node = instance.spec.node_name.clone();
        let api_url = instance.row.api_url.as_deref().unwrap_or_default();
        let base: Url = self
            .service
            .sites
            .base(api_url)
            .map_err(|problem| OpError::NodeUrl { node: node.clone(), problem })?;
        let client = self.service.sites.at(&base);
        let kind = instance.spec.kind;
        // A node that is down keeps its guests; one that was moved away is elsewhere.
        let here = match look_at(&client, &self.pod, self.in_our_books, &node, kind).await {
            Ok(Some(seen)) => return Ok((Some(client), seen)),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        for guest in client.guests().await? {
            let elsewhere = guest.vmid == Some(i64::from(self.pod.vmid)) && guest.node != node;
            let Some(kind) = GuestKind::of_segment(&guest.kind).filter(|_| elsewhere) else { continue };
            if let Some(seen) = look_at(&client, &self.pod, self.in_our_books, &guest.node, kind).await? {
                return Ok((Some(client), seen));
            }
        }
        here?;
        Ok((Some(client), Seen::Absent))
    }

    /// The pod's guest, or the error that it is not there.
    pub(super) async fn guest(&self) -> Result<(PveClient, GuestAt, GuestConfig), OpError> {
        match self.find().await? {
            (Some(client), Seen::Ours(at, config)) => Ok((client, at, *config)),
            (_, Seen::Foreign(by)) => Err(OpError::Foreign { vmid: self.pod.vmid, by }),
            _ => Err(OpError::NoGuest { vmid: self.pod.vmid, pod: self.pod.id }),
        }
    }
}
