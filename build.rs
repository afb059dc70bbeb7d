//! Embeds the kernel sources, so that the library carries them and needs no CUDA toolkit to build.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(gpu)");
    let feature = |name: &str| env::var_os(format!("CARGO_FEATURE_{name}")).is_some();
    if feature("CUDA") || feature("SIMULATOR") {
        println!("cargo::rustc-cfg=gpu");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");

    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let mut files = Vec::new();
    collect(&root.join("kernels"), &mut files);
    files.sort();
    // The hash only has to differ when a source differs; it is no protection against malice.
    let mut hasher = DefaultHasher::new();
    let mut code = String::from("pub(crate) const FILES: &[(&str, &str)] = &[\n");
    for path in &files {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a plain file name");
        let text = fs::read_to_string(path).expect("kernel sources are UTF-8");
        (name, &text).hash(&mut hasher);
        let path = path.to_str().expect("a UTF-8 path");
        writeln!(code, "    ({name:?}, include_str!({path:?})),").expect("strings take writes");
    }
    writeln!(code, "];\npub(crate) const HASH: u64 = {:#018x};", hasher.finish())
        .expect("strings take writes");
    fs::write(out.join("kernels.rs"), code).expect("OUT_DIR is writable");
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("kernels/ is part of the crate").flatten() {
        let path = entry.path();
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}
