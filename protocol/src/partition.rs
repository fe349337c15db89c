//! Partitioned queues: several ordinary queues, each in a Cluster slot of its own,
//! that are one to those who use them.
//!
//! Pure: how partitions are named, which one a key belongs to, and what the layout
//! says. Reading and writing the layout is [`crate::calls::partition`].
//!
//! Partition 3 of `mail` is the queue `mail-3` under the prefix `bull{mail-3}`: an
//! ordinary BullMQ queue whose keys share the hash tag `mail-3`.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::{
    ids::{NameError, Prefix, QueueName},
    keys::{QueueKeys, slot},
    time::TimestampMs,
};

/// Most partitions of a queue.
pub const PARTITIONS_MAX: u32 = 256;

/// One partition: an ordinary queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Partition {
    index: u32,
    prefix: Prefix,
    queue: QueueName,
}

impl Partition {
    /// Its number, from 0.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The prefix of its keys, such as `bull{mail-3}`: what a Node `Queue` or
    /// `Worker` of this partition is given as `prefix`.
    #[must_use]
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// The name of its queue, such as `mail-3`.
    #[must_use]
    pub fn queue(&self) -> &QueueName {
        &self.queue
    }

    /// Its keys.
    #[must_use]
    pub fn keys(&self) -> QueueKeys {
        QueueKeys::new(&self.prefix, &self.queue)
    }

    /// The slot of a Redis Cluster that it lives in.
    #[must_use]
    pub fn slot(&self) -> u16 {
        slot(self.keys().base())
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.queue)
    }
}

/// The name of a partitioned queue, and of everything that follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PartitionedName {
    /// The prefix without braces: a partition's tag is its own.
    base: String,
    queue: QueueName,
}

impl PartitionedName {
    /// `queue` under `prefix`. The prefixes `bull` and `{bull}` mean the same one.
    ///
    /// # Errors
    /// [`NameError::QueueBrace`]: the name would cut the hash tag of its partitions.
    pub fn new(prefix: &Prefix, queue: &QueueName) -> Result<Self, NameError> {
        if queue.as_str().contains(['{', '}']) {
            return Err(NameError::QueueBrace(queue.to_string()));
        }
        Ok(Self { base: prefix.as_str().replace(['{', '}'], ""), queue: queue.clone() })
    }

    /// The name that its users know.
    #[must_use]
    pub fn queue(&self) -> &QueueName {
        &self.queue
    }

    /// One of its partitions, there or not.
    #[must_use]
    pub fn partition(&self, index: u32) -> Partition {
        let name = format!("{}-{index}", self.queue);
        Partition {
            index,
            prefix: Prefix::stored(format!("{}{{{name}}}", self.base)),
            queue: QueueName::stored(name),
        }
    }

    /// The key of the layout, such as `bull{mail-0}:mail:partitions`: a sorted set with
    /// the members `open`, `served` and `changed` (see [`Layout`]). It lives beside
    /// partition 0.
    #[must_use]
    pub fn layout_key(&self) -> String {
        format!("{}:{}:partitions", self.partition(0).prefix, self.queue)
    }
}

/// How many partitions there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    open: u32,
    served: u32,
    changed: TimestampMs,
}

impl Layout {
    /// The layout that the members and scores of its key tell; `None` when there is
    /// none.
    ///
    /// # Errors
    /// A sentence, when they make no sense.
    pub fn from_scores(scores: &[(String, f64)]) -> Result<Option<Self>, String> {
        if scores.is_empty() {
            return Ok(None);
        }
        let score = |name: &str| scores.iter().find(|(member, _)| member == name).map(|(_, score)| *score);
        let count = |name: &str, score: f64| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked right here")]
            let whole = score as u32;
            let fits = (1..=PARTITIONS_MAX).contains(&whole) && f64::from(whole) == score;
            let wrong = || format!("`{name}` is {score}, not a whole number from 1 to {PARTITIONS_MAX}");
            fits.then_some(whole).ok_or_else(wrong)
        };
        let open = count("open", score("open").ok_or("the member `open` is missing")?)?;
        // Absent when somebody made the key by hand.
        let served = score("served").map_or(Ok(open), |served| count("served", served))?;
        #[expect(clippy::cast_possible_truncation, reason = "epoch ms; saturates")]
        let changed = TimestampMs(score("changed").unwrap_or(0.0) as i64);
        Ok(Some(Self { open, served: served.max(open), changed }))
    }

    /// A layout that nobody keeps: for tests without Redis.
    #[must_use]
    pub fn of(open: u32) -> Self {
        Self { open, served: open, changed: TimestampMs::default() }
    }

    /// New jobs go to the partitions below this number.
    #[must_use]
    pub fn open(&self) -> u32 {
        self.open
    }

    /// Workers serve the partitions below this number; those from
    /// [`open`](Self::open) on are being retired.
    #[must_use]
    pub fn served(&self) -> u32 {
        self.served
    }

    /// When it was last changed, by the server's time.
    #[must_use]
    pub fn changed(&self) -> TimestampMs {
        self.changed
    }

    /// The partition of all jobs with this key.
    #[must_use]
    pub fn of_key(&self, key: &str) -> u32 {
        partition_of_key(key, self.open)
    }
}

