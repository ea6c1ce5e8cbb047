//! Which pieces are worth keeping.

use std::collections::BTreeSet;

use super::Piece;

/// At most `limit` of the inputs: each time the one whose pairs of neighbouring steps are new the most often; none that
/// adds nothing.
pub fn some(mut pieces: Vec<Piece>, limit: usize) -> Vec<Vec<u8>> {
    let mut seen: BTreeSet<(String, String)> = BTreeSet::new();
    let mut chosen = Vec::new();
    while chosen.len() < limit {
        let gain = |piece: &Piece| pairs(piece).filter(|pair| !seen.contains(pair)).collect::<BTreeSet<_>>().len();
        // Of equals the first: earlier in the boot.
        let best = (0..pieces.len()).rev().max_by_key(|at| gain(&pieces[*at]));
        let Some(best) = best.filter(|at| gain(&pieces[*at]) > 0) else { break };
        let piece = pieces.remove(best);
        seen.extend(pairs(&piece));
        chosen.push(piece.data);
    }
    chosen
}

fn pairs(piece: &Piece) -> impl Iterator<Item = (String, String)> + '_ {
    piece.steps.windows(2).map(|pair| (pair[0].clone(), pair[1].clone()))
}
