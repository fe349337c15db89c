//! Slots that the workers of several queues share: together they never run, or have
//! fetched, more jobs than there are slots, and no queue starves.
//!
//! Each worker has a [`Seat`]. Before a call it *takes* slots, and it notes what it
//! holds and whether it is hungry (knows of work, or may have some). A free slot goes
//! to the hungry seat that holds fewest; among equals to the one whose turn is longest
//! ago. So a queue alone has all slots, queues under load have equal parts, and with
//! fewer slots than queues they go round.
//!
//! A slot is held until the outcome of its job is written, so that `active` in Redis
//! keeps to the number too. The exception is a Redis that takes no calls: what waits
//! for it to come back does not keep others from theirs.
//!
//! Knows nothing of Redis or jobs.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// The slots, and who holds how many.
#[derive(Debug)]
pub(crate) struct SharedSlots {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    total: usize,
    /// Numbers the turns.
    turns: u64,
    seats: BTreeMap<u64, Place>,
    next_seat: u64,
}

/// One worker's place.
#[derive(Debug, Default)]
struct Place {
    held: usize,
    hungry: bool,
    /// When it last took a slot.
    turn: u64,
    bell: Arc<Notify>,
}

/// A worker's part in shared slots; dropped, it holds none.
#[derive(Debug)]
pub(crate) struct Seat {
    slots: Arc<SharedSlots>,
    id: u64,
    bell: Arc<Notify>,
}

impl SharedSlots {
    pub(crate) fn new(total: usize) -> Arc<Self> {
        Arc::new(Self { table: Mutex::new(Table { total, ..Table::default() }) })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn seat(self: &Arc<Self>) -> Seat {
        let mut table = self.table();
        let id = table.next_seat;
        table.next_seat += 1;
        let bell = Arc::<Notify>::default();
        table.seats.insert(id, Place { bell: bell.clone(), ..Place::default() });
        Seat { slots: self.clone(), id, bell }
    }

    /// How many there are from now on; what is held stays.
    pub(crate) fn set_total(&self, total: usize) {
        let mut table = self.table();
        table.total = total;
        table.ring(None);
    }
}

impl Table {
    /// Slots that nobody holds.
    fn free(&self) -> usize {
        self.total.saturating_sub(self.seats.values().map(|place| place.held).sum())
    }

    /// Who of the hungry gets how many of `free` slots.
    fn share_out(&self, mut free: usize) -> BTreeMap<u64, usize> {
        let mut given: BTreeMap<u64, usize> = BTreeMap::new();
        let hungry: Vec<(u64, &Place)> =
            self.seats.iter().filter(|(_, place)| place.hungry).map(|(id, place)| (*id, place)).collect();
        if let [(alone, _)] = hungry[..] {
            given.insert(alone, free);
            return given;
        }
        while free > 0 {
            let has = |id: &u64, place: &Place| place.held + given.get(id).copied().unwrap_or(0);
            let next = hungry.iter().min_by_key(|(id, place)| (has(id, place), place.turn));
            let Some((id, _)) = next else { break };
            *given.entry(*id).or_default() += 1;
            free -= 1;
        }
        given
    }

    /// What seat `id` may take when it holds `base`, for as long as it asks as one of
    /// the hungry.
    fn grant(&mut self, id: u64, base: usize) -> usize {
        let Some(place) = self.seats.get_mut(&id) else { return 0 };
        let (held, hungry) = (place.held, place.hungry);
        (place.held, place.hungry) = (base, true);
        let granted = self.share_out(self.free()).remove(&id).unwrap_or(0);
        if let Some(place) = self.seats.get_mut(&id) {
            (place.held, place.hungry) = (held, hungry);
        }
        granted
    }

    /// Wakes those who may take something now, except `but`.
    fn ring(&self, but: Option<u64>) {
        for id in self.share_out(self.free()).keys().filter(|id| Some(**id) != but) {
            if let Some(place) = self.seats.get(id) {
                place.bell.notify_one();
            }
        }
    }
}

impl Seat {
    /// What this seat holds, and whether it knows of work for more.
    pub(crate) fn note(&self, held: usize, hungry: bool) {
        let mut table = self.slots.table();
        let Some(place) = table.seats.get_mut(&self.id) else { return };
        let frees = held < place.held || (place.hungry && !hungry);
        (place.held, place.hungry) = (held, hungry);
        if frees {
            table.ring(Some(self.id));
        }
    }

