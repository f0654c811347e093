//! What the law consists of: each part can be switched off, so that a sweep can say what it earns.

/// A part of the law.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// The need by Little's law bounds growth.
    Need,
    /// Growth at the pace of an unloaded database.
    FastGrowth,
    /// Growth while dials are under way.
    GrowAhead,
    /// Growth while nothing ends.
    Stuck,
    /// The Universal Scalability Law as prior of the elasticity.
    Prior,
    /// A limit that is proven to be worth more is taken at once.
    Proven,
    /// The way back, once growth does not pay.
    Retreat,
    /// Growth waits longer each time it was taken back.
    BackOff,
    /// Growth halts before a limit that was seen to be worth less.
    KnownWorse,
    /// Probes.
    Probes,
    /// The logarithms of use times as a measure of throughput.
    Logarithms,
    /// Ticks in which the limit does not bind as evidence.
    FreeTicks,
    /// A database that has changed is noticed.
    Changed,
}

impl Mechanism {
    /// All of them, with their names.
    pub const ALL: [(&str, Self); 13] = [
        ("need", Self::Need),
        ("fast-growth", Self::FastGrowth),
        ("grow-ahead", Self::GrowAhead),
        ("stuck", Self::Stuck),
        ("prior", Self::Prior),
        ("proven", Self::Proven),
        ("retreat", Self::Retreat),
        ("back-off", Self::BackOff),
        ("known-worse", Self::KnownWorse),
        ("probes", Self::Probes),
        ("logarithms", Self::Logarithms),
        ("free-ticks", Self::FreeTicks),
        ("changed", Self::Changed),
    ];
}
