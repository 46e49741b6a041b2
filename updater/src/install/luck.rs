//! What an install finds out while it goes on: which hopes came true, and what was fetched.
//!
//! Not here: what follows from it (`fetch` plans anew with it). Rule: hope ends after some misses in a row and does not return, so
//! that a machine that is not what it remembers costs a few small requests and then large ones.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::image::lookup::Place;

/// So many misses in a row make a place one of other content, and a patch one for something else.
const MISSES_MAX: u32 = 32;

/// Shared by all stages.
#[derive(Default)]
pub struct Luck {
    places: [Hope; 2],
    patch: Hope,
    fetched: AtomicU64,
    requests: AtomicU64,
}

/// Misses in a row; once they are too many there is none left.
#[derive(Default)]
struct Hope {
    misses: AtomicU32,
    lost: AtomicBool,
}

impl Hope {
    fn learn(&self, found: bool) {
        if found {
            self.misses.store(0, Ordering::Relaxed);
        } else if self.misses.fetch_add(1, Ordering::Relaxed) + 1 >= MISSES_MAX {
            self.lose();
        }
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    fn is_there(&self) -> bool {
        !self.lost.load(Ordering::Relaxed)
    }
}

impl Luck {
    /// A segment that was hoped to lie in `place` was there, at least in part, or not at all.
    pub fn local(&self, place: Place, found: bool) {
        self.places[place as usize].learn(found);
    }

    /// An entry of the patch made the right bytes, or not.
    pub fn patched(&self, right: bool) {
        self.patch.learn(right);
    }

    /// The patch cannot be fetched.
    pub fn no_patch(&self) {
        self.patch.lose();
    }

    /// A request for so many bytes was made.
    pub fn asked(&self, bytes: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes fetched and requests made.
    pub fn cost(&self) -> (u64, u64) {
        (self.fetched.load(Ordering::Relaxed), self.requests.load(Ordering::Relaxed))
    }

    /// The places that are still worth a look.
    pub fn places(&self) -> [bool; 2] {
        [self.places[0].is_there(), self.places[1].is_there()]
    }

    /// The patch is still worth its bytes.
    pub fn hopes_for_patch(&self) -> bool {
        self.patch.is_there()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hope_ends_after_misses_in_a_row_for_one_place_alone_and_does_not_return() {
        let luck = Luck::default();
        for _ in 0..3 {
            (1..MISSES_MAX).for_each(|_| luck.local(Place::Target, false));
            luck.local(Place::Target, true);
        }
        assert_eq!(luck.places(), [true, true]);
        (0..MISSES_MAX).for_each(|_| luck.local(Place::Target, false));
        luck.local(Place::Target, true);
        assert_eq!((luck.places(), luck.hopes_for_patch()), ([true, false], true));
        luck.no_patch();
        assert_eq!((luck.places(), luck.hopes_for_patch()), ([true, false], false));
    }
}
