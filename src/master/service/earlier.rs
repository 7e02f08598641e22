//! What has served: the pinned directories and the settings of the latest generations, so that one of them can be made
//! again. Pure: whether the directories are still there is found out by a chore.

use std::collections::VecDeque;

use forkmaster_wire::message::GenerationId;
use serde::{Deserialize, Serialize};

use crate::config::again::{in_place, Barred};
use crate::config::problem::Problem;
use crate::config::{Effective, Loaded};

/// Generations that are remembered. Whoever keeps releases seldom keeps more.
const KEPT_MAX: usize = 10;

#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Earlier {
    /// Oldest first. The last one serves.
    served: VecDeque<Served>,
    barred: Option<Barred>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Served {
    generation: GenerationId,
    /// The first one that was made of this.
    origin: GenerationId,
    loaded: Loaded,
}

impl Earlier {
    /// A generation serves from now on. `back`: it was made of that earlier one.
    pub fn committed(&mut self, generation: GenerationId, loaded: Loaded, back: Option<GenerationId>) {
        let app = &loaded.settings.app;
        let from = self.served.back().map(|served| &served.loaded.settings.app).filter(|_| back.is_some());
        let from = from.filter(|from| from.release != app.release).map(|from| from.release.clone());
        self.barred = from.map(|release| Barred { release, generation, serves: app.release.clone() });
        let origin = back.map_or(generation, |back| self.origin_of(back));
        self.served.push_back(Served { generation, origin, loaded });
        if self.served.len() > KEPT_MAX {
            self.served.pop_front();
        }
    }

    /// The first generation that had the directories and settings of this one, as far as that is remembered.
    pub fn origin_of(&self, generation: GenerationId) -> GenerationId {
        self.served.iter().find(|served| served.generation == generation).map_or(generation, |served| served.origin)
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
        let problem = |id: GenerationId, text: String| Problem::new(format_args!("generation {id}"), text);
        let mut served = self.served.iter().rev();
        let Some(serving) = served.next() else {
            return Err(Problem::new("rollback", "no generation has served yet"));
        };
        let before: Vec<&Served> = served.collect();
        let Some(latest) = before.first() else {
            return Err(problem(
                serving.generation,
                "it is the first that serves, so there is none to go back to".to_owned(),
            ));
        };
        let found = match to {
            None => latest,
            Some(to) if to == serving.generation => return Err(problem(to, "it serves already".to_owned())),
            Some(to) => before.iter().find(|served| served.generation == to).ok_or_else(|| {
                let numbers: Vec<String> = before.iter().rev().map(|served| served.generation.to_string()).collect();
                problem(to, format!("it is not one that has served before; these are: {}", numbers.join(", ")))
            })?,
        };
        if found.origin == serving.origin {
            let text = format!("it serves already, as generation {}", serving.generation);
            return Err(problem(found.generation, text));
        }
        if in_place(&found.loaded.settings.app, &serving.loaded.settings.app) {
            let text = format!(
                "it had the same directory as generation {}, which serves ({}): the deploy was in place, and the code before \
                 it is gone; give each release a directory of its own",
                serving.generation,
                serving.loaded.settings.app.release.display()
            );
            return Err(problem(found.generation, text));
        }
        Ok((found.generation, found.loaded.clone()))
    }
}