/// The partition, of so many, that a key belongs to. With one more partition a key
/// stays or moves to the new one, with one less only the keys of the last one move.
///
/// Jump consistent hash (Lamping and Veach, 2014) over the first eight bytes of the
/// key's SHA-256: `docs/guide/partitions.md` has the same in Node.
#[must_use]
pub fn partition_of_key(key: &str, partitions: u32) -> u32 {
    let digest = Sha256::digest(key.as_bytes());
    let mut state = digest.iter().take(8).fold(0u64, |state, byte| state << 8 | u64::from(*byte));
    let (mut chosen, mut next) = (0, 0);
    while next < i64::from(partitions.max(1)) {
        chosen = next;
        state = state.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        #[expect(clippy::cast_precision_loss, reason = "below 2^31")]
        let draw = 2f64.powi(31) / ((state >> 33) + 1) as f64;
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "below 2^40")]
        let jump = ((chosen + 1) as f64 * draw) as i64;
        next = jump;
    }
    u32::try_from(chosen).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn name(prefix: &str) -> PartitionedName {
        PartitionedName::new(&Prefix::new(prefix).unwrap(), &QueueName::new("mail").unwrap()).unwrap()
    }

    #[test]
    fn a_partition_is_a_queue_with_a_tag_of_its_own() {
        let third = name("bull").partition(3);
        assert_eq!(third.keys().meta(), "bull{mail-3}:mail-3:meta");
        assert_eq!(third.slot(), slot("mail-3"));
        assert_eq!(third.to_string(), "mail-3");
        assert!(third.prefix().has_hash_tag());
        assert_eq!(name("bull").layout_key(), "bull{mail-0}:mail:partitions");
        assert_eq!(name("{bull}"), name("bull"));
        for braced in ["a{b", "a}b"] {
            let refused = PartitionedName::new(&Prefix::default(), &QueueName::new(braced).unwrap());
            assert!(matches!(refused, Err(NameError::QueueBrace(_))));
        }
    }

    #[test]
    fn partitions_are_in_different_slots_over_all_nodes() {
        let slots: Vec<u16> = (0..PARTITIONS_MAX).map(|i| name("bull").partition(i).slot()).collect();
        assert_eq!(slots.iter().collect::<BTreeSet<_>>().len(), slots.len());
        for nodes in [2u32, 3, 4, 6, 8] {
            let used: BTreeSet<u32> = slots[..8].iter().map(|s| u32::from(*s) * nodes / 16_384).collect();
            assert!(used.len() as u32 >= nodes.min(4), "8 partitions use {} of {nodes} nodes", used.len());
        }
    }

    #[test]
    fn growing_moves_few_keys_and_only_to_the_new_partition() {
        let keys: Vec<String> = (0..10_000).map(|n| format!("tenant-{n}")).collect();
        for partitions in 1..12 {
            let mut moved = 0;
            for key in &keys {
                let (before, after) =
                    (partition_of_key(key, partitions), partition_of_key(key, partitions + 1));
                assert!(after == before || after == partitions, "{key}: {before} -> {after}");
                moved += usize::from(after != before);
            }
            let fair = keys.len() / (partitions as usize + 1);
            assert!((fair * 9 / 10..=fair * 11 / 10).contains(&moved), "{moved} of {fair} moved");
        }
    }

    #[test]
    fn keys_spread_evenly() {
        let mut held = [0u32; 7];
        for n in 0..14_000 {
            held[partition_of_key(&n.to_string(), 7) as usize] += 1;
        }
        assert!(held.iter().all(|n| (1800..2200).contains(n)), "{held:?}");
        assert_eq!([partition_of_key("", 1), partition_of_key("a", 0)], [0, 0]);
    }

    #[test]
    fn a_layout_is_read_as_it_was_meant() {
        let read = |scores: &[(&str, f64)]| {
            let scores: Vec<_> =
                scores.iter().map(|(member, score)| ((*member).to_owned(), *score)).collect();
            Layout::from_scores(&scores)
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("open", 4.0)]), Ok(Some(Layout::of(4))));
        let shrunk = read(&[("open", 2.0), ("served", 5.0), ("changed", 7.0)]).unwrap().unwrap();
        assert_eq!((shrunk.open(), shrunk.served(), shrunk.changed()), (2, 5, TimestampMs(7)));
        let odd = read(&[("open", 5.0), ("served", 2.0)]).unwrap().unwrap();
        assert_eq!(odd.served(), 5, "what is open is served");
        for bad in [&[("served", 2.0)][..], &[("open", 0.0)], &[("open", 2.5)], &[("open", 257.0)]] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert!(read(&[("open", f64::NAN)]).is_err());
        assert!(read(&[("open", 1.0), ("served", -3.0)]).is_err());
    }
}
