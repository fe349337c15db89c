//! Storage endpoints: lists, figures, content, removal.
//!
//! Reads `storage`'s state and writes it out as the API shows it.

use serde_json::{Value, json};

use super::dispatch::Call;
use super::state::{Cluster, GuestKind};
use super::storage::{self, Content, Storage, Volume};
use super::wire::{ApiError, Method, Reply};
use super::work::Work;

/// `/nodes/{node}/storage…`; `None` when the method is not simulated.
pub(crate) fn handle(cluster: &mut Cluster, call: &Call<'_>, tail: &str) -> Option<Result<Reply, ApiError>> {
    let node = call.node();
    let id = call.params.text("storage");
    Some(match (call.method, tail) {
        (Method::Get, "") => Ok(list(cluster, call)),
        (Method::Get, "/{storage}") => {
            Ok(Reply::Data(json!([{ "subdir": "content" }, { "subdir": "rrddata" }, { "subdir": "status" }])))
        }
        (Method::Get, "/{storage}/status") => storage::find(&cluster.storages, node, id)
            .map_err(ApiError::fail)
            .map(|storage| Reply::Data(row(storage))),
        (Method::Get, "/{storage}/content") => content(cluster, call, id),
        (Method::Get, "/{storage}/content/{volume}") => {
            volume(cluster, call).map(|(volid, volume)| Reply::Data(volume_row(&volid, volume)))
        }
        (Method::Put, "/{storage}/content/{volume}") => annotate(cluster, call),
        (Method::Delete, "/{storage}/content/{volume}") => remove(cluster, call),
        _ => return None,
    })
}

fn list(cluster: &Cluster, call: &Call<'_>) -> Reply {
    let wanted = call.params.get("content");
    let rows = cluster
        .storages
        .iter()
        .filter(|storage| storage.is_on(call.node()))
        .filter(|storage| call.params.get("storage").is_none_or(|id| storage.id == id))
        .filter(|storage| {
            wanted.is_none_or(|list| {
                super::formats::split_list(list)
                    .any(|kind| storage.kind.contents().iter().any(|content| content.as_str() == kind))
            })
        })
        .map(|storage| {
            let mut row = row(storage);
            row["storage"] = json!(storage.id);
            row
        })
        .collect();
    Reply::Data(Value::Array(rows))
}

/// The definitions, without a node's figures: `/storage` and `/storage/{storage}`.
pub(crate) fn definitions(cluster: &Cluster) -> Vec<Value> {
    let mut rows: Vec<Value> = Vec::new();
    for storage in &cluster.storages {
        if !rows.iter().any(|row| row["storage"] == storage.id.as_str()) {
            rows.push(json!({
                "storage": storage.id, "type": storage.kind.as_str(), "content": contents(storage),
                "shared": u8::from(storage.node.is_none()), "digest": "0".repeat(40),
            }));
        }
    }
    rows
}

fn contents(storage: &Storage) -> String {
    storage.kind.contents().iter().map(|content| content.as_str()).collect::<Vec<_>>().join(",")
}

pub(crate) fn row(storage: &Storage) -> Value {
    let used = storage.used_bytes();
    json!({
        "type": storage.kind.as_str(), "content": contents(storage), "shared": u8::from(storage.node.is_none()),
        "active": 1, "enabled": 1, "total": storage.total_bytes, "used": used, "avail": storage.free_bytes(),
        "used_fraction": used as f64 / storage.total_bytes.max(1) as f64,
    })
}

fn content(cluster: &Cluster, call: &Call<'_>, id: &str) -> Result<Reply, ApiError> {
    let storage = storage::find(&cluster.storages, call.node(), id).map_err(ApiError::fail)?;
    let vmid = call.params.number("vmid");
    let rows = storage
        .volumes
        .iter()
        .filter(|(_, volume)| call.params.get("content").is_none_or(|kind| volume.content.as_str() == kind))
        .filter(|(_, volume)| vmid.is_none_or(|vmid| volume.vmid.map(u64::from) == Some(vmid)))
        .map(|(volid, volume)| volume_row(volid, volume))
        .collect();
    Ok(Reply::Data(Value::Array(rows)))
}

