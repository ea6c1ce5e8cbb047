//! Wrong names answered with the nearest valid one.

/// "unknown `what` 'wrong'", with the nearest of the valid names, or all of them when none is near.
pub fn unknown<'a>(what: &str, wrong: &str, valid: impl Iterator<Item = &'a str>) -> String {
    let valid: Vec<&str> = valid.collect();
    match nearest(wrong, &valid) {
        Some(name) => format!("unknown {what} '{wrong}'; did you mean '{name}'?"),
        None => format!("unknown {what} '{wrong}'; the valid ones are {}", valid.join(", ")),
    }
}

/// The valid name that a typing error most likely made `wrong` of, if there is one.
pub fn nearest<'a>(wrong: &str, valid: &[&'a str]) -> Option<&'a str> {
    let lower = wrong.to_ascii_lowercase();
    let likeness = |name: &&str| match name.to_ascii_lowercase() {
        name if name.starts_with(&lower) && !lower.is_empty() => 1.0,
        // In names of two letters one wrong letter is too much for the measure below.
        name if name.len() > 1 && strsim::osa_distance(&lower, &name) == 1 => 0.99,
        name => strsim::jaro_winkler(&lower, &name),
    };
    let best = valid.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (lower.len() > 1 && likeness(&best) >= 0.75).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_gets_the_nearest_name() {
        let keys = ["path", "ro", "slot", "serial", "queues"];
        for (wrong, right) in [("slto", "slot"), ("Serail", "serial"), ("queue", "queues"), ("RO", "ro")] {
            assert_eq!(nearest(wrong, &keys), Some(right));
        }
    }

    #[test]
    fn a_name_near_to_none_gets_the_list() {
        assert_eq!(
            unknown("key", "xyzzy", ["ro", "slot"].into_iter()),
            "unknown key 'xyzzy'; the valid ones are ro, slot"
        );
        assert_eq!(nearest("", &["ro", "slot"]), None);
    }
}
