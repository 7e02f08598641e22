//! How many, and which: what `scale` and `recycle` are told, `+2`, `celery:1`. It only reads words.

use forkmaster_wire::message::SlotIndex;

/// How many workers are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// `+2`, `-1`
    By(i32),
    To(u32),
}

/// What is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recycle {
    Slot(SlotIndex),
    /// All processes of a service, or one.
    Service {
        name: String,
        number: Option<u32>,
    },
}

/// The number of a slot, of a generation, of lines.
pub fn parse_number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("not a number from 0 to {}; write it in digits, as in 3", u32::MAX))
}

/// `3`, `+1`, `-1`
pub fn parse_scale(text: &str) -> Result<Scale, String> {
    let scale = match text.starts_with(['+', '-']) {
        true => text.parse().ok().map(Scale::By),
        false => text.parse().ok().map(Scale::To),
    };
    scale.ok_or_else(|| "write a number, or a number with + or - before it".to_owned())
}

/// `3`, `celery`, `celery:1`
pub fn parse_recycle(text: &str) -> Result<Recycle, String> {
    if let Ok(slot) = text.parse() {
        return Ok(Recycle::Slot(SlotIndex(slot)));
    }
    let (name, number) = match text.split_once(':') {
        None => (text, None),
        Some((name, number)) => {
            let number = number.parse().map_err(|_| "write the number of a process, as in celery:1".to_owned())?;
            (name, Some(number))
        }
    };
    Ok(Recycle::Service { name: name.to_owned(), number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_slot_and_a_name_a_service() {
        let service = |name: &str, number| Ok(Recycle::Service { name: name.to_owned(), number });
        assert_eq!(parse_recycle("3"), Ok(Recycle::Slot(SlotIndex(3))));
        assert_eq!(parse_recycle("celery"), service("celery", None));
        assert_eq!(parse_recycle("celery:1"), service("celery", Some(1)));
        assert!(parse_recycle("celery:x").is_err());
        assert_eq!(
            (parse_scale("+2"), parse_scale("-1"), parse_scale("0")),
            (Ok(Scale::By(2)), Ok(Scale::By(-1)), Ok(Scale::To(0)))
        );
    }
}
