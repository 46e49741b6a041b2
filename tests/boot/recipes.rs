//! The recipes of the book, booted.
//!
//! Rule: the recipe is the text in the book, cooked by the tool that the book names; only the files that it calls "of your
//! own" are the lab's, so that the machine can be asked.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use switchback_tests::lab::release::{self, Kernel, Loader, PRODUCT, Recipe, Temper};
use switchback_tests::lab::{containers, tools};

use crate::scene::Scene;
use crate::witness;

const PAGE: &str = "docs/src/recipes.md";

/// Large and not needed: the lab's slots have 64 MiB.
const NOT_ON_THIS_MACHINE: [&str; 12] = [
    "drivers/comedi",
    "drivers/hid",
    "drivers/infiniband",
    "drivers/net/ethernet",
    "drivers/target",
    "fs/btrfs",
    "fs/ceph",
    "fs/nfs",
    "fs/smb",
    "fs/xfs",
    "net/netfilter",
    "net/sunrpc",
];

/// A machine updates to what a Containerfile describes, confirms it, and can go on from there.
pub fn container(scene: &mut Scene) -> Result<()> {
    scene.power_on_with(&Recipe::new("1.0", Temper::Good), Loader::V252, false)?;
    scene.expect_settled("1.0")?;
    let recipe = Recipe::new("1.1", Temper::Good);
    let layout = cook(scene, &recipe)?;
    scene.publish_layout(&layout, recipe.version)?;
    let running = scene.update("")?;
    ensure!(running == "1.1", "the machine came up with {running}\n{}", scene.explain());
    scene.expect_settled("1.1")?;
    // What only the container's root has: the image's kernel is not in it a second time, its modules are.
    let said = scene.run("uname -r; ls /usr/lib/modules/$(uname -r)")?.ok()?;
    ensure!(said.contains("modules.dep") && !said.contains("vmlinuz"), "its modules are:\n{said}");
    scene.publish(&Recipe::new("1.2", Temper::Good))?;
    let running = scene.update("")?;
    ensure!(running == "1.2", "the machine came up with {running}\n{}", scene.explain());
    witness::table_and_esp_are_sound(scene.power_off()?)
}

/// Builds the book's container with the lab's files as those of one's own, and a release of it.
fn cook(scene: &Scene, recipe: &Recipe) -> Result<std::path::PathBuf> {
    let folder = scene.folder().join("kitchen");
    let context = folder.join("context");
    fs::create_dir_all(&context)?;
    let (kernel, modules) = Kernel::V6_1.files()?;
    let version = modules.file_name().context("a folder of modules has a name")?;
    let version = version.to_str().context("a kernel's version is text")?;
    fs::write(context.join("Containerfile"), containerfile()?)?;
    fs::copy(tools::program("busybox", "busybox-static")?, context.join("busybox"))?;
    fs::copy(tools::device_binary()?, context.join("switchback"))?;
    fs::copy(scene.lab().key(), context.join("os.pub"))?;
    fs::copy(kernel, context.join("vmlinuz"))?;
    let copy = context.join("lib/modules").join(version);
    fs::create_dir_all(context.join("lib/modules"))?;
    tools::run(Command::new("cp").arg("-r").arg(&modules).arg(&copy))?;
    for driver in NOT_ON_THIS_MACHINE {
        fs::remove_dir_all(copy.join("kernel").join(driver))
            .with_context(|| format!("while removing {driver}"))?;
    }
    tools::run(Command::new(tools::program("depmod", "kmod")?).arg("-b").arg(&context).arg(version))?;
    fs::rename(context.join("lib/modules"), context.join("modules"))?;
    release::write_root(&context.join("root"), recipe, &scene.lab().key())?;

    let mut bud = containers::buildah(&folder)?;
    bud.args(["bud", "--tag", "recipe-os", "--build-arg", &format!("KERNEL={version}")]).arg(&context);
    tools::run(bud.env("HOME", &folder))?;
    let mut push = containers::buildah(&folder)?;
    push.args([
        "push",
        "recipe-os",
        &format!("oci:{}:{}", folder.join("container").display(), recipe.version),
    ]);
    tools::run(push.env("HOME", &folder))?;

    let layout = folder.join("release");
    let mut build = Command::new(tools::switchback()?);
    build.args(["image", "build", "--product", PRODUCT, "--version", recipe.version, "--level", "3"]);
    build.arg("--from-container").arg(format!("oci:{}", folder.join("container").display()));
    build.arg("--init-binary").arg(tools::device_binary()?).args(["--module", "virtio_net"]);
    build.args(["--cmdline", "console=ttyS0 quiet panic=-1 switchback.deadline=60"]);
    tools::run(build.arg("--output").arg(format!("oci:{}", layout.display())))?;
    Ok(layout)
}

/// The text that the book says to put into the Containerfile.
fn containerfile() -> Result<String> {
    let page = fs::read_to_string(tools::repository().join(PAGE))?;
    let text =
        page.split_once("cat >Containerfile <<'END'\n").and_then(|(_, rest)| rest.split_once("\nEND\n"));
    Ok(text.with_context(|| format!("{PAGE} has no Containerfile"))?.0.to_owned() + "\n")
}
