//! The crate's one integration-test binary: a module per capability, one catalogue of cases.

mod bias;
#[cfg(feature = "cuda")]
mod capture;
mod catalogue;
#[cfg(feature = "cli")]
mod cli;
mod conv;
mod covariance;
mod descriptions;
mod device;
mod division;
#[cfg(all(feature = "cuda", feature = "simulator"))]
mod faults;
mod filter;
mod fold;
mod geometry;
#[cfg(feature = "io")]
mod io;
#[cfg(feature = "io")]
mod kfac;
mod matrix;
#[cfg(feature = "cuda")]
mod nvrtc;
mod operator;
mod oracle;
mod per_example;
mod plans;
#[cfg(all(feature = "simulator", unix))]
mod profile;
#[path = "../../benches/shapes/mod.rs"]
mod shapes;
mod sparse;
#[cfg(feature = "io")]
mod spectrum;
mod tensor;
mod unfold;
