//! The package: what pyproject.toml promises, and a wheel where one was built. `FORKMASTER_TEST_WHEEL=dist/..whl` names it:
//! building one takes minutes, so the tests do not.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::machine::Machine;
use crate::harness::master::run;

#[test]
fn the_version_is_cargos_and_stands_in_one_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pyproject = fs::read_to_string(root.join("pyproject.toml")).expect("it is there");
    assert!(pyproject.contains("dynamic = [\"version\"]"), "{pyproject}");
    assert!(!pyproject.lines().any(|line| line.starts_with("version")), "{pyproject}");
    let version = run(Path::new("/"), &["--version"]).stdout;
    assert_eq!(version.trim(), concat!("forkmaster ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wheel_holds_what_its_name_promises() {
    let Some(wheel) = std::env::var_os("FORKMASTER_TEST_WHEEL") else {
        println!("no wheel was named: packaging/build-wheel makes one");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(root.join("packaging/check-wheel"));
    command.arg(wheel).args(Machine::get().each_minor().iter().map(|python| &python.executable));
    let output = command.current_dir(root).output().expect("it can be started");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}
