//! The closed set of reasons: one vocabulary for the state file, the history, the exit code and every report.
//!
//! Not here: messages with paths and numbers (each module's own error). Rule: a name and an exit code, once shipped,
//! never change their meaning; `docs/src/reasons.md` is written from this table and a test keeps them equal.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// Declares every reason once: variant, stored name, exit code, description, remedy.
macro_rules! reasons {
    ($($variant:ident $name:literal $code:literal $description:literal $remedy:literal)*) => {
        /// Why something was refused, failed or came back. Stored and shown under its kebab-case name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub enum Reason {
            $(#[doc = $description] #[serde(rename = $name)] $variant,)*
        }

        impl Reason {
            /// Every reason, in the order of its exit code.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The stable name, as stored and as shown.
            pub fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }

            /// The exit code of the command line: unique, at least 10, never 64 (usage).
            pub fn exit_code(self) -> u8 {
                match self { $(Reason::$variant => $code,)* }
            }

            /// One sentence: what happened.
            pub fn description(self) -> &'static str {
                match self { $(Reason::$variant => $description,)* }
            }

            /// One sentence: what to do next.
            pub fn remedy(self) -> &'static str {
                match self { $(Reason::$variant => $remedy,)* }
            }
        }
    };
}

reasons! {
    // 10–29: the release was refused before anything was written.
    SignatureRefused "signature-refused" 10
        "The release carries no signature that the trust policy accepts."
        "Sign the digest with a key of the policy, or add the signer's public key to it."
    NoPolicy "no-policy" 11
        "No trust policy covers this kind of image, so nothing can be accepted."
        "Name the public keys under [trust.policy.os] in the configuration, or ship them in /usr/lib/switchback/trust."
    WrongProduct "wrong-product" 12
        "The release was made for another product."
        "Check the image reference; the product of this machine stands under [machine] in the configuration."
    WrongKind "wrong-kind" 13
        "The image is signed, but it is not an operating system image."
        "Check the image reference."
    WrongHardware "wrong-hardware" 14
        "The release names hardware that this machine is not."
        "Use the release for this hardware, or correct `compatible` under [machine]."
    BelowFloor "below-floor" 15
        "The release's security version is below the floor that this machine has reached."
        "Use a newer release; an operator who accepts the older one in the other slot says `switchback rollback --below-floor`."
    Quarantined "quarantined" 16
        "This very release failed its trial on this machine and is quarantined by its digest."
        "Publish a corrected release, or let this one be tried again with `switchback quarantine release`; `switchback history` tells why it failed."
    Held "held" 17
        "An operator rolled back from this release; it is held until it is named or a newer one appears."
        "Name it with `switchback update --to`, or wait for a newer release."
    NotNewer "not-newer" 18
        "The release offered is not newer than the one that runs."
        "Name it with `switchback update --to` when the older one is wanted."
    UpdaterTooOld "updater-too-old" 19
        "The release needs a newer updater than the one that runs."
        "Update first to a release between the two."
    RamTooSmall "ram-too-small" 20
        "The release needs more memory than this machine has."
        "Use a release for machines of this size."
    SlotTooSmall "slot-too-small" 21
        "The release does not fit into the slot."
        "Build a smaller image, or provision larger slots."
    EspTooSmall "esp-too-small" 22
        "The release's boot files do not fit beside those of the running slot."
        "Make the kernel and initramfs smaller, remove foreign files from the boot partition, or provision a larger one."
    IndexLies "index-lies" 23
        "The chunk index contradicts the signed documents or itself."
        "Publish the release again; if it repeats, the registry or the build is damaged."
    FormatRefused "format-refused" 24
        "A signed document of the release is malformed, too large or of a newer format."
        "Build the release with a publisher that fits this updater, or update first to a release whose updater knows the format."

    // 30–39: fetching.
    RegistryUnreachable "registry-unreachable" 30
        "The registry could not be reached, or could not answer."
        "Check the network, the proxy and the clock; the update continues where it stopped."
    RegistryAbsent "registry-absent" 31
        "The registry answered that this image, tag or blob does not exist."
        "Check the image reference; a release that lacks a blob has to be pushed again."
    RegistryDenied "registry-denied" 32
        "The registry refused the credentials, or asked for some."
        "Check the auth file named under [source]."
    RegistryBroken "registry-broken" 33
        "The registry's answer breaks the protocol, or its certificate is not trusted."
        "Look at the message; a private certificate authority is named by `ca_file` under [source]."
    CorruptBlob "corrupt-blob" 34
        "A document from the registry does not have the bytes that its digest promises."
        "Try again; if it repeats, the registry or a cache before it is damaged."
    CorruptChunk "corrupt-chunk" 35
        "A piece of the image does not have the bytes that its digest promises; it was not written."
        "Try again; if it repeats, the registry or a cache before it is damaged."
    OverBudget "over-budget" 36
        "The update would fetch more bytes than its budget allows, or has done so."
        "Change `budget` under [source], or bring the release another way, as on a stick: `switchback update --to oci:FOLDER:TAG`; what is in the slot already is kept."

    // 40–49: writing and arming.
    WriteFailed "write-failed" 40
        "The disk or a file system refused a write."
        "Check the disk's health and its free space; the running slot was not touched."
    ReadBackMismatch "read-back-mismatch" 41
        "What was read back from the slot is not what was written, so it was not armed."
        "Run the update again; if it repeats, replace the disk."
    BootRecordFailed "boot-record-failed" 42
        "The boot record could not be read or written."
        "Check that the boot partition is mounted, writable and not full."
    RunningSlotUnconfirmed "running-slot-unconfirmed" 43
        "The running slot is not confirmed yet, so the other slot is the only way back and stays untouched."
        "Wait for the health checks of this trial, or run `switchback boot-check`."
    NoWayBack "no-way-back" 44
        "The other slot holds nothing that could be started."
        "Run `switchback update` to fill it."
    SlotInUse "slot-in-use" 45
        "The slot that would be written is mounted or held by another program."
        "Unmount it and try again."
    LayoutUnknown "layout-unknown" 46
        "The disk does not carry the two slots that an update needs."
        "Check `disk` under [machine], or make the layout with `switchback provision`."
    RunningSlotUnknown "running-slot-unknown" 47
        "No witness tells which slot is running, so nothing may be written."
        "Start the machine from one of its slots; the message lists what was looked at."
    RebootFailed "reboot-failed" 48
        "The machine could not be told to restart."
        "Restart it by hand, or correct `reboot` under [machine]."
    SlotDamaged "slot-damaged" 49
        "A slot does not hold any more what was signed."
        "Run `switchback update`, which writes the other slot anew; when the damaged one runs, replace the disk as well."

    // 50–59: the trial.
    HealthFailed "health-failed" 50
        "A health check failed on the trial, and the machine returned."
        "Read in `switchback history` which checks failed, and publish a corrected release."
    LoaderRefused "loader-refused" 51
        "The slot was armed, but the bootloader started the old one without using up a try."
        "Run `switchback update`, which finds a boot file that is gone; else check that the kernel fits this machine and, under Secure Boot, is signed for it."
    Panicked "panicked" 52
        "The kernel of the trial panicked."
        "Read `switchback logs`, which shows the crash record when there is one; else watch a start on the serial console."
    DiedEarly "died-early" 53
        "Every try ended before the first mark: in the firmware, the loader, the kernel or early in the initramfs."
        "Watch a start on the serial console."
    DiedInInitramfs "died-in-initramfs" 54
        "Every try ended in the initramfs, before the root was mounted."
        "Check the modules that the initramfs brings and the verity root hash on the command line."
    DiedAfterRoot "died-after-root" 55
        "Every try ended after the root was mounted and before the health checks began."
        "Check the services that start early; a hang here was ended by the watchdog."
    DiedInBootCheck "died-in-boot-check" 56
        "Every try ended while the health checks ran, without their verdict."
        "Check what the health checks start; a hang here was ended by the watchdog."
    DeadlineMissed "deadline-missed" 57
        "The trial was not confirmed by its deadline."
        "See which check was still waiting; `trial_deadline` under [boot] sets the limit."
    Inconclusive "inconclusive" 58
        "The tries were spent without a verdict and without evidence of a crash, as after power cuts."
        "Wait: it is tried again at most twice; then name it with `switchback update --to`, or publish a new release."
    EndedByOperator "ended-by-operator" 59
        "An operator ended the trial with `switchback rollback`."
        "Name it with `switchback update --to` when it is wanted after all; until then it is held, or until a newer one appears."

    // 60–69: more about the trial.
    WatchdogReset "watchdog-reset" 60
        "The watchdog reset the machine out of the trial: it hung."
        "Read `switchback logs`, check what the release does early, and publish a corrected one."

    // 70–79: the machine and the updater.
    Busy "busy" 70
        "Another switchback is at work on this machine."
        "Wait for it; `switchback status` tells what it does."
    StateUnreadable "state-unreadable" 71
        "The updater's own records could not be read or written."
        "Check the file that the message names, and the state folder; what the boot record and the slots say is enough to go on."
    ConfigInvalid "config-invalid" 72
        "The configuration has an error."
        "Correct the file, line or setting that the message names."
    Interrupted "interrupted" 73
        "The work was interrupted; everything done so far is kept."
        "Run the same command again: it continues."
    NotSupported "not-supported" 74
        "This machine, image or build of the updater cannot do that."
        "Change what the message names: the request, the machine, the image or the build."
    NotPermitted "not-permitted" 75
        "The operating system refused access."
        "Run the command as root."
    StateFull "state-full" 76
        "The state folder has no room for what an update needs."
        "Free space in the state folder, or provision a larger state partition."
    NotUpdatable "not-updatable" 77
        "Something stands in the way of updating this machine."
        "Follow the remedies that `switchback doctor` lists."
    Unknown "unknown" 78
        "A reason that only another version of the updater knows."
        "Ask the version that recorded it: `switchback history` there."
    Internal "internal" 79
        "The updater broke one of its own rules."
        "Report it with the message; the running slot was not touched."

    // 80–89: what was asked.
    Ambiguous "ambiguous" 80
        "What was named means more than one release."
        "Name one of the digests that the message lists."

    // 90–99: services.
    ServiceUnknown "service-unknown" 90
        "No service of this name is declared."
        "Name one of those that the message lists, or declare it under [service.NAME] in the configuration."
    ServiceFailed "service-failed" 91
        "A service could not be started, ended or led to."
        "Look at the message: it names the program that refused; `switchback status NAME` tells what serves."
}

