//! The order of versions that systemd-boot sorts its entries by (UAPI group, "Version Format Specification").
//!
//! Not here: semantic versions; this order knows no releases. Rule: pure, and total on any text.

use std::cmp::Ordering;

/// Compares two versions: digits as numbers, letters by code; `~`, `-`, `^` and `.` are older than what else could
/// stand in their place, and only `~` is older than the end of the text.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        // Characters that a version has no use for separate its parts and are otherwise ignored.
        a = skip(a, |c| !is_meant(c));
        b = skip(b, |c| !is_meant(c));
        let mut step = separator(b'~', &mut a, &mut b);
        if step.is_eq() && (a.is_empty() || b.is_empty()) {
            return a.len().min(1).cmp(&b.len().min(1));
        }
        for mark in [b'-', b'^', b'.'] {
            step = step.then_with(|| separator(mark, &mut a, &mut b));
        }
        step = step.then_with(|| {
            if starts_number(a) || starts_number(b) {
                numbers(&mut a, &mut b)
            } else {
                letters(&mut a, &mut b)
            }
        });
        if step.is_ne() {
            return step;
        }
    }
}

fn is_meant(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'~' | b'-' | b'^' | b'.')
}

fn starts_number(text: &[u8]) -> bool {
    text.first().is_some_and(u8::is_ascii_digit)
}

/// The side that has the separator where the other has none is older; both step over it.
fn separator(mark: u8, a: &mut &[u8], b: &mut &[u8]) -> Ordering {
    let (in_a, in_b) = (a.first() == Some(&mark), b.first() == Some(&mark));
    if in_a && in_b {
        (*a, *b) = (&a[1..], &b[1..]);
    }
    in_b.cmp(&in_a)
}

/// Two runs of digits; none at all is older than zero.
fn numbers(a: &mut &[u8], b: &mut &[u8]) -> Ordering {
    let (left, right) = (take(a, |c| c.is_ascii_digit()), take(b, |c| c.is_ascii_digit()));
    let digits_at_all = left.is_empty().cmp(&right.is_empty()).reverse();
    let (left, right) = (skip(left, |c| c == b'0'), skip(right, |c| c == b'0'));
    digits_at_all.then(left.len().cmp(&right.len())).then(left.cmp(right))
}

/// Two runs of letters: a run that goes on is newer, capitals go before small letters.
fn letters(a: &mut &[u8], b: &mut &[u8]) -> Ordering {
    take(a, |c| c.is_ascii_alphabetic()).cmp(take(b, |c| c.is_ascii_alphabetic()))
}

fn skip(text: &[u8], unwanted: impl Fn(u8) -> bool) -> &[u8] {
    &text[text.iter().position(|c| !unwanted(*c)).unwrap_or(text.len())..]
}

fn take<'a>(text: &mut &'a [u8], wanted: impl Fn(u8) -> bool) -> &'a [u8] {
    let (run, rest) = text.split_at(text.iter().position(|c| !wanted(*c)).unwrap_or(text.len()));
    *text = rest;
    run
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_stand_in_the_order_of_the_specification() {
        // The specification's own list, oldest first; each is older than all that follow.
        let ascending = [
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
        ];
        for (index, older) in ascending.iter().enumerate() {
            assert_eq!(compare(older, older), Ordering::Equal, "{older}");
            for newer in &ascending[index + 1..] {
                assert_eq!(compare(older, newer), Ordering::Less, "{older} before {newer}");
                assert_eq!(compare(newer, older), Ordering::Greater, "{newer} after {older}");
            }
        }
    }

    #[test]
    fn generations_compare_as_numbers() {
        for (older, newer) in
            [("9", "10"), ("99", "100"), ("1", "2"), ("18446744073709551614", "18446744073709551615")]
        {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} before {newer}");
        }
        assert_eq!(compare("007", "7"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn the_order_is_total(a in "[a-z0-9.~^+-]{0,12}", b in "[a-z0-9.~^+-]{0,12}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
        }
    }
}