fn volume_row(volid: &str, volume: &Volume) -> Value {
    let format = match volume.content {
        Content::Template => "tzst",
        Content::Backup => {
            volid.split_once(".tar").or_else(|| volid.split_once(".vma")).map_or("tar", |(name, suffix)| {
                match (&volid[name.len()..name.len() + 4], suffix) {
                    (".tar", ".zst") => "tar.zst",
                    (".tar", ".gz") => "tar.gz",
                    (".tar", ".lzo") => "tar.lzo",
                    (".vma", ".zst") => "vma.zst",
                    (".vma", ".gz") => "vma.gz",
                    (".vma", ".lzo") => "vma.lzo",
                    (".vma", _) => "vma",
                    _ => "tar",
                }
            })
        }
        Content::RootDir | Content::Images => "raw",
    };
    let mut row = json!({
        "volid": volid, "content": volume.content.as_str(), "format": format, "size": volume.bytes,
        "ctime": volume.created_at_s,
    });
    if let Some(vmid) = volume.vmid {
        row["vmid"] = json!(vmid);
    }
    if volume.content == Content::Backup {
        let kind = volume.backup_of.as_ref().map_or(GuestKind::Lxc, |(kind, _)| *kind);
        row["subtype"] = json!(kind.segment());
        if !volume.notes.is_empty() {
            row["notes"] = json!(volume.notes);
        }
        row["protected"] = json!(u8::from(volume.protected));
    }
    row
}

/// The volume id as it may be written in a path: with or without its storage.
fn full_volid(call: &Call<'_>) -> String {
    let volume = call.params.text("volume");
    if volume.contains(':') { volume.to_owned() } else { format!("{}:{volume}", call.params.text("storage")) }
}

fn volume<'a>(cluster: &'a Cluster, call: &Call<'_>) -> Result<(String, &'a Volume), ApiError> {
    let volid = full_volid(call);
    let volume = storage::find(&cluster.storages, call.node(), storage::storage_of(&volid))
        .map_err(ApiError::fail)?
        .volumes
        .get(&volid)
        .ok_or_else(|| ApiError::fail(format!("volume '{volid}' does not exist")))?;
    Ok((volid, volume))
}

fn annotate(cluster: &mut Cluster, call: &Call<'_>) -> Result<Reply, ApiError> {
    let (volid, _) = volume(cluster, call)?;
    let store = storage::find_mut(&mut cluster.storages, call.node(), storage::storage_of(&volid))
        .map_err(ApiError::fail)?;
    if let Some(volume) = store.volumes.get_mut(&volid) {
        if let Some(notes) = call.params.get("notes") {
            notes.clone_into(&mut volume.notes);
        }
        if call.params.get("protected").is_some() {
            volume.protected = call.params.flag("protected");
        }
    }
    Reply::none()
}

fn remove(cluster: &mut Cluster, call: &Call<'_>) -> Result<Reply, ApiError> {
    let (volid, found) = volume(cluster, call)?;
    if found.protected {
        return Err(ApiError::fail(format!("can't remove volume '{volid}' - protected")));
    }
    if let Some(vmid) = found.vmid
        && found.content != Content::Backup
        && cluster.guests.contains_key(&vmid)
    {
        return Err(ApiError::fail(format!(
            "cannot remove volume '{volid}' - it is in use by guest '{vmid}'"
        )));
    }
    let id = found.vmid.map(|vmid| vmid.to_string()).unwrap_or_default();
    Ok(call.start_task_named(
        cluster,
        "imgdel",
        &format!("{id}@{}", storage::storage_of(&volid)),
        Work::RemoveVolume { volid },
    ))
}