/// A name of another version is no error: a machine that returned to an older updater must still understand that its
/// newer one quarantined a release, if not why.
impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Ok(Reason::ALL.iter().copied().find(|reason| reason.name() == name).unwrap_or(Reason::Unknown))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A reason with the words of this one case: which check, which file, which number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// The closed reason.
    pub reason: Reason,
    /// One sentence for people; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Why {
    /// A reason with its detail.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Why {
        Why { reason, detail: detail.into() }
    }
}

impl From<Reason> for Why {
    fn from(reason: Reason) -> Why {
        Why { reason, detail: String::new() }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() {
            write!(f, "{}", self.reason.description())
        } else {
            write!(f, "{} ({})", self.detail, self.reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_exit_code_is_unique_at_least_ten_and_not_the_usage_code() {
        let mut seen = BTreeSet::new();
        for reason in Reason::ALL {
            let code = reason.exit_code();
            assert!(code >= 10 && code != 64 && code < 126, "{reason}: {code}");
            assert!(seen.insert(code), "{reason}: {code} is used twice");
        }
        assert!(Reason::ALL.is_sorted_by_key(|reason| reason.exit_code()));
    }

    #[test]
    fn the_stored_name_is_the_shown_name_is_the_variant_in_kebab_case() {
        for reason in Reason::ALL {
            let stored = serde_json::to_string(reason).unwrap();
            assert_eq!(stored, format!("\"{reason}\""));
            assert_eq!(serde_json::from_str::<Reason>(&stored).unwrap(), *reason);
            let mut kebab = String::new();
            for letter in format!("{reason:?}").chars() {
                if letter.is_uppercase() && !kebab.is_empty() {
                    kebab.push('-');
                }
                kebab.extend(letter.to_lowercase());
            }
            assert_eq!(kebab, reason.name());
        }
    }

    #[test]
    fn every_description_and_remedy_is_one_sentence() {
        for reason in Reason::ALL {
            for text in [reason.description(), reason.remedy()] {
                assert!(text.ends_with('.') && text.len() > 10, "{reason}: {text}");
            }
        }
    }

    #[test]
    fn every_remedy_begins_with_what_to_do() {
        const TO_DO: [&str; 25] = [
            "Ask", "Build", "Change", "Check", "Correct", "Follow", "Free", "Look", "Make", "Name",
            "Publish", "Read", "Report", "Restart", "Run", "See", "Sign", "Start", "Try", "Unmount",
            "Update", "Use", "Wait", "Watch", "Wait:",
        ];
        for reason in Reason::ALL {
            let first = reason.remedy().split_whitespace().next().unwrap_or_default();
            assert!(TO_DO.contains(&first), "{reason}: {}", reason.remedy());
        }
    }

    #[test]
    fn the_page_of_reasons_lists_exactly_this_table() {
        let mut page = String::from(
            "# Reasons and exit codes\n\n\
             Every refusal, failure and return has one of these reasons: in `switchback status` and `history`, in the\n\
             state file, in JSON and as the exit code. `0` is success (unchanged included), `2` is \"changed\" under\n\
             `--detailed-exitcode`, `64` is a usage error.\n\n\
             | exit | reason | what happened | what to do |\n|---|---|---|---|\n",
        );
        for reason in Reason::ALL {
            let (code, what, next) = (reason.exit_code(), reason.description(), reason.remedy());
            page.push_str(&format!("| {code} | `{reason}` | {what} | {next} |\n"));
        }
        crate::golden::compare("reasons.md", &page);
    }
}
