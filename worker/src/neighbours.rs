//! Who else works on our queues: Node workers are found by the names of their
//! connections, which BullMQ derives from the queue.
//!
//! Our own workers always carry a name that begins with [`OWN_NAME`]; whatever
//! else waits on the queue provisions beside us.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mpanel_connect::Shared;
use redis::RedisResult;

/// What the names of the fleet's own workers begin with.
pub const OWN_NAME: &str = "mpanel-fleet";

/// A worker that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The queue it serves.
    pub queue: String,
    /// Its address, `ip:port`.
    pub address: String,
}

/// The name of this process's workers: unique on the machine, told in `pb` of the
/// jobs they run.
#[must_use]
pub fn own_name() -> String {
    let host = hostname();
    format!("{OWN_NAME}@{host}:{}", std::process::id())
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String =
        name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')).collect();
    if name.is_empty() { "host".to_owned() } else { name }
}

/// Workers on these queues that are not the fleet's.
///
/// # Errors
/// Those of CLIENT LIST; a user without that right gets NOPERM.
pub async fn find(servers: Vec<Shared>, prefix: &str, queues: &[&str]) -> RedisResult<Vec<Neighbour>> {
    let mut found = Vec::new();
    // In a Cluster each node tells of its own clients.
    for mut server in servers {
        let list: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut server.conn).await?;
        found.extend(in_list(&list, prefix, queues));
    }
    Ok(found)
}

/// The same, from the text of CLIENT LIST.
fn in_list(list: &str, prefix: &str, queues: &[&str]) -> Vec<Neighbour> {
    let field = |line: &str, name: &str| {
        line.split(' ')
            .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_default()
            .to_owned()
    };
    let mut found = Vec::new();
    for queue in queues {
        let base = format!("{prefix}:{}", STANDARD.encode(queue));
        for line in list.lines() {
            let name = field(line, "name");
            let worker = match name.strip_prefix(&base) {
                Some("") => "",
                Some(rest) => match rest.strip_prefix(":w:") {
                    Some(worker) => worker,
                    None => continue,
                },
                None => continue,
            };
            if !worker.starts_with(OWN_NAME) {
                found.push(Neighbour { queue: (*queue).to_owned(), address: field(line, "addr") });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_workers_are_told_from_ours_and_from_listeners() {
        let q = STANDARD.encode("cloudpods-create");
        let list = format!(
            "id=1 addr=10.0.0.1:100 laddr=x name=bull:{q} cmd=bzpopmin\n\
             id=2 addr=10.0.0.2:200 laddr=x name=bull:{q}:w:panel cmd=bzpopmin\n\
             id=3 addr=10.0.0.3:300 laddr=x name=bull:{q}:w:mpanel-fleet@h:1 cmd=bzpopmin\n\
             id=4 addr=10.0.0.4:400 laddr=x name=bull:{q}:qe cmd=xread\n\
             id=5 addr=10.0.0.5:500 laddr=x name= cmd=ping\n\
             id=6 addr=10.0.0.6:600 laddr=x name=other:{q} cmd=bzpopmin"
        );
        let found = in_list(&list, "bull", &["cloudpods-create", "cloudpods-destroy"]);
        let addresses: Vec<_> = found.iter().map(|n| n.address.as_str()).collect();
        assert_eq!(addresses, ["10.0.0.1:100", "10.0.0.2:200"]);
    }
}
