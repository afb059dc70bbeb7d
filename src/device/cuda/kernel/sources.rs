//! The sources in `kernels/`, embedded by build.rs.

include!(concat!(env!("OUT_DIR"), "/sources.rs"));
