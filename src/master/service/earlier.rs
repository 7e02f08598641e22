//! What has served: the pinned directories and the settings of the latest generations, so that one of them can be made
//! again. Pure: whether the directories are still there is found out by a chore.

use std::collections::VecDeque;

use forkmaster_wire::message::GenerationId;

use crate::config::again::{in_place, Barred};
use crate::config::problem::Problem;
use crate::config::{Effective, Loaded};

/// Generations that are remembered. Whoever keeps releases seldom keeps more.
const KEPT_MAX: usize = 10;

#[derive(Default)]
pub struct Earlier {
    /// Oldest first. The last one serves.
    served: VecDeque<Served>,
    barred: Option<Barred>,
}

#[derive(Clone)]
struct Served {
    generation: GenerationId,
    loaded: Loaded,
}

impl Earlier {
    /// A generation serves from now on. `back`: it was made of that earlier one.
    pub fn committed(&mut self, generation: GenerationId, loaded: Loaded, back: Option<GenerationId>) {
        let app = &loaded.settings.app;
        let from = self.served.back().map(|served| &served.loaded.settings.app).filter(|_| back.is_some());
        let from = from.filter(|from| from.release != app.release).map(|from| from.release.clone());
        self.barred = from.map(|release| Barred { release, generation, serves: app.release.clone() });
        self.served.push_back(Served { generation, loaded });
        if self.served.len() > KEPT_MAX {
            self.served.pop_front();
        }
    }

    /// The settings of the generation that serves, as written.
    pub fn written(&self) -> Option<&[Effective]> {
        self.served.back().map(|served| &served.loaded.effective[..])
    }

    /// What a reload must not bring back by itself.
    pub fn barred(&self) -> Option<&Barred> {
        self.barred.as_ref()
    }

    /// What a rollback goes back to, and what that was made of; or why there is none.
    pub fn find(&self, to: Option<GenerationId>) -> Result<(GenerationId, Loaded), Problem> {
        let problem = |text: String| Problem::new("rollback", text);
        let Some((serving, before)) =
            self.served.iter().collect::<Vec<_>>().split_last().map(|(last, rest)| (*last, rest.to_vec()))
        else {
            return Err(problem("no generation has served yet".to_owned()));
        };
        let found = match to {
            None => before.last().copied(),
            Some(to) if to == serving.generation => return Err(problem(format!("generation {to} serves already"))),
            Some(to) => before.iter().rev().find(|served| served.generation == to).copied(),
        };
        let Some(found) = found else {
            let numbers: Vec<String> = before.iter().map(|served| served.generation.to_string()).collect();
            return Err(problem(match (to, numbers.is_empty()) {
                (_, true) => format!("no generation has served before generation {}", serving.generation),
                (Some(to), false) => {
                    format!("generation {to} is not one that has served before; these are: {}", numbers.join(", "))
                }
                (None, false) => unreachable!("the last of them was found"),
            }));
        };
        if in_place(&found.loaded.settings.app, &serving.loaded.settings.app) {
            return Err(problem(format!(
                "generation {} had the same directory as generation {}, which serves ({}): the deploy was in place, and \
                 the code before it is gone; give each release a directory of its own",
                found.generation,
                serving.generation,
                serving.loaded.settings.app.release.display()
            )));
        }
        Ok((found.generation, found.loaded.clone()))
    }
}
