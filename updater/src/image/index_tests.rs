//! Tests of `image::index`: what is accepted, and each way of being refused.


