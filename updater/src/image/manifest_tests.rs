//! Tests of `image::manifest`: what is accepted, and each way of being refused.
