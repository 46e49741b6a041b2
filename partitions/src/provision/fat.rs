//! The EFI system partition's FAT32, by the `fatfs` crate.
//!
//! Not here: its files. Rule: the number of clusters alone makes FAT what it is (Microsoft's FAT specification 1.03, "FAT
//! Type Determination"); below 65,525 some firmware reads FAT16 whatever the header says, so such a size is refused.

use std::io;

use fatfs::{FatType, FormatVolumeOptions, FsOptions};
use uuid::Uuid;

use crate::device::{BlockDevice, DeviceStream};

const CLUSTERS_MIN: u64 = 65_525;
/// `fatfs` and 28 bits of a FAT32 entry.
const CLUSTERS_MAX: u64 = 0x0FFF_FFF4;
/// Larger clusters gain nothing: boot files are few and large, and the table is small already.
const CLUSTER_BYTES_MAX: u32 = 4096;
/// Reserved sectors before the tables: no formatter uses more.
const RESERVED_SECTORS: u64 = 32;
const LABEL: [u8; 11] = *b"ESP        ";

/// Says why an ESP of `bytes` is no good, if it is not.
pub(super) fn check_size(bytes: u64, sector_bytes: u32) -> Result<(), String> {
    cluster_bytes(bytes, sector_bytes).map(|_| ())
}

/// Makes an empty FAT32 labelled `ESP`. What `esp` held is lost.
pub(super) fn format(esp: &dyn BlockDevice) -> io::Result<()> {
    let sector_bytes = esp.sector_bytes();
    let cluster_bytes = cluster_bytes(esp.len(), sector_bytes).map_err(io::Error::other)?;
    let (volume_id, ..) = Uuid::new_v4().as_fields();
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_sector(u16::try_from(sector_bytes).map_err(io::Error::other)?)
        .bytes_per_cluster(cluster_bytes)
        .volume_id(volume_id)
        .volume_label(LABEL);
    fatfs::format_volume(DeviceStream::new(esp), options)?;
    // Counts the free clusters into the FSInfo sector: the formatter leaves them unknown, and a checker says so.
    let filesystem = fatfs::FileSystem::new(DeviceStream::new(esp), FsOptions::new())?;
    filesystem.stats()?;
    filesystem.unmount()
}

/// The largest cluster size that leaves enough clusters.
fn cluster_bytes(bytes: u64, sector_bytes: u32) -> Result<u32, String> {
    let mut size = CLUSTER_BYTES_MAX;
    while size >= sector_bytes {
        if clusters(bytes, sector_bytes, size) >= CLUSTERS_MIN {
            let too_many = clusters(bytes, sector_bytes, size) > CLUSTERS_MAX;
            let too_long = bytes / u64::from(sector_bytes) > u64::from(u32::MAX);
            return if too_many || too_long { Err("too large for FAT32".to_owned()) } else { Ok(size) };
        }
        size /= 2;
    }
    let needed = if sector_bytes == 4096 { "260 MiB with 4096-byte sectors" } else { "34 MiB" };
    Err(format!("too small for FAT32, which needs {CLUSTERS_MIN} clusters: at least {needed}"))
}

/// A lower bound of the clusters that fit.
fn clusters(bytes: u64, sector_bytes: u32, cluster_bytes: u32) -> u64 {
    let sectors = bytes / u64::from(sector_bytes);
    let sectors_per_cluster = u64::from(cluster_bytes / sector_bytes);
    // Two tables of four bytes per cluster; sized for more clusters than there can be.
    let table_sectors = ((sectors / sectors_per_cluster + 2) * 4).div_ceil(u64::from(sector_bytes));
    sectors.saturating_sub(RESERVED_SECTORS + 2 * table_sectors) / sectors_per_cluster
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemDevice;

    const MIB: u64 = 1 << 20;

    #[test]
    fn sizes_below_the_smallest_fat32_are_refused() {
        let cases = [
            (32 * MIB, 512, None),
            (34 * MIB, 512, Some(512)),
            (96 * MIB, 512, Some(1024)),
            (128 * MIB, 512, Some(1024)),
            (512 * MIB, 512, Some(4096)),
            (8192 * MIB, 512, Some(4096)),
            (256 * MIB, 4096, None),
            (260 * MIB, 4096, Some(4096)),
            (0, 512, None),
            (u64::MAX / 2, 512, None),
        ];
        for (bytes, sector_bytes, expected) in cases {
            assert_eq!(
                cluster_bytes(bytes, sector_bytes).ok(),
                expected,
                "{bytes} bytes, sectors of {sector_bytes}"
            );
        }
    }

    #[test]
    fn the_formatted_volume_has_at_least_as_many_clusters_as_were_counted_on() {
        for (mib, sector_bytes) in [(34, 512), (66, 512), (96, 512), (260, 4096)] {
            let device = MemDevice::new((mib * MIB) as usize, sector_bytes);
            format(&device).unwrap();
            let filesystem = fatfs::FileSystem::new(DeviceStream::new(&device), FsOptions::new()).unwrap();
            assert_eq!(filesystem.fat_type(), FatType::Fat32);
            let found = u64::from(filesystem.stats().unwrap().total_clusters());
            let cluster = cluster_bytes(mib * MIB, sector_bytes).unwrap();
            assert!(
                found >= clusters(mib * MIB, sector_bytes, cluster) && found >= CLUSTERS_MIN,
                "{mib} MiB: {found}"
            );
            assert_eq!(filesystem.volume_label(), "ESP");
        }
    }
}
