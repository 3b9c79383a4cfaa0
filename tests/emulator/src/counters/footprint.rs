//! Which pieces of 32 bytes a launch touched at all, however often: what must come from device memory, or go there, where a
//! cache keeps everything for as long as the launch runs.

use std::collections::HashMap;

/// Sectors of a page: 1 MiB.
const SECTORS: u64 = 1 << 15;
/// Pages that are remembered by their number's last bits.
const RECENT: usize = 64;

type Page = Box<[u64; SECTORS as usize / 64]>;

/// A set of sectors.
#[derive(Clone, Debug, Default)]
pub struct Footprint {
    pages: Vec<(u64, Page)>,
    places: HashMap<u64, usize>,
    /// For the last bits of a page's number: which page, and its place.
    recent: Vec<(u64, usize)>,
}

impl Footprint {
    /// Adds `count` sectors from number `sector` on; a sector's number is its address over 32.
    #[inline]
    pub fn add(&mut self, mut sector: u64, mut count: u64) {
        while count > 0 {
            let (at, bit) = (sector % SECTORS, sector % 64);
            let part = count.min(64 - bit);
            self.page(sector / SECTORS)[at as usize / 64] |= u64::MAX >> (64 - part) << bit;
            (sector, count) = (sector + part, count - part);
        }
    }

    /// Adds another set.
    pub fn join(&mut self, other: &Self) {
        for (number, page) in &other.pages {
            self.page(*number).iter_mut().zip(page.iter()).for_each(|(a, b)| *a |= b);
        }
    }

    /// Counts the sectors.
    pub fn len(&self) -> u64 {
        let of = |page: &Page| page.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        self.pages.iter().map(|(_, page)| of(page)).sum()
    }

    /// Says whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    #[inline]
    fn page(&mut self, number: u64) -> &mut [u64; SECTORS as usize / 64] {
        if self.recent.is_empty() {
            self.recent = vec![(u64::MAX, 0); RECENT];
        }
        let slot = number as usize % RECENT;
        if self.recent[slot].0 != number {
            let place = *self.places.entry(number).or_insert_with(|| {
                self.pages.push((number, Box::new([0; SECTORS as usize / 64])));
                self.pages.len() - 1
            });
            self.recent[slot] = (number, place);
        }
        &mut self.pages[self.recent[slot].1].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_count_once_across_words_pages_and_sets() {
        let (mut a, mut b) = (Footprint::default(), Footprint::default());
        assert!(a.is_empty());
        a.add(60, 10);
        a.add(62, 4);
        assert_eq!(a.len(), 10);
        a.add(SECTORS - 3, 6);
        a.add(1 << 40, 1);
        assert_eq!(a.len(), 17);
        b.add(69, 2);
        b.add(RECENT as u64 * SECTORS, 1); // takes the place of page 0 among the recent ones
        b.add(0, 1);
        a.join(&b);
        assert_eq!(a.len(), 20);
    }
}
