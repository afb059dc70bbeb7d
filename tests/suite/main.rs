//! The crate's one integration-test binary: a module per capability, one catalogue of cases.

mod catalogue;
mod fold;
mod oracle;
mod unfold;
