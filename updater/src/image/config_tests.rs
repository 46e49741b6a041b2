//! Tests of `image::config`: what is accepted, and each way of being refused.
