//! Which gates have decided on a request already. Two layers over one gate ask it once, two over two gates each their own.

use http::Extensions;

/// In a request's extensions: the gate of this number has decided on it. A mark without a size, because http puts each
/// extension into memory of its own.
#[derive(Clone)]
struct DecidedBy<const GATE: usize>;

/// The same, for the gates whose numbers have no mark of their own.
#[derive(Clone, Default)]
struct DecidedByOthers(Vec<usize>);

/// Marks a request as decided on by this gate, and says whether it was not so before.
pub(super) fn mark(extensions: &mut Extensions, gate: usize) -> bool {
    match gate {
        0 => extensions.insert(DecidedBy::<0>).is_none(),
        1 => extensions.insert(DecidedBy::<1>).is_none(),
        2 => extensions.insert(DecidedBy::<2>).is_none(),
        3 => extensions.insert(DecidedBy::<3>).is_none(),
        _ => {
            let DecidedByOthers(gates) = extensions.get_or_insert_default();
            let first = !gates.contains(&gate);
            if first {
                gates.push(gate);
            }
            first
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gate_has_a_mark_of_its_own() {
        let mut extensions = Extensions::new();
        for gate in 0..8 {
            assert!(mark(&mut extensions, gate), "{gate} has not decided");
            assert!((0..=gate).all(|decided| !mark(&mut extensions, decided)), "up to {gate} all have");
        }
        assert!(mark(&mut Extensions::new(), 5), "another request");
    }
}
