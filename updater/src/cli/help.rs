//! What stands below the options of each verb: what it changes, what it leaves alone, what to do next, an example.
//!
//! Not here: the grammar (`args`). Rule: every text says `Changes`, and `Next` or `Example`; who changes something also
//! says what it leaves alone. `tests/documents.rs` holds the real help to this.

pub(super) const SWITCHBACK: &str = "\
Changes nothing by itself; each verb says what it changes: switchback help VERB

Exit codes: 0 done or nothing to do; 2 changed (only with --detailed-exitcode); 64 usage; 10 and above by reason (see \
the book, \"Reasons\").

Next: switchback status";

pub(super) const STATUS: &str = "\
Changes nothing.
Next: `switchback check` asks for a newer release; `switchback history` tells what happened.

Examples:
  switchback status --json
  switchback status dns";

pub(super) const CHECK: &str = "\
Changes nothing.
Next: `switchback update --dry-run` tells what a move would cost, `switchback update` moves.

Examples:
  switchback check
  switchback check --to 1.2";

pub(super) const UPDATE: &str = "\
Changes: the slot that does not run, and its boot entry; of a service, the slot that does not serve, and which one does.
Leaves alone: the running slot, its boot files and its entry are never written; a service that is updated does not stop \
answering, and no other one notices.
Next: reboot, but not for a service: its new slot is started beside the old one, probed, led to, watched, and left again \
when it is not well. A bad release comes back by itself: after the reboot `switchback boot-check` confirms or returns. Ctrl-C \
leaves everything resumable: run the same command again.

Examples:
  switchback update --dry-run
  switchback update --reboot
  switchback update --to 1.2
  switchback update dns";

pub(super) const ROLLBACK: &str = "\
Changes: the boot entry of the other slot; of a service, which slot serves. Before the reboot of an update it takes the armed slot back; in a trial that \
is not judged yet it ends the trial.
Leaves alone: what lies in both slots; nothing is fetched.
Next: reboot. The release that is left is held: unattended updates do not move to it again until `switchback update --to` \
names it or a newer release appears.

Examples:
  switchback rollback --dry-run
  switchback rollback --reboot
  switchback rollback dns";

pub(super) const DAEMON: &str = "\
Changes: which services run, and where their clients are led: to what the last order said. What ends is started again, \
after a pause that doubles each time. Where [schedule] is configured, the slot that does not run, as `switchback update` \
would, and which one is started next: when the schedule allows it.
Leaves alone: without [schedule] the OS, its slots and its boot record; images and records of services.
Next: `switchback status` tells what serves, and what an update waits for. Ended, it leaves the services running; started \
again, it goes on where it was.

Example:
  switchback daemon";

pub(super) const HISTORY: &str = "\
Changes nothing.
Next: `switchback logs VERSION` shows what is kept of a trial that failed, `switchback logs --service NAME` what a service wrote.

Examples:
  switchback history -n 5
  switchback history dns";

pub(super) const LOGS: &str = "\
Changes nothing.
Next: publish a corrected release; the one that failed stays quarantined until `switchback quarantine release`.

Examples:
  switchback logs 1.2
  switchback logs --service dns";

pub(super) const QUARANTINE: &str = "\
Changes nothing by itself: `list` only looks, `release` changes the records.
Next: `switchback quarantine list`";

pub(super) const QUARANTINE_LIST: &str = "\
Changes nothing.
Next: `switchback logs VERSION` tells why one failed, `switchback quarantine release VERSION` lets it be tried again.

Examples:
  switchback quarantine list
  switchback quarantine list dns";

pub(super) const QUARANTINE_RELEASE: &str = "\
Changes: the updater's records; the history keeps who was released and when.
Leaves alone: both slots and the boot record. What is not on the list need not be taken off: that is no error.
Next: `switchback update` may take the release again.

Examples:
  switchback quarantine release 1.2
  switchback quarantine release dns sha256:0123456789ab";

pub(super) const VERIFY: &str = "\
Changes nothing. An empty slot is no fault; a damaged one is exit code 49, and 70 says that an update wrote meanwhile.
Next: the other slot is written anew by the next `switchback update`; a damaged running slot calls for a new disk. \
`switchback-verify.timer` does this once a week where it is enabled.

Examples:
  switchback verify
  switchback verify b";

pub(super) const APPLY: &str = "\
The file:
  release = \"1.2\"     # a tag, a digest (@sha256:…) or a whole reference, as for `update --to`
  reboot = true       # restart into the trial; without it the next reboot is the trial
  [service]
  dns = \"2\"           # the same for a service; what its image is called otherwise stands under [service.dns]

Changes: what `switchback update` changes. What is there already is not done again: a second run says that nothing \
changed. With --detailed-exitcode 2 means changed.
Leaves alone: the running slot, its boot files and its entry.
Next: reboot, where the file does not say so.

Example:
  switchback --detailed-exitcode apply desired.toml";

pub(super) const HEALTH: &str = "\
Changes nothing. Exit code 50 when a check fails; all failures are listed.
Next: `switchback boot-check` is what confirms a trial.

Example:
  switchback health --json";

pub(super) const BOOT_CHECK: &str = "\
Changes: the boot entry of the running slot (confirmed, or marked bad) and the updater's records; restarts the machine \
when it returns. On a confirmed slot there is nothing to do.
Leaves alone: what lies in both slots.
Next: `switchback history` tells the verdict; what a start script calls it with stands in the book, \"Integrate\".

Example:
  switchback boot-check --no-reboot";

pub(super) const DOCTOR: &str = "\
Changes nothing: nothing is written, mounted or locked. Works on any machine, also on one that was never made for \
Switchback. Each finding has a name, a result (ok, note, warning, problem) and what to do. Exit code 0 when there is no \
problem, 77 otherwise.
Next: do what stands behind `->`.

Examples:
  switchback doctor
  switchback doctor --offline --json";

pub(super) const PROVISION: &str = "\
Changes: all of the target. Every size is checked before the first byte is written; slot A is filled and confirmed, slot \
B is empty.
Leaves alone: a disk that holds a partition table, unless --force is said; every other disk.
Next: start the machine from the disk; `switchback status` tells what runs.

Example:
  switchback provision disk.img --size 2G --release oci:./images:1.0 --trust os.pub";

#[cfg(feature = "author")]
pub(super) const IMAGE: &str = "\
Changes nothing on this machine's slots: these verbs write to folders and registries.
Next: `build`, `sign`, `push`, in this order; `keygen` once before.";

#[cfg(feature = "author")]
pub(super) const IMAGE_BUILD: &str = "\
Changes: the OCI layout folder of --output.
Leaves alone: its sources; releases under other tags. Where building fails, no tag is moved.
Next: `switchback image sign`, then `switchback image push`.

Examples:
  switchback image build --root ./root --kernel vmlinuz --modules-dir lib/modules/6.1 --product example --name example-os --version 1.1 --output oci:./images:1.1
  switchback image build --partition root=root.img --uki os.efi --product example --name example-os --version 1.1 --output oci:./images:1.1
  switchback image build --from-container registry.example.com/team/os-root:1.1 --init-binary ./switchback-static --product example --output oci:./images
  switchback image build --root ./root --kernel vmlinuz --product example --name example-os --version 1.2 --like oci:./images:1.1 --output oci:./images";

#[cfg(feature = "author")]
pub(super) const IMAGE_BIND: &str = "\
Changes: the folder that --output names: all images come into it, and one index that names them by digest.
Leaves alone: the images where they are. Their own signatures do not count in a release: its own covers them all.
Next: `switchback image sign`, then `switchback image push --with-signatures`.

Example:
  switchback image bind --version 2.0 --os oci:./images:1.1 --service dns=registry.example.com/system/dnsmasq:2 \\
    --output oci:./releases";

#[cfg(feature = "author")]
pub(super) const IMAGE_PUSH: &str = "\
Changes: the destination; its tags move when everything is there, the patches of --patch-from too.
Leaves alone: the source. What is at the destination already is not sent.
Next: `switchback check` on a machine that follows the tag; `switchback image diff` shows what an update costs.

Examples:
  switchback image push oci:./images:1.1 registry.example.com/team/os --tag stable --with-signatures
  switchback image push oci:./images:1.2 registry.example.com/team/os --with-signatures --patch-from oci:./images:1.1";

#[cfg(feature = "author")]
pub(super) const IMAGE_SIGN: &str = "\
Changes: a signature is added where the release lies.
Leaves alone: the release, its tags and other signatures.
Next: `switchback image push --with-signatures`, if it lies in a folder.

Example:
  switchback image sign oci:./images:1.1 --key os.key";

#[cfg(feature = "author")]
pub(super) const IMAGE_INSPECT: &str = "\
Changes nothing. Signatures are listed, not verified: that is the machine's part.

Example:
  switchback image inspect registry.example.com/team/os:stable";

#[cfg(feature = "author")]
pub(super) const IMAGE_DIFF: &str = "\
Changes nothing. Documents, indexes and the patch's header are read, no chunk. The numbers are for a machine with the first \
release in its running slot and another one, or none, in the slot that is written.
Next: `switchback image push --patch-from` makes the patch, where there is none.

Example:
  switchback image diff oci:./images:1.1 oci:./images:1.2";

#[cfg(feature = "author")]
pub(super) const IMAGE_KEYGEN: &str = "\
Changes: two new files, PREFIX.key and PREFIX.pub.
Leaves alone: a key that is there already is never overwritten.
Next: keep PREFIX.key off every device; PREFIX.pub goes into the image and to `switchback provision --trust`.

Example:
  switchback image keygen os";

pub(super) const COMPLETIONS: &str = "\
Changes nothing: the script goes to standard output.

Examples:
  switchback completions bash >/etc/bash_completion.d/switchback
  switchback completions zsh >/usr/local/share/zsh/site-functions/_switchback
  switchback completions fish >~/.config/fish/completions/switchback.fish";

pub(super) const MAN: &str = "\
Changes: the pages in the folder of --output; without it nothing.
Leaves alone: every other file of that folder, and pages that are there already.

Examples:
  switchback man | man -l -
  switchback man --output /usr/local/share/man/man1";
