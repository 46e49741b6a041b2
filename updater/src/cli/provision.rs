//! `provision`: text to a wish, the result to text.

use super::args::ProvisionArgs;
use super::render::{bytes, release};
use super::{Output, progress::Display};
use crate::engine::Failure;
use crate::engine::provision::{Wish, provision};
use crate::registry::RegistryAccess;

pub(super) fn run(args: &ProvisionArgs, progress: &Display) -> Result<Output, Failure> {
    let wish = Wish {
        target: args.target.clone(),
        size: args.size.map(|size| size.0),
        release: args.release.clone(),
        trust: args.trust.clone(),
        threshold: args.threshold,
        slot_bytes: args.slot_size.map(|size| size.0),
        esp_bytes: args.esp_size.map(|size| size.0),
        state_bytes: args.state_size.map(|size| size.0),
        sector_bytes: args.sector_size,
        loader: args.loader.clone(),
        access: RegistryAccess { plain_http: args.plain_http.clone(), ..RegistryAccess::default() },
        force: args.force,
        dry_run: args.dry_run,
    };
    let done = provision(&wish, progress)?;
    let mut text = match done.done {
        true => format!(
            "{} is in slot a of {}, read back and confirmed; slot b is empty.\n",
            release(&done.release),
            done.target.display()
        ),
        false => format!(
            "{} would be put in slot a of {}. Nothing was changed.\n",
            release(&done.release),
            done.target.display()
        ),
    };
    for (name, offset, len) in &done.partitions {
        text.push_str(&format!("  {name:<10} {:>12} from {}\n", bytes(*len), bytes(*offset)));
    }
    Ok(Output {
        text,
        json: serde_json::to_value(&done).unwrap_or_default(),
        changed: done.done,
        reason: None,
    })
}
