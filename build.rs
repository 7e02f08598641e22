//! Builds the worker library and tells the master where it is, so that `cargo build`, `cargo test` and
//! `cargo install` all make the one file to deploy. A build of its own, since cargo cannot yet embed another
//! package's cdylib (artifact dependencies are unstable), in a target directory of its own, since the outer
//! cargo holds the lock of the outer one.
//!
//! `FORKMASTER_WORKER_LIB=/path/to/lib_forkmaster.so` takes a library that was built before.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    // epoll, pidfd, memfd and subreapers have no counterpart elsewhere.
    let system = set_by_cargo("CARGO_CFG_TARGET_OS");
    if system != "linux" {
        eprintln!(
            "forkmaster runs on Linux only, and this build is for {system}; use a container or a virtual machine"
        );
        std::process::exit(1);
    }
    // What the library is made of. Without this list a change in it would leave a stale one embedded.
    for source in ["src/worker", "src/wire", "src/http", "Cargo.toml", "Cargo.lock", "build.rs"] {
        println!("cargo:rerun-if-changed={source}");
    }
    println!("cargo:rerun-if-env-changed=FORKMASTER_WORKER_LIB");
    let library = match env::var_os("FORKMASTER_WORKER_LIB") {
        Some(path) => {
            println!("cargo:rerun-if-changed={}", Path::new(&path).display());
            PathBuf::from(path)
        }
        None => build(),
    };
    match library.canonicalize() {
        Ok(library) => println!("cargo:rustc-env=EMBEDDED_WORKER_LIBRARY={}", library.display()),
        Err(error) => panic!("the worker library {} cannot be read: {error}", library.display()),
    }
}

fn build() -> PathBuf {
    let root = PathBuf::from(set_by_cargo("CARGO_MANIFEST_DIR"));
    let target = set_by_cargo("TARGET");
    // OUT_DIR is TARGET/PROFILE/build/PACKAGE-HASH/out, and the hash differs between `cargo test` and `cargo clippy`:
    // beside `build` one library serves both.
    let out = PathBuf::from(set_by_cargo("OUT_DIR"));
    let directory = out.ancestors().nth(3).unwrap_or(&out).join("worker-library");
    // PROFILE is `debug` or `release` also for custom profiles: it names the one they inherit from.
    let (profile, profile_directory) = match set_by_cargo("PROFILE").as_str() {
        "release" => ("embedded", "embedded"),
        _debug => ("dev", "debug"),
    };
    let mut cargo = Command::new(set_by_cargo("CARGO"));
    cargo
        .args(["build", "--lib", "--manifest-path"])
        .arg(root.join("src/worker/Cargo.toml"))
        .args(["--profile", profile, "--target", &target])
        .arg("--target-dir")
        .arg(&directory);
    if root.join("Cargo.lock").exists() {
        cargo.arg("--locked");
    }
    // The one library serves every CPython from 3.9 on; whatever Python is on this machine says nothing.
    cargo.env("PYO3_NO_PYTHON", "1");
    // musl's Rust links the C library into everything, but the library is loaded into a Python that has one.
    if target.contains("musl") {
        let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
        let separator = if flags.is_empty() { "" } else { "\u{1f}" };
        cargo.env("CARGO_ENCODED_RUSTFLAGS", format!("{flags}{separator}-Ctarget-feature=-crt-static"));
    }
    // `cargo clippy` sets its driver as the compiler of the workspace's packages.
    for variable in ["RUSTC_WORKSPACE_WRAPPER", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"] {
        cargo.env_remove(variable);
    }
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("building the worker library failed: {status}"),
        Err(error) => panic!("building the worker library failed: {error}"),
    }
    directory.join(target).join(profile_directory).join("lib_forkmaster.so")
}

fn set_by_cargo(variable: &str) -> String {
    env::var(variable).unwrap_or_else(|_| panic!("cargo sets {variable} for build scripts"))
}
