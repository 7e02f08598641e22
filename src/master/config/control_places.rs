//! Where the control socket of a service may be, by its name: the list that `[control] socket = "auto"` stands for.
//! The master takes the first that works, and a client tries them all. It only names places and touches none.
//!
//! An abstract name is never among them: whoever comes first may take it, and anybody may knock.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::address::SUN_PATH_BYTES_MAX;
use super::process_context::ProcessContext;
use super::settings::ControlPlace;

pub fn places(name: &str, context: &ProcessContext) -> Vec<ControlPlace> {
    let variable = |name: &str| context.environment.get(OsStr::new(name));
    let (uid, mounts) = (context.uid, context.mount_namespace);
    // systemd.exec(5): with several RuntimeDirectory= the variable is a colon-separated list.
    let runtime = variable("RUNTIME_DIRECTORY").and_then(|list| std::env::split_paths(list).next());
    let session = variable("XDG_RUNTIME_DIR").map(|directory| Path::new(directory).join("forkmaster"));
    let directories = [
        // The service manager makes it.
        (runtime, None),
        (Some(PathBuf::from("/run/forkmaster")), Some(0o755)),
        (session, Some(0o700)),
        (Some(format!("/tmp/forkmaster-{uid}").into()), Some(0o700)),
    ];
    let named = directories.into_iter().filter_map(|(directory, mode)| Some((directory?, mode)));
    let named = named.map(|(directory, directory_mode)| ControlPlace {
        path: directory.join(format!("{name}.sock")),
        directory_mode,
    });
    // With a read-only root there may be nothing else that can be written to. The containers of a pod share this
    // directory, so the name says in which of them the master is.
    let shared_memory = ControlPlace {
        path: format!("/dev/shm/forkmaster-{uid}/{name}-{mounts}.sock").into(),
        directory_mode: Some(0o700),
    };
    let mut places: Vec<ControlPlace> = Vec::new();
    for place in named.chain([shared_memory]) {
        let is_new = places.iter().all(|other| other.path != place.path);
        if is_new && place.path.is_absolute() && place.path.as_os_str().len() <= SUN_PATH_BYTES_MAX {
            places.push(place);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(environment: &[(&str, &str)], name: &str) -> Vec<String> {
        let environment = environment.iter().map(|(key, value)| (key.into(), value.into())).collect();
        let cwd = "/".into();
        let context =
            ProcessContext { environment, cwd, executable: None, uid: 1000, gid: 0, cpus: 1, mount_namespace: 4026 };
        places(name, &context).into_iter().map(|place| place.path.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn the_usual_places_in_their_order() {
        let always =
            ["/run/forkmaster/shop.sock", "/tmp/forkmaster-1000/shop.sock", "/dev/shm/forkmaster-1000/shop-4026.sock"];
        assert_eq!(paths(&[], "shop"), always);
        let all = [&["/run/shop/shop.sock", always[0], "/run/user/7/forkmaster/shop.sock"][..], &always[1..]].concat();
        let variables = [("RUNTIME_DIRECTORY", "/run/shop:/run/other"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        assert_eq!(paths(&variables, "shop"), all);
    }

    #[test]
    fn what_cannot_be_bound_is_left_out() {
        let relative = [("RUNTIME_DIRECTORY", "run"), ("XDG_RUNTIME_DIR", "")];
        assert_eq!(paths(&relative, "shop").len(), 3);
        assert_eq!(paths(&[("RUNTIME_DIRECTORY", "/run/forkmaster")], "shop").len(), 3);
        let long = "x".repeat(SUN_PATH_BYTES_MAX - "/run/forkmaster/.sock".len());
        assert_eq!(paths(&[], &long), [format!("/run/forkmaster/{long}.sock")]);
    }
}
