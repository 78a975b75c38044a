//! A hash for keys that we gave ourselves: numbers, codes, the operator's names for things.
//!
//! Nobody outside can choose such keys so that they fall together, so mixing the bits is all that their hash has to do, at a
//! tenth of what the standard library's costs, which is made to withstand chosen keys.

use std::hash::{BuildHasherDefault, Hasher};

/// For maps and sets with such keys.
pub type Mixed = BuildHasherDefault<Mix>;

/// The hasher.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        // The finaliser of SplitMix64.
        let mut z = self.0 ^ number.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = z ^ (z >> 31);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn neighbours_fall_apart() {
        let low_bits = |key: &dyn Fn(u32) -> u64| (0..256).map(|at| key(at) & 0xffff).collect::<HashSet<_>>().len();
        assert!(low_bits(&|at| Mixed::default().hash_one(at)) > 240);
        assert!(low_bits(&|at| Mixed::default().hash_one(format!("authorise.rule_{at}"))) > 240);
        assert_ne!(Mixed::default().hash_one((1, 2)), Mixed::default().hash_one((2, 1)));
    }
}
