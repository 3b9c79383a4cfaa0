//! Philox 4x32 with ten rounds: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011), section 3.3.

/// Returns four random words for a counter and a key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut left0, mut right0, mut left1, mut right1] = counter;
    let [mut key0, mut key1] = key;
    for _ in 0..10 {
        let product0 = 0xD251_1F53_u64 * left0 as u64;
        let product1 = 0xCD9E_8D57_u64 * left1 as u64;
        left0 = (product1 >> 32) as u32 ^ right0 ^ key0;
        left1 = (product0 >> 32) as u32 ^ right1 ^ key1;
        right0 = product1 as u32;
        right1 = product0 as u32;
        key0 = key0.wrapping_add(0x9E37_79B9); // the golden ratio
        key1 = key1.wrapping_add(0xBB67_AE85); // the square root of 3, less 1
    }
    [left0, right0, left1, right1]
}

/// Known answers of the authors' library (Random123, `kat_vectors`).
pub fn check() {
    assert_eq!(philox([0; 4], [0; 2]), [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]);
    assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]);
}
