//! Medians, and limits that are kept or not.

/// The value in the middle; `NaN` of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// `median (least–most)`, with so many digits behind the point.
#[must_use]
pub fn spread(values: &[f64], digits: usize) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{:.digits$} ({least:.digits$}–{most:.digits$})", median(values))
}

/// `median (between which half of them lie)`: of many rounds, where the least and the most are what something else on the
/// machine did to one of them.
#[must_use]
pub fn quartiles(values: &[f64], digits: usize) -> String {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = |quarters: usize| values.get(values.len() * quarters / 4).copied().unwrap_or(f64::NAN);
    format!("{:.digits$} ({:.digits$}–{:.digits$})", at(2), at(1), at(3))
}

/// A figure with its limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// What it came to.
    pub value: f64,
    /// What it may be at most, or at least.
    pub limit: f64,
    /// Whether the limit is the least.
    pub at_least: bool,
}

impl Figure {
    /// Whether the limit is kept. A figure nobody measured keeps none.
    #[must_use]
    pub fn holds(&self) -> bool {
        if self.at_least { self.value >= self.limit } else { self.value <= self.limit }
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let Self { name, value, limit, at_least } = self;
        let verdict = if self.holds() { "holds" } else { "BEYOND" };
        format!("{verdict:<7} {name}: {value:.2}, {} {limit:.2}", if *at_least { "at least" } else { "at most" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_kept_on_its_own_side_only_and_nothing_keeps_none() {
        let figure = |value, at_least| Figure { name: "x".to_owned(), value, limit: 1.0, at_least };
        assert!(figure(1.0, true).holds() && figure(1.0, false).holds());
        assert!(figure(2.0, true).holds() && !figure(2.0, false).holds());
        assert!(!figure(0.5, true).holds() && figure(0.5, false).holds());
        assert!(!figure(f64::NAN, true).holds() && !figure(f64::NAN, false).holds());
        assert!(!figure(median(&[]), false).holds());
    }

    #[test]
    fn a_median_does_not_care_for_order_or_outliers() {
        assert_eq!(median(&[900.0, 2.0, 1.0]), 2.0);
        assert_eq!(spread(&[3.0, 1.0, 2.0], 1), "2.0 (1.0–3.0)");
        assert_eq!(quartiles(&[3.0, 900.0, 2.0, 4.0, 0.0], 1), "3.0 (2.0–4.0)");
    }
}
