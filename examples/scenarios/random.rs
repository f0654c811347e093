//! Draws that repeat: SplitMix64 (Steele, Lea and Flood, 2014), so that a seed means the same everywhere.

/// A stream of draws. Streams of one seed with different names are independent: the arrivals do not change when the
/// service times do.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64, stream: &str) -> Self {
        // FNV-1a over the name.
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        let mut random = Self(stream.bytes().fold(0xCBF2_9CE4_8422_2325 ^ seed.wrapping_mul(0x9E37), hash));
        random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }

    /// Lognormal with mean 1 and the given coefficient of variation.
    pub fn lognormal(&mut self, cv: f64) -> f64 {
        let variance = (1.0 + cv * cv).ln();
        // Box and Muller, 1958.
        let normal = (2.0 * self.exponential()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos();
        (variance.sqrt() * normal - variance / 2.0).exp()
    }
}
