//! Which of two versions is newer: one documented rule for the many ways that versions are written.
//!
//! Not here: what a version means. Rule: a total order on any text; no version is too long or too odd to compare.

use std::cmp::Ordering;

/// Compares two versions in natural order.
///
/// - A leading `v` and everything after the first `+` (build metadata) are ignored.
/// - Runs of digits compare as numbers of any length, runs of letters as text; `.`, `_` and other signs only separate.
/// - A missing part counts as the number `0`: `1` = `1.0`.
/// - What follows the first `-` or `~` is a pre-release: `1.0-rc.1` < `1.0`, and `1.0-rc.2` < `1.0-rc.10`.
/// - Letters go after every number, as in Semantic Versioning 11.4.3: `1.0` < `1.0a`, `1.1` < `1.a`.
pub fn compare(left: &str, right: &str) -> Ordering {
    let (left, left_pre) = split(left);
    let (right, right_pre) = split(right);
    compare_parts(&parts(left), &parts(right)).then_with(|| match (left_pre, right_pre) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(left), Some(right)) => compare_parts(&parts(left), &parts(right)),
    })
}

/// The version proper and its pre-release.
fn split(version: &str) -> (&str, Option<&str>) {
    let version = version.trim();
    let version = version.strip_prefix(['v', 'V']).unwrap_or(version);
    let version = version.split('+').next().unwrap_or_default();
    match version.split_once(['-', '~']) {
        Some((version, pre)) => (version, Some(pre)),
        None => (version, None),
    }
}

#[derive(Clone, Copy)]
enum Part<'a> {
    /// Letters (and whatever is no digit and no separator).
    Word(&'a str),
    /// Digits without leading zeros.
    Number(&'a str),
}

fn parts(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    for piece in text.split(|c: char| !c.is_alphanumeric()).filter(|piece| !piece.is_empty()) {
        let mut rest = piece;
        while let Some(first) = rest.chars().next() {
            let digits = first.is_ascii_digit();
            let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
            let (run, after) = rest.split_at(end);
            parts.push(if digits { Part::Number(run.trim_start_matches('0')) } else { Part::Word(run) });
            rest = after;
        }
    }
    parts
}

fn compare_parts(left: &[Part<'_>], right: &[Part<'_>]) -> Ordering {
    (0..left.len().max(right.len()))
        .map(|at| match (part_at(left, at), part_at(right, at)) {
            (Part::Number(l), Part::Number(r)) => l.len().cmp(&r.len()).then_with(|| l.cmp(r)),
            (Part::Word(l), Part::Word(r)) => l.cmp(r),
            (Part::Number(_), Part::Word(_)) => Ordering::Less,
            (Part::Word(_), Part::Number(_)) => Ordering::Greater,
        })
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

fn part_at<'a>(parts: &[Part<'a>], at: usize) -> Part<'a> {
    parts.get(at).copied().unwrap_or(Part::Number(""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_are_ordered_as_people_read_them() {
        for (older, newer) in [
            ("1.0", "1.1"),
            ("1.9", "1.10"),
            ("1.1", "1.1.1"),
            ("1.0-rc.1", "1.0"),
            ("1.0-rc.2", "1.0-rc.10"),
            ("1.0~beta", "1.0"),
            ("1.0-alpha", "1.0-beta"),
            ("1.0", "1.0a"),
            ("1.1", "1.a"),
            ("2026.9.30", "2026.10.1"),
            ("20260930", "20261001"),
            ("0.99999999999999999999999999", "0.100000000000000000000000000"),
        ] {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} < {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater, "{newer} > {older}");
        }
    }

    #[test]
    fn different_spellings_of_one_version_are_equal() {
        for (one, other) in
            [("1", "1.0"), ("v1.2", "1.2"), ("1.2+build7", "1.2"), ("1.02", "1.2"), ("1_2", "1.2")]
        {
            assert_eq!(compare(one, other), Ordering::Equal, "{one} = {other}");
        }
    }

    proptest! {
        #[test]
        fn the_order_is_total(a in "[0-9a.~+v-]{0,8}", b in "[0-9a.~+v-]{0,8}", c in "[0-9a.~+v-]{0,8}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            if compare(&a, &b).is_le() && compare(&b, &c).is_le() {
                prop_assert!(compare(&a, &c).is_le(), "{} <= {} <= {}", a, b, c);
            }
        }
    }
}
