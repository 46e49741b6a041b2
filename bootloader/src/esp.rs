//! Files on the EFI system partition.
