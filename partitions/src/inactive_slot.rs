//! The only type that can write an image.