    /// How many slots this seat may take beyond `base`, which it holds.
    pub(crate) fn grant(&self, base: usize) -> usize {
        self.slots.table().grant(self.id, base)
    }

    /// Takes up to `want` slots beyond `base` for a call that frees `freed` others when
    /// it has succeeded; gives the number taken. The call holds the larger of both.
    pub(crate) fn take(&self, base: usize, want: usize, freed: usize) -> usize {
        let mut table = self.slots.table();
        let taken = table.grant(self.id, base).min(want);
        table.turns += u64::from(taken > 0);
        let turn = table.turns;
        if let Some(place) = table.seats.get_mut(&self.id) {
            place.held = base + taken.max(freed);
            if taken > 0 {
                place.turn = turn;
            }
        }
        taken
    }

    /// Ends when there may be slots for this seat.
    ///
    /// # Cancel safety
    /// Cancel safe: a bell that rang is heard by the next call.
    pub(crate) async fn rung(&self) {
        self.bell.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.slots.table();
        table.seats.remove(&self.id);
        table.ring(None);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Seats at `total` slots.
    fn seats<const N: usize>(total: usize) -> [Seat; N] {
        let slots = SharedSlots::new(total);
        std::array::from_fn(|_| slots.seat())
    }

    fn rang(seat: &Seat) -> bool {
        seat.rung().now_or_never().is_some()
    }

    #[test]
    fn one_alone_has_all() {
        let [a, b] = seats(8);
        assert_eq!(a.grant(0), 8);
        assert_eq!(a.take(0, 100, 0), 8);
        assert_eq!(b.grant(0), 0);
        a.note(5, true);
        assert_eq!(b.take(0, 2, 0), 2, "it holds fewer");
        assert_eq!(a.grant(5), 1);
    }

    #[test]
    fn who_holds_fewest_is_next() {
        let [a, b, c] = seats(9);
        assert_eq!(a.take(0, 9, 0), 9);
        b.note(0, true);
        c.note(0, true);
        // Three of its jobs have ended: their slots go to the others, not back to it.
        assert_eq!(a.take(6, 9, 3), 0);
        assert!(!rang(&b), "their outcomes are not written yet");
        a.note(6, true);
        assert!(rang(&b) && rang(&c));
        assert_eq!((b.take(0, 9, 0), c.take(0, 9, 0)), (2, 1));
        a.note(3, true);
        assert_eq!((a.grant(3), b.grant(2), c.grant(1)), (0, 1, 2));
    }

    #[test]
    fn fewer_slots_than_queues_go_round() {
        let [a, b, c] = seats(1);
        for seat in [&a, &b, &c] {
            seat.note(0, true);
        }
        let mut order = Vec::new();
        for _ in 0..6 {
            for (name, seat) in [('a', &a), ('b', &b), ('c', &c)] {
                if seat.take(0, 5, 0) == 1 {
                    order.push(name);
                    seat.note(0, true);
                    break;
                }
            }
        }
        assert_eq!(order.iter().collect::<String>(), "abcabc");
    }

    #[test]
    fn what_ended_makes_room_for_its_own_call() {
        let [a] = seats(4);
        assert_eq!(a.take(0, 4, 0), 4);
        assert_eq!(a.grant(4), 0);
        assert_eq!(a.take(2, 4, 2), 2, "two ended, two may be fetched by the same call");
        a.note(4, true);
        assert_eq!(a.grant(4), 0);
    }

    #[test]
    fn who_is_sated_or_leaves_wakes_the_others() {
        let [a, b, c] = seats(2);
        a.note(0, true);
        assert_eq!(a.take(0, 2, 0), 2);
        b.note(0, true);
        assert!(!rang(&b));
        // Its call came back with one job only.
        a.note(1, false);
        assert!(rang(&b) && !rang(&a) && !rang(&c));
        assert_eq!(b.take(0, 2, 0), 1);
        c.note(0, true);
        drop(a);
        assert!(rang(&c));
        assert_eq!(c.take(0, 2, 0), 1);
    }

    #[test]
    fn the_number_may_change() {
        let slots = SharedSlots::new(1);
        let (a, b) = (slots.seat(), slots.seat());
        assert_eq!(a.take(0, 1, 0), 1);
        b.note(0, true);
        slots.set_total(3);
        assert!(rang(&b));
        assert_eq!(b.take(0, 9, 0), 2);
        slots.set_total(1);
        a.note(0, true);
        assert_eq!((a.grant(0), b.grant(2)), (0, 0));
    }
}
