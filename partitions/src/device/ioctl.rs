//! The kernel calls that have no safe wrapper elsewhere, one safe function each.
//!
//! Not here: what they are used for. Rule: every pointer handed to the kernel comes from a live Rust value whose size is
//! the one the call is defined for (`linux/fs.h`, `linux/dm-ioctl.h`, `linux/watchdog.h`).
#![expect(
    unsafe_code,
    reason = "ioctl takes raw pointers; this file is the one exception to the workspace lint"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod raw {
    use nix::libc::{c_int, c_ulong};

    // BLKGETSIZE64 carries size_t in its number but writes 64 bits: on 32-bit ARM `u64` here would give a wrong number.
    nix::ioctl_read_bad!(blkgetsize64, nix::request_code_read!(0x12, 114, size_of::<usize>()), u64);
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), c_int);
    nix::ioctl_write_ptr_bad!(blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_write_ptr_bad!(blkzeroout, nix::request_code_none!(0x12, 127), [u64; 2]);
    nix::ioctl_none_bad!(blkflsbuf, nix::request_code_none!(0x12, 97));
    nix::ioctl_none_bad!(blkrrpart, nix::request_code_none!(0x12, 95));

    nix::ioctl_readwrite!(wdioc_settimeout, b'W', 6, c_int);
    nix::ioctl_read!(wdioc_gettimeout, b'W', 7, c_int);
    nix::ioctl_read!(wdioc_getbootstatus, b'W', 2, c_int);
    nix::ioctl_read!(wdioc_keepalive, b'W', 5, c_int);

    /// `_IOWR(0xfd, nr, struct dm_ioctl)`; the size in the number is that of the header, whatever follows it.
    pub fn dm_request(nr: u8) -> c_ulong {
        nix::request_code_readwrite!(0xfd, nr, super::DM_HEADER_BYTES) as c_ulong
    }
}

/// Size of `struct dm_ioctl`.
pub(super) const DM_HEADER_BYTES: usize = 312;

/// Size of a block device in bytes.
pub(super) fn block_device_bytes(file: &File) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64 through the pointer, which points at a live u64.
    unsafe { raw::blkgetsize64(file.as_raw_fd(), &mut bytes) }?;
    Ok(bytes)
}

/// Logical sector size of a block device in bytes.
pub(super) fn block_device_sector_bytes(file: &File) -> io::Result<u32> {
    let mut bytes = 0;
    // SAFETY: BLKSSZGET writes one int through the pointer, which points at a live c_int.
    unsafe { raw::blksszget(file.as_raw_fd(), &mut bytes) }?;
    u32::try_from(bytes).map_err(io::Error::other)
}

/// Makes a sector-aligned range of a block device read as zero.
pub(super) fn zero_out(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: BLKZEROOUT reads two u64 (start, length) through the pointer, which points at a live [u64; 2].
    unsafe { raw::blkzeroout(file.as_raw_fd(), &range) }?;
    Ok(())
}

/// Discards a sector-aligned range of a block device.
pub(super) fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two u64 (start, length) through the pointer, which points at a live [u64; 2].
    unsafe { raw::blkdiscard(file.as_raw_fd(), &range) }?;
    Ok(())
}

/// Writes back and forgets what the kernel caches of a block device. Needs `CAP_SYS_ADMIN`.
pub(super) fn flush_buffers(file: &File) -> io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument.
    unsafe { raw::blkflsbuf(file.as_raw_fd()) }?;
    Ok(())
}

/// Makes the kernel read the partition table again. `EBUSY` when a partition is in use.
pub(super) fn reread_partitions(file: &File) -> io::Result<()> {
    // SAFETY: BLKRRPART takes no argument.
    unsafe { raw::blkrrpart(file.as_raw_fd()) }?;
    Ok(())
}

/// Sets a watchdog's timeout in seconds; returns the one the driver chose.
pub(super) fn watchdog_set_timeout(file: &File, seconds: i32) -> io::Result<i32> {
    let mut seconds = seconds;
    // SAFETY: WDIOC_SETTIMEOUT reads and writes one int through the pointer, which points at a live c_int.
    unsafe { raw::wdioc_settimeout(file.as_raw_fd(), &mut seconds) }?;
    Ok(seconds)
}

/// A watchdog's timeout in seconds.
pub(super) fn watchdog_timeout(file: &File) -> io::Result<i32> {
    let mut seconds = 0;
    // SAFETY: WDIOC_GETTIMEOUT writes one int through the pointer, which points at a live c_int.
    unsafe { raw::wdioc_gettimeout(file.as_raw_fd(), &mut seconds) }?;
    Ok(seconds)
}

/// A watchdog's flags at the last boot (`WDIOF_*`).
pub(super) fn watchdog_boot_status(file: &File) -> io::Result<i32> {
    let mut flags = 0;
    // SAFETY: WDIOC_GETBOOTSTATUS writes one int through the pointer, which points at a live c_int.
    unsafe { raw::wdioc_getbootstatus(file.as_raw_fd(), &mut flags) }?;
    Ok(flags)
}

/// Starts a watchdog's countdown again.
pub(super) fn watchdog_keepalive(file: &File) -> io::Result<()> {
    let mut unused = 0;
    // SAFETY: WDIOC_KEEPALIVE is declared with an int and does not touch it; the pointer is live either way.
    unsafe { raw::wdioc_keepalive(file.as_raw_fd(), &mut unused) }?;
    Ok(())
}

/// One device-mapper call. `message` is a `struct dm_ioctl` followed by its payload.
pub(super) fn device_mapper(control: &File, nr: u8, message: &mut [u8]) -> io::Result<()> {
    assert!(message.len() >= DM_HEADER_BYTES);
    // The kernel believes the `data_size` field (bytes 12..16) about how much it may read and write.
    let claimed = u32::from_ne_bytes([message[12], message[13], message[14], message[15]]);
    assert_eq!(claimed as usize, message.len());
    // SAFETY: the kernel reads and writes at most `data_size` bytes through the pointer; the assertions above hold it
    // to the length of the live, exclusively borrowed buffer. Alignment does not matter: the kernel copies bytes.
    let answer =
        unsafe { nix::libc::ioctl(control.as_raw_fd(), raw::dm_request(nr) as _, message.as_mut_ptr()) };
    nix::errno::Errno::result(answer)?;
    Ok(())
}
