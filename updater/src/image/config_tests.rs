//! Tests of `image::config`: what is accepted, and each way of being refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::tests_support::example;
use super::*;

fn wire() -> Value {
    serde_json::from_slice(&example().to_json()).unwrap()
}

fn parse(value: &Value) -> Result<OsConfig, ConfigError> {
    OsConfig::parse(&serde_json::to_vec(value).unwrap())
}

#[test]
fn what_is_written_is_read_back() {
    assert_eq!(OsConfig::parse(&example().to_json()).unwrap(), example());
}

#[test]
fn unknown_fields_of_this_major_are_skipped_and_absent_wishes_ask_nothing() {
    let mut value = wire();
    value["colour"] = json!("green");
    value["slots"][0]["verity"]["fec"] = json!({});
    for key in ["security_version", "compatible", "requirements", "cmdline"] {
        value.as_object_mut().unwrap().remove(key).unwrap();
    }
    let config = parse(&value).unwrap();
    assert_eq!(config.requirements, Requirements::default());
    assert_eq!((config.security_version, config.cmdline, config.compatible.len()), (0, None, 0));
}

#[test]
fn another_major_is_refused_with_the_updater_that_it_needs_whatever_else_it_holds() {
    for (config, needs) in [
        (
            json!({"schema": 2, "requirements": {"updater": "3.4"}, "slots": "elsewhere"}),
            "switchback 3.4 or newer",
        ),
        (json!({"schema": 2}), "switchback of a later release or newer"),
        (json!({"schema": 0, "requirements": ["updater"]}), "a later release"),
        (json!({"schema": 2, "requirements": {"updater": "\u{1b}[2J"}}), "a later release"),
    ] {
        let error = parse(&config).unwrap_err().to_string();
        assert!(error.contains(needs) && error.contains("this updater knows 1"), "{error}");
    }
}

/// What is wrong, how, and a piece of the refusal.
type Case = (&'static str, fn(&mut Value), &'static str);

const REFUSED: &[Case] = &[
    ("an unknown kind", |c| c["kind"] = json!("firmware"), "not the JSON of this format"),
    ("no product", |c| c["product"] = json!(""), "product"),
    ("a product as a path", |c| c["product"] = json!("../etc"), "product"),
    (
        "a title of two lines: it would add a line to the loader entry",
        |c| c["name"] = json!("OS\noptions init=/bin/sh"),
        "name",
    ),
    ("a version with a space", |c| c["version"] = json!("1.0 beta"), "version"),
    ("a negative security version", |c| c["security_version"] = json!(-1), "not the JSON"),
    (
        "an updater that is no version",
        |c| c["requirements"]["updater"] = json!("new one"),
        "requirements.updater",
    ),
    ("a hardware name with a control character", |c| c["compatible"] = json!(["a\u{7}"]), "compatible"),
    ("a thousand hardware names", |c| c["compatible"] = json!(vec!["x"; 1000]), "compatible"),
    ("a command line of two lines", |c| c["cmdline"] = json!("quiet\ninitrd /other"), "cmdline"),
    ("a command line the kernel would cut", |c| c["cmdline"] = json!("x".repeat(2049)), "cmdline"),
    ("no slots", |c| c["slots"] = json!([]), "slots has 0 entries"),
    ("too many slots", |c| c["slots"] = json!(vec![c["slots"][0].clone(); 17]), "slots has 17 entries"),
    ("a slot twice", |c| c["slots"] = json!(vec![c["slots"][0].clone(); 2]), "`root` comes twice"),
    ("a slot with a bad name", |c| c["slots"][0]["name"] = json!("Root/1"), "slots.name"),
    ("an empty slot", |c| c["slots"][0]["bytes"] = json!(0), "slots.bytes"),
    ("a part of a block", |c| c["slots"][0]["bytes"] = json!(4097), "slots.bytes"),
    ("two tebibytes", |c| c["slots"][0]["bytes"] = json!(1u64 << 41), "slots.bytes"),
    ("a digest that is none", |c| c["slots"][0]["sha256"] = json!("abc"), "not the JSON"),
    ("a short root hash", |c| c["slots"][0]["verity"]["root"] = json!("00"), "not the JSON"),
    ("a salt in no digits", |c| c["slots"][0]["verity"]["salt"] = json!("xy"), "not the JSON"),
    (
        "a salt too long for the superblock",
        |c| c["slots"][0]["verity"]["salt"] = json!("00".repeat(257)),
        "verity.salt",
    ),
    (
        "a block size that is no power of two",
        |c| c["slots"][0]["verity"]["data_block_bytes"] = json!(5000),
        "data_block_bytes",
    ),
    (
        "a hash block of no bytes",
        |c| c["slots"][0]["verity"]["hash_block_bytes"] = json!(0),
        "hash_block_bytes",
    ),
    ("a tree over a part of the slot", |c| c["slots"][0]["verity"]["data_blocks"] = json!(1), "data_blocks"),
    (
        "a block count that overflows to the right one",
        |c| c["slots"][0]["verity"]["data_blocks"] = json!((1u64 << 52) + (5 << 18)),
        "data_blocks",
    ),
];

#[test]
fn every_other_config_is_refused_with_the_field() {
    for (what, change, piece) in REFUSED {
        let mut value = wire();
        change(&mut value);
        let error = parse(&value).expect_err(what).to_string();
        assert!(error.contains(piece), "{what}: {error}");
    }
}

#[test]
fn sizes_beyond_four_gib_stay_exact() {
    for bytes in [(2u64 << 30) - 4096, 2 << 30, (4 << 30) - 4096, 4 << 30, (4 << 30) + 4096] {
        let mut value = wire();
        value["slots"][0]["bytes"] = json!(bytes);
        value["slots"][0]["verity"]["data_blocks"] = json!(bytes / 4096);
        assert_eq!(parse(&value).unwrap().slots[0].bytes, bytes);
    }
}

#[test]
fn a_config_over_its_bound_is_not_even_parsed() {
    let mut bytes = example().to_json();
    bytes.resize(CONFIG_BYTES_MAX as usize + 1, b' ');
    assert!(matches!(OsConfig::parse(&bytes), Err(ConfigError::TooLong { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn arbitrary_and_mutated_bytes_never_panic(
        noise in prop::collection::vec(any::<u8>(), 0..300),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        prop_assert!(OsConfig::parse(&noise).is_err());
        let mut bytes = example().to_json();
        for (place, value) in edits {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if let Ok(config) = OsConfig::parse(&bytes) {
            prop_assert!(config.check().is_ok());
        }
    }
}
